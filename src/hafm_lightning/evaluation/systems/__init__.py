"""The rows of the card: what plays for each vocal (``base`` lists all), and its results on disk (``generations``)."""
