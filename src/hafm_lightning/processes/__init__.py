"""Processes of one machine: a pool of workers, and locks between programs."""
