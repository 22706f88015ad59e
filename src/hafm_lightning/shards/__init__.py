"""Shards of tokens on disk: manifests, reading, writing, remote roots."""
