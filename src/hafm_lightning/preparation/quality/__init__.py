"""Quality of clips and songs: the filter with its measurements, and duplicates by fingerprint."""
