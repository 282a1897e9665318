"""Imports TensorFlow without the lines that it prints when it starts.

A script imports this module before everything that imports TensorFlow.
"""

from urkle_tf import command_line

command_line.import_tensorflow()
