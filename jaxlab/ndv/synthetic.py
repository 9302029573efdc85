"""Random columns to train estimators on, and samples of them, without ever making their rows.

A column is described by groups of values that have equally many rows. Where the rows of a group are
drawn independently of each other, as customers in orders or words in texts, a value with an
expected number of `mean` rows has a Poisson number of them; a Bernoulli sample at rate q then shows
it Poisson(q mean) times, and the rest of the table holds it Poisson((1 - q) mean) times,
independently. Where group sizes are fixed, as the lines of an order, the sample shows a binomial
number. Profiles are drawn from these distributions group by group, at a cost that does not depend
on the number of rows.

`random_column` mixes families of real tables: uniform, gamma, lognormal, Pareto and Zipf popularity
of values, numbers on a grid, sums and products of numbers, texts of growing length, keys with a
fixed or random number of rows each, a few values that are most of a column, and the populations
that the published network was trained on.

References:
  Wu, Ding, Chu, Wei, Dai, Guan, Zhou 2022, "Learning to be a statistician: learned estimator for
  number of distinct values", VLDB 15, arXiv:2202.02800, for `spacing_column`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxlab.ndv.profile import Profile, dense_profile

_GROUPS = 128
_MIDDLES = (np.arange(_GROUPS) + 0.5) / _GROUPS  # of groups of equal shares
_ONE_BY_ONE_ABOVE = 128.0
"""Expected sampled rows above which a value's number is drawn by itself."""

Rng = np.random.Generator


class Column(NamedTuple):
    """A column as groups of values that occur equally often.

    Attributes:
      means: rows of each value of a group, expected or exact; positive.
      num_values: values of the group.
      is_exact: whether each value has exactly so many rows; a Poisson number otherwise.
    """

    means: Float[np.ndarray, " groups"]
    num_values: Int[np.ndarray, " groups"]
    is_exact: Bool[np.ndarray, " groups"]


class Draw(NamedTuple):
    """A sample of a column.

    Attributes:
      profile: dense host profile; its N is the number of rows of the column.
      num_distinct: D, distinct values of the column.
    """

    profile: Profile
    num_distinct: int


def draw_sample(rng: Rng, column: Column, rate: float | int, length: int) -> Draw:
    """Profile of a Bernoulli sample of a column, and the truth.

    Args:
      rng: generator.
      column: what is sampled.
      rate: q in (0, 1).
      length: frequencies that the profile keeps apart.
    """
    expected = column.means * rate
    single = expected > _ONE_BY_ONE_ABOVE
    groups = Column(*(leaf[~single] for leaf in column))
    cells = _draw_groups(rng, groups, rate)
    often = np.repeat(expected[single], column.num_values[single])
    exact = np.repeat(column.is_exact[single], column.num_values[single])
    spread = np.sqrt(often * np.where(exact, 1 - rate, 1.0))
    # Above a mean of 128 the normal distribution is as good, and needs no whole class sizes.
    counts = np.maximum(np.rint(rng.normal(often, spread)), 1).astype(np.int64)

    unseen, f = cells[:, 0], cells[:, 1:].sum(0)
    hidden = 1 - np.exp(-(1 - rate) * groups.means)
    missed = np.where(groups.is_exact, unseen, rng.binomial(unseen, hidden))
    i = np.arange(1, len(f) + 1)
    f = f + np.bincount(counts[counts <= len(f)], minlength=len(f) + 1)[1:]
    inside, high = f[:length], np.where(i > length, f, 0)
    big = counts[counts > len(f)].astype(np.float64)
    n_tail, d_tail = (i * high).sum() + big.sum(), high.sum() + len(big)
    s2_tail = (i * (i - 1.0) * high).sum() + (big * (big - 1)).sum()
    n = (i[: len(inside)] * inside).sum() + n_tail
    num_distinct = int(inside.sum() + d_tail + missed.sum())
    rest = (column.means * column.num_values)[~column.is_exact].sum() * (1 - rate)
    exact_rows = (column.means * column.num_values)[column.is_exact].sum()
    seen_exact = _exact_rows(cells, groups) + counts[exact].sum()
    unread = rng.poisson(rest) + max(round(exact_rows) - seen_exact, 0)
    population = n + max(unread, missed.sum())
    reals = {
        "n": n, "d": inside.sum() + d_tail, "population": population, "rate": rate,
        "n_tail": n_tail, "d_tail": d_tail, "s2_tail": s2_tail,
    }  # fmt: skip
    profile = dense_profile(
        np.pad(inside.astype(np.float64), (0, length - len(inside))),
        **{name: np.asarray(value, np.float64) for name, value in reals.items()},
    )
    return Draw(profile, num_distinct)


