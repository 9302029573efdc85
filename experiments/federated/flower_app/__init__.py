"""What the server gives Flower to run: copied as it stands, so that it imports next to nothing."""
