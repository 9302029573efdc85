"""Command lines of Chinese CLIP."""