def _draw_groups(rng: Rng, column: Column, rate: float | int) -> Int[np.ndarray, "groups cells"]:
    """How many values of each group the sample has 0, 1, 2, ... times."""
    from scipy.special import gammaln

    if not len(column.means):
        return np.zeros((0, 2), np.int64)
    mean = column.means[:, None] * rate
    top = float(mean.max())
    i = np.arange(int(top + 10 * math.sqrt(top) + 12))[None]
    poisson = np.exp(i * np.log(mean) - mean - gammaln(i + 1))
    size = np.maximum(column.means[:, None], 1)
    left = np.maximum(size - i, 0)
    chosen = gammaln(size + 1) - gammaln(i + 1) - gammaln(left + 1)
    binomial = np.exp(chosen + i * math.log(rate) + left * math.log1p(-rate)) * (i <= size)
    cells = np.where(column.is_exact[:, None], binomial, poisson)
    cells = cells / cells.sum(-1, keepdims=True)
    return rng.multinomial(column.num_values, cells)


def _exact_rows(cells: np.ndarray, column: Column) -> int:
    """Sampled rows of the values with exact sizes."""
    exact = cells[column.is_exact]
    return int((exact * np.arange(cells.shape[1])).sum())


def random_column(rng: Rng, num_rows: float | int) -> Column:
    """A column of a random family and shape.

    Args:
      rng: generator.
      num_rows: its rows, met approximately.
    """
    kind = rng.random()
    if kind < 0.1:
        return spacing_column(rng, num_rows)
    if kind < 0.3:
        return _keys(rng, num_rows)
    if kind < 0.65:
        return _popularity(rng, num_rows)
    # Parts of a column: a spike of few values beside the rest, or two or three kinds of rows.
    shares = rng.dirichlet(np.full(rng.integers(2, 4), rng.choice([0.5, 1.0, 3.0])))
    rows = np.maximum(shares * num_rows, 2)
    parts = [
        (_keys if rng.random() < 0.25 else _spike if rng.random() < 0.3 else _popularity)(rng, size)
        for size in rows
    ]
    return Column(*(np.concatenate(leaves) for leaves in zip(*parts, strict=True)))


def spacing_column(rng: Rng, num_rows: float | int) -> Column:
    """A population of the published network: F_j are spacings of sorted uniform numbers.

    With M of a log-uniform size up to 1e7, F_j is (num_rows / M) E / j with an exponential E, for j
    up to M; one class size gets all its values again.
    """
    longest = max(int(10 ** rng.uniform(0, 7)), 1)
    sizes = np.unique(np.rint(np.geomspace(1, longest, _GROUPS)).astype(np.int64))
    width = np.diff(np.append(sizes, longest + 1))
    noise = rng.gamma(np.minimum(width, 1e6)) / np.minimum(width, 1e6)
    expected = num_rows / longest * noise * width / sizes
    num_values = np.floor(expected + rng.random(len(sizes))).astype(np.int64)
    extra = int(min(10 ** rng.uniform(0, 7), num_rows))
    sizes = np.append(sizes, extra)
    num_values = np.append(num_values, int(num_rows / extra))
    kept = num_values > 0
    return Column(sizes[kept].astype(np.float64), num_values[kept], np.ones(kept.sum(), bool))


