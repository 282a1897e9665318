"""Training: the step, and the run around it."""
