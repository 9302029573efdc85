"""Data: pipelines, images, formats, and the emoji set."""