def _popularity(rng: Rng, num_rows: float | int) -> Column:
    """Rows that choose their values independently of each other."""
    family = _FAMILIES[rng.integers(len(_FAMILIES))]
    weights, num_values = family(rng, num_rows)
    num_values = np.maximum(np.rint(num_values), 1).astype(np.int64)
    total = float((weights * num_values).sum())
    means = np.maximum(weights / total * num_rows, 1e-15)
    return Column(means, num_values, np.zeros(len(means), bool))


def _keys(rng: Rng, num_rows: float | int) -> Column:
    """Values that have a fixed number of rows, or a random one that starts at 1."""
    kind = rng.integers(5)
    if kind == 0:
        sizes = np.array([_log_integer(rng, 1, max(num_rows / 10, 2))], np.float64)
        shares = np.ones(1)
    elif kind == 1:
        sizes = np.arange(1.0, rng.integers(2, 40))
        shares = np.ones(len(sizes))
    elif kind == 2:
        sizes = np.arange(1.0, 200)
        shares = (1 - 10 ** rng.uniform(-2, -0.1)) ** sizes
    elif kind == 3:
        sizes = np.unique(np.rint(np.geomspace(1, max(num_rows / 20, 3), _GROUPS)))
        width = np.diff(np.append(sizes, sizes[-1] + 1))
        shares = width * sizes ** -(rng.uniform(0.8, 3.5))
    else:
        middle, spread = 10 ** rng.uniform(0, 3), rng.uniform(0.05, 0.5)
        sizes = np.unique(np.maximum(np.rint(middle * (1 + spread * np.linspace(-3, 3, 64))), 1))
        shares = np.exp(-0.5 * ((sizes / middle - 1) / spread) ** 2) + 1e-12
    expected = shares / (shares * sizes).sum() * num_rows
    num_values = np.floor(expected + rng.random(len(sizes))).astype(np.int64)
    kept = num_values > 0
    if not kept.any():
        return Column(np.ones(1), np.array([max(int(num_rows), 1)]), np.ones(1, bool))
    return Column(sizes[kept], num_values[kept], np.ones(int(kept.sum()), bool))


def _spike(rng: Rng, num_rows: float | int) -> Column:
    """One to five values."""
    shares = rng.dirichlet(np.ones(rng.integers(1, 6)))
    return Column(
        np.maximum(shares * num_rows, 1.0), np.ones(len(shares), np.int64),
        np.zeros(len(shares), bool),
    )  # fmt: skip


def _log_integer(rng: Rng, low: float | int, high: float | int) -> int:
    return int(round(math.exp(rng.uniform(math.log(low), math.log(max(high, low))))))


def _most_values(rng: Rng, num_rows: float | int) -> int:
    """How many values there are to choose from: also more than there are rows."""
    return _log_integer(rng, 2, 5 * num_rows + 10)


def _uniform(rng: Rng, num_rows: float | int) -> tuple[np.ndarray, np.ndarray]:
    return np.ones(1), np.array([_most_values(rng, num_rows)], np.float64)


def _gamma(rng: Rng, num_rows: float | int) -> tuple[np.ndarray, np.ndarray]:
    from scipy.special import gammaincinv

    shape = 10 ** rng.uniform(-1, 1.5)
    weights = np.maximum(gammaincinv(shape, _MIDDLES), 1e-12)
    return weights, np.full(_GROUPS, _most_values(rng, num_rows) / _GROUPS)


def _lognormal(rng: Rng, num_rows: float | int) -> tuple[np.ndarray, np.ndarray]:
    from scipy.special import ndtri

    weights = np.exp(rng.uniform(0.1, 3) * ndtri(_MIDDLES))
    return weights, np.full(_GROUPS, _most_values(rng, num_rows) / _GROUPS)


