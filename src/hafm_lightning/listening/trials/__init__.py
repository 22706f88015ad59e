"""The trials of a study: which are compared, from which sounds, and how these are made alike."""
