"""Bounds of what a network does within a ball, which no input of the ball exceeds."""
