"""How good, how robust and how calibrated a model is: `assess`, behind `evaluate`.

`assess` is the loop, `measurements/` holds what it measures, one file each, and `report/` how that
is written.  What measurements compute lies beside them, in modules that import TensorFlow.
"""
