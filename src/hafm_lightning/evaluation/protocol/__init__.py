"""From clips to cells: one protocol of the card."""
