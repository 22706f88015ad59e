"""Scores of one stage in training, for the callback."""
