"""The report of `prepare`: figures, page, logs."""
