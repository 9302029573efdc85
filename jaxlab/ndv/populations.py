"""Populations by the number of values of each size, and the profiles that samples of them expect.

A population is described by F_j, the number of values that occur j times. A Bernoulli sample at
rate q then has, in expectation, f_i = sum over j of F_j Binomial(i; j, q): the profile without
noise, made in milliseconds however many rows the population has.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxlab.ndv.arguments import check_instance, check_integer, check_number
from jaxlab.ndv.profile import Profile, validate_profile
from jaxlab.ndv.sampling import check_rate

_BLOCK = 2048
"""Class sizes at a time when their binomial probabilities are tabulated."""


class Population(NamedTuple):
    """How many values occur how often.

    Attributes:
      sizes: class sizes j, at least 1.
      num_values: F_j, the number of values with j rows.
    """

    sizes: Int[np.ndarray, " sizes"]
    num_values: Float[np.ndarray, " sizes"]

    @property
    def num_rows(self) -> float:
        """N, the number of rows."""
        return float(np.sum(self.sizes * self.num_values))

    @property
    def num_distinct(self) -> float:
        """D, the number of distinct values."""
        return float(np.sum(self.num_values))


def equal_population(size: int, num_values: float | int) -> Population:
    """`num_values` values of `size` rows each."""
    check_integer(size, "size")
    check_number(num_values, "num_values")
    return Population(np.array([size], np.int64), np.array([num_values], np.float64))


def poisson_population(
    mean: float | int, num_rows: float | int = 1e10, repeats: int = 10
) -> Population:
    """Values whose rows, picked at random, have Poisson distributed class sizes.

    F_j = floor(num_rows Poisson(j; mean) / j), for j from 1 on while num_rows Poisson(j) / j > 1 or
    j < mean; the whole block is repeated. With the default `num_rows` and `repeats` of 10, 50 and
    100 these are the data sets of 1e11, 5e11 and 1e12 rows of the paper.

    Args:
      mean: mean of the Poisson distribution, positive.
      num_rows: rows of a block, before rounding.
      repeats: blocks, each with values of its own.

    References:
      The data generator published with arXiv:2206.05476.
    """
    _require_positive(mean=mean, num_rows=num_rows, repeats=repeats)
    num_values, j = [], 1
    while True:
        log_share = j * math.log(mean) - mean - math.lgamma(j + 1)
        expected = num_rows * math.exp(log_share) / j
        if expected <= 1 and j >= mean:
            break
        num_values.append(repeats * math.floor(expected))
        j += 1
    return _kept(np.arange(1, j), np.array(num_values, np.float64))


def zipf_population(
    exponent: float | int, num_rows: float | int = 1e10, repeats: int = 10
) -> Population:
    """Values whose rows, picked at random, have class sizes with a power law.

    F_j = floor(num_rows / zeta(exponent) / j^(exponent + 1)), for j from 1 on while it is at least
    1; the whole block is repeated.

    Args:
      exponent: above 1.
      num_rows: rows of a block, before truncation.
      repeats: blocks, each with values of its own.

    Raises:
      ValueError: if an argument is out of range.

    References:
      The data generator published with arXiv:2206.05476.
    """
    from scipy.special import zeta

    _require_positive(num_rows=num_rows, repeats=repeats)
    check_number(exponent, "exponent")
    if not exponent > 1:
        raise ValueError(f"exponent={exponent} has no zeta distribution; wanted more than 1")
    first = num_rows / float(zeta(exponent))
    sizes = np.arange(1, int(first ** (1 / (exponent + 1))) + 2)
    return _kept(sizes, repeats * np.floor(first / sizes.astype(np.float64) ** (exponent + 1)))


def ranked_zipf_population(
    exponent: float | int, num_values: int, num_rows: float | int
) -> Population:
    """`num_values` values, the r-th with a share of the rows proportional to r^-exponent.

    Sizes are rounded and at least 1, so that the number of rows is met approximately.
    """
    _require_positive(exponent=exponent, num_values=num_values, num_rows=num_rows)
    weights = np.arange(1, num_values + 1, dtype=np.float64) ** -exponent
    sizes = np.maximum(np.rint(num_rows * weights / weights.sum()), 1).astype(np.int64)
    unique, counts = np.unique(sizes, return_counts=True)
    return Population(unique, counts.astype(np.float64))


def expected_profile(
    population: Population, rate: float | int, length: int | None = None
) -> Profile:
    """Expected profile of a Bernoulli sample, on the host, in float64.

    Args:
      population: what is sampled.
      rate: q in (0, 1].
      length: number L of frequencies that are kept apart; the rest goes to the tail, whose sums are
        exact. By default up to where nothing of weight is left, at most 4,096.

    Returns:
      A dense profile with N the rows of the population and n = q N.

    Raises:
      ValueError: if the rate is out of range or the population has no row.
    """
    from scipy.stats import binom

    hint = "equal_population, poisson_population and others make one"
    check_instance(population, Population, "population", hint)
    sizes, num_values = population.sizes, population.num_values
    check_rate(rate)
    if not population.num_rows > 0:
        raise ValueError("population has no row; wanted at least one value")
    if length is None:
        mean = float(sizes.max()) * rate
        length = int(min(sizes.max(), mean + 12 * math.sqrt(mean) + 40, 4096))
    i = np.arange(1, length + 1)
    f = np.zeros(length)
    for start in range(0, len(sizes), _BLOCK):
        block = slice(start, start + _BLOCK)
        f += num_values[block] @ binom.pmf(i[None], sizes[block, None], rate)
    rows = sizes * num_values
    pairs = rows * (sizes - 1)
    n_tail = rate * np.sum(rows * binom.sf(length - 1, sizes - 1, rate))
    d_tail = np.sum(num_values * binom.sf(length, sizes, rate))
    s2_tail = rate**2 * np.sum(pairs * binom.sf(length - 2, np.maximum(sizes - 2, 0), rate))
    n, d = np.sum(i * f) + n_tail, np.sum(f) + d_tail
    reals = (n, d, population.num_rows, rate, n_tail, d_tail, s2_tail)
    profile = Profile(i, f, *(np.asarray(value, np.float64) for value in reals))
    validate_profile(profile)
    return profile


def _kept(sizes: np.ndarray, num_values: np.ndarray) -> Population:
    kept = num_values > 0
    return Population(sizes[kept], num_values[kept])


def _require_positive(**arguments: float | int) -> None:
    for name, value in arguments.items():
        check_number(value, name)
        if not value > 0:
            raise ValueError(f"{name}={value} is not positive")
