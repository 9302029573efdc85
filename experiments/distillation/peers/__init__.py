"""What runs the peers of the benchmarks, in their environment."""
