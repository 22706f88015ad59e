"""Which clips are good enough: filters, loudness, duplicates."""
