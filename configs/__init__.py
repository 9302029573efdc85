"""Configs of the experiments, data only: `configs/<system>/<name>.py` has `get_config()`."""
