"""Command lines of the distillation of transformers."""
