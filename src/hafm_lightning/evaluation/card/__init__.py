"""The evaluation card: tables, checks, figures, page, dashboard."""
