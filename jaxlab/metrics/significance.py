"""Whether one method beats another over the same seeds."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_EXACT = 20
"""Up to so many pairs all signs are tried: 2^20 of them."""


class PairedTest(NamedTuple):
    """Differences of pairs, first minus second.

    Attributes:
      mean: of the differences.
      low: lower end of the confidence interval of the mean, from Student's t.
      high: upper end.
      t_test: two-sided p of the paired t-test.
      sign_flips: two-sided p over all signs of the differences, or 100,000 random ones.
      wilcoxon: two-sided p of the signed-rank test; 1 if all differences are 0.
      wins: pairs in which the first is larger.
      count: pairs.
    """

    mean: float
    low: float
    high: float
    t_test: float
    sign_flips: float
    wilcoxon: float
    wins: int
    count: int


def paired_test(
    first: Sequence[float], second: Sequence[float], confidence: float = 0.95, seed: int = 0
) -> PairedTest:
    """Compares two methods by scores on the same seeds.

    With n pairs no test of signs can give a p below 2^(1-n): five seeds give at least 0.0625.

    Args:
      first: a score of each seed.
      second: scores of the other method on the same seeds.
      confidence: of the interval.
      seed: of the random signs, where there are more than 20 pairs.

    Raises:
      ValueError: if there are fewer than two pairs, other numbers of scores, or a NaN.
    """
    from scipy import stats

    scores = [np.array(values, np.float64) for values in (first, second)]
    are_pairs = len(first) == len(second) > 1 and all(np.isfinite(s).all() for s in scores)
    if not are_pairs or not 0 < confidence < 1:
        raise ValueError(
            f"{len(first)} and {len(second)} scores, confidence={confidence}; wanted as many "
            "finite scores of both on the same seeds, two or more, and 0 < confidence < 1"
        )
    differences = scores[0] - scores[1]
    count, mean = len(differences), float(differences.mean())
    error = float(differences.std(ddof=1) / np.sqrt(count))
    reach = float(stats.t.ppf((1 + confidence) / 2, count - 1)) * error
    if error > 0:
        t_test = float(2 * stats.t.sf(abs(mean / error), count - 1))
    else:
        t_test = 1.0 if mean == 0 else 0.0
    is_zero = not differences.any()
    wilcoxon = 1.0 if is_zero else float(stats.wilcoxon(differences).pvalue)
    flips = _sign_flips(differences, seed)
    wins = int((differences > 0).sum())
    return PairedTest(mean, mean - reach, mean + reach, t_test, flips, wilcoxon, wins, count)


def _sign_flips(differences: np.ndarray, seed: int) -> float:
    """Share of sign patterns whose sum is at least as far from 0 as the one seen."""
    count = len(differences)
    seen = abs(differences.sum())
    # Sums of the same numbers in another order differ by rounding.
    bar = seen - 1e-12 * np.abs(differences).sum()
    if count <= _EXACT:
        half = count // 2
        left, right = (
            np.array(
                [np.dot(signs, part) for signs in itertools.product((-1, 1), repeat=len(part))]
            )
            for part in (differences[:half], differences[half:])
        )
        return float((np.abs(left[:, None] + right) >= bar).mean())
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(100_000, count))
    extreme = int((np.abs(signs @ differences) >= bar).sum())
    return (extreme + 1) / 100_001
