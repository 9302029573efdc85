"""Distillation of text models from the command line."""
