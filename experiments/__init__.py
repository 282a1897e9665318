"""What makes docs/results: trainings, their figures, pages and tables."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before TensorFlow is imported
