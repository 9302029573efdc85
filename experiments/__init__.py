"""Command lines, notebooks and benchmarks: each wires a config to a system, runs it and reports."""
