"""Other programs that simulate federated learning, one script each, run in its own environment."""
