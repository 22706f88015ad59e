"""Embeddings of music for distances between sets."""
