"""Scores on tokens: cross-entropy under true, null and exchanged conditions."""
