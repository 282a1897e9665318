"""What makes docs/results: trainings, their figures, pages and tables."""
