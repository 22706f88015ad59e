"""Where the work of `prepare` runs: this process, several processes, a Ray cluster."""
