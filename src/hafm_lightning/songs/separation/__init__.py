"""Separating a mixture into vocals and instrumental."""
