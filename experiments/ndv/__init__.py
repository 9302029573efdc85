"""Commands of the estimation of numbers of distinct values."""