def _zipf(rng: Rng, num_rows: float | int) -> tuple[np.ndarray, np.ndarray]:
    """Zipf and Mandelbrot: the r-th value has weight (r + shift)^-exponent."""
    most = _most_values(rng, num_rows)
    ranks = np.unique(np.rint(np.geomspace(1, most, _GROUPS)))
    width = np.diff(np.append(ranks, ranks[-1] + 1))
    shift = 0.0 if rng.random() < 0.5 else 10 ** rng.uniform(0, math.log10(most))
    middle = ranks + (width - 1) / 2
    return (middle + shift) ** -rng.uniform(0.2, 2.2), width


def _grid(rng: Rng, num_rows: float | int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers rounded to a grid: the density of a distribution over its cells."""
    cells = _most_values(rng, num_rows)
    kind = rng.integers(5)
    if kind == 0:
        x, density = _density(cells, -5, 5, lambda x: np.exp(-0.5 * x * x))
    elif kind == 1:
        x, density = _density(cells, 0, 16, lambda x: np.exp(-x))
    elif kind == 2:
        sigma = rng.uniform(0.3, 1.5)
        x, density = _density(
            cells, 1e-3, math.exp(3.5 * sigma),
            lambda x: np.exp(-0.5 * (np.log(x) / sigma) ** 2) / x,
        )  # fmt: skip
    elif kind == 3:
        power = rng.uniform(1, 4)
        x, density = _density(cells, -50, 50, lambda x: (1 + x * x) ** -power)
    else:
        x, density = _density(cells, 0, 1, lambda x: np.minimum(x, 1 - x) + 1e-9)
    return density, np.full(len(x), cells / len(x))


def _density(
    cells: int, low: float | int, high: float | int, density: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    count = min(cells, 2 * _GROUPS)
    x = low + (high - low) * (np.arange(count) + 0.5) / count
    return x, np.maximum(density(x), 1e-30)


def _arithmetic(rng: Rng, num_rows: float | int) -> tuple[np.ndarray, np.ndarray]:
    """Sums or products of two or three whole numbers, at times on top of a base price."""
    first, second = _log_integer(rng, 2, 300), _log_integer(rng, 2, 1000)
    a = np.arange(1, first + 1)
    b = np.arange(1, second + 1) * _log_integer(rng, 1, 30) + _log_integer(rng, 1, 10000)
    values = (a[:, None] * b[None] if rng.random() < 0.7 else a[:, None] + b[None]).ravel()
    _, counts = np.unique(values, return_counts=True)
    weights, groups = np.unique(counts, return_counts=True)
    # A further factor that hardly ever collides, such as an amount in cents.
    return weights.astype(np.float64), groups * float(_log_integer(rng, 1, num_rows / 10 + 10))


def _texts(rng: Rng, num_rows: float | int) -> tuple[np.ndarray, np.ndarray]:
    """Texts of several lengths: each has more possible values than the one before it."""
    lengths = rng.integers(2, 30)
    growth, start = 10 ** rng.uniform(0.1, 1.5), 10 ** rng.uniform(0, 4)
    num_values = np.minimum(start * growth ** np.arange(lengths), 1e15)
    shares = np.ones(lengths) if rng.random() < 0.5 else rng.dirichlet(np.ones(lengths))
    skew = rng.uniform(0, 1.2)
    inner = np.geomspace(1, np.maximum(num_values, 2), 8, axis=-1)
    weights = inner**-skew
    width = np.diff(inner, axis=-1, append=np.maximum(num_values, 2)[:, None] * 1.5)
    weights = weights / (weights * width).sum(-1, keepdims=True) * shares[:, None]
    return weights.ravel(), np.maximum(width, 1).ravel()


_FAMILIES = (_uniform, _gamma, _lognormal, _zipf, _zipf, _grid, _grid, _arithmetic, _texts)
