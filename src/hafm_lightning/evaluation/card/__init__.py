"""The evaluation card: its tables, its checks, and its three files."""
