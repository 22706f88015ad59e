"""The rows of the card: who plays, and what they played."""
