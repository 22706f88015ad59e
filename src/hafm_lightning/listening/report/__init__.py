"""What the votes of a study show: tables, intervals, agreement, verdicts; as Markdown, JSON, HTML and on W&B."""
