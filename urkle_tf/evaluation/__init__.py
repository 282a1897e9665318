"""Measures how good, how robust and how calibrated a model is: `assess`, behind `evaluate`.

`assess` is the loop, `measurements/` holds what it measures, one file each, and `report/` writes
the report.  The computations are in the other modules here, which import TensorFlow.
"""
