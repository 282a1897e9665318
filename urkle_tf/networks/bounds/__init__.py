"""Bounds on a network's outputs that hold for every input in a ball."""
