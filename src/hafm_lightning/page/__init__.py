"""Pages for people: one HTML template for every report, and the figures and pictures on them."""
