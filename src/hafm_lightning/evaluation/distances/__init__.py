"""Distances between sets of embeddings."""
