"""Blind listening trials: a study folder, votes of people and judges, reports."""
