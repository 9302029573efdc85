"""From cosines to probabilities: does this picture match this text?

Cosines of matching pairs lie near 0.3 to 0.6 in the released models, and a softmax over candidates
says which fits best, not whether any does (over a single candidate it is always 1). Two readings of
a cosine are calibrated here, from pairs that the model was not trained on:

* its background percentile: the share of pairs that do not match whose cosine is lower;
* the match probability, a logistic function of the cosine fitted to matching and other pairs
  (Platt 1999). It holds for the share of matching pairs that is expected, the prior;
  `MatchCalibration.with_prior` moves it to another share.

Use::

    cosines = queries @ gallery.T                              # of held-out pairs
    calibration = fit_calibration(*split_cosines(cosines, positives))
    calibration.probability(0.41)
    threshold_for_precision(*split_cosines(cosines, positives), precision=0.9)

References:
  Platt 1999, "Probabilistic outputs for support vector machines", with the targets of its section
  2.2. Guo et al. 2017, "On calibration of modern neural networks", arXiv:1706.04599 (the
  expected calibration error).
"""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxlab.checkpoints.foreign import files

FORMAT = "jaxlab.chinese_clip.calibration"
NUM_QUANTILES = 1001
NUM_BINS = 15
_MAX_STEPS = 100
_CONVERGED = 1e-10


@dataclasses.dataclass(frozen=True)
class MatchCalibration:
    """What a cosine says about a match; made by `fit_calibration`.

    Attributes:
      slope: of the log odds, per unit of cosine; not negative.
      intercept: log odds at cosine 0 under `prior`.
      prior: share of matching pairs among those that it is asked about, in (0, 1).
      background: cosines of pairs that do not match, at evenly spaced quantiles from 0 to 1.
    """

    slope: float
    intercept: float
    prior: float
    background: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
          ValueError: if the prior is no share, the slope is negative, a number is not finite, or
            the quantiles fall.
        """
        _check_share("prior", self.prior)
        numbers = (self.slope, self.intercept, *self.background)
        if self.slope < 0 or not all(map(math.isfinite, numbers)):
            raise ValueError(
                f"slope={self.slope}, intercept={self.intercept}: wanted finite numbers and a "
                "slope that is not negative; fit the calibration again"
            )
        if len(self.background) < 2 or list(self.background) != sorted(self.background):
            raise ValueError("background must hold at least two quantiles in rising order")

    def probability(self, cosines: Any) -> Float[np.ndarray, "..."]:
        """Probability of a match, float64, for cosines of any shape."""
        return np.asarray(_sigmoid(self.slope * np.asarray(cosines, np.float64) + self.intercept))

    def cosine(self, probability: float) -> float:
        """The cosine at which a match has this probability; infinite if none has (slope 0).

        Args:
          probability: in (0, 1).
        """
        _check_share("probability", probability)
        if not self.slope:
            return math.inf
        return (_log_odds(probability) - self.intercept) / self.slope

    def percentile(self, cosines: Any) -> Float[np.ndarray, "..."]:
        """Share of pairs that do not match with a lower cosine, float64 in [0, 1]."""
        return background_percentile(cosines, self.background)

    def with_prior(self, prior: float) -> "MatchCalibration":
        """The same evidence for another share of matching pairs.

        A text that is searched among n pictures of which one matches has the prior 1 / n.

        Args:
          prior: in (0, 1).
        """
        _check_share("prior", prior)
        moved = self.intercept + _log_odds(prior) - _log_odds(self.prior)
        return dataclasses.replace(self, intercept=moved, prior=prior)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` is the inverse."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Any) -> "MatchCalibration":
        """The calibration that `to_dict` wrote.

        Args:
          values: what JSON gave.

        Raises:
          ValueError: if it is no calibration.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(values, dict) or values.get("format") != FORMAT or not (
            set(names) <= set(values)
        ):  # fmt: skip
            raise ValueError(f"no calibration; wanted format={FORMAT!r} with {', '.join(names)}")
        try:
            return cls(
                slope=float(values["slope"]),
                intercept=float(values["intercept"]),
                prior=float(values["prior"]),
                background=tuple(float(value) for value in values["background"]),
            )
        except TypeError as error:
            raise ValueError(f"a value of the calibration is no number: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON, complete or not at all."""
        text = json.dumps(self.to_dict()) + "\n"
        with files.replacing(Path(path)) as file:
            file.write(text.encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "MatchCalibration":
        """Reads what `save` wrote.

        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: if it holds something else.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text("utf-8")))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


class CosineGroups(NamedTuple):
    """Cosines of pairs that match, and of pairs that do not."""

    matching: Float[np.ndarray, " matching"]
    other: Float[np.ndarray, " other"]


def split_cosines(
    cosines: Float[np.ndarray, "queries items"], positives: Sequence[Sequence[int]]
) -> CosineGroups:
    """The cosines of all pairs of a retrieval task, taken apart.

    Args:
      cosines: of every query with every item.
      positives: for every query the positions of its true items.

    Raises:
      ValueError: if lengths differ.
    """
    if len(positives) != len(cosines):
        raise ValueError(f"positives of {len(positives)} queries for {len(cosines)} rows")
    matches = np.zeros(cosines.shape, bool)
    for query, items in enumerate(positives):
        matches[query, list(items)] = True
    return CosineGroups(cosines[matches], cosines[~matches])


def fit_calibration(
    matching: Float[np.ndarray, " matching"],
    other: Float[np.ndarray, " other"],
    *,
    prior: float | None = None,
) -> MatchCalibration:
    """Fits both readings of a cosine to held-out pairs.

    The logistic function maximises the likelihood, with Platt's targets (N+1)/(N+2) and 1/(N+2)
    instead of 1 and 0, so that separable pairs give a finite slope. Where matching pairs do not
    have the larger cosines the slope is 0: such a model says nothing.

    Args:
      matching: cosines of pairs that match.
      other: cosines of pairs that do not, such as every query with the items of all others.
      prior: share of matching pairs among those that will be asked about; by default that of the
        two arrays. Both classes are weighted to it.

    Returns:
      The calibration.

    Raises:
      ValueError: if there are fewer than two of each, one is not finite, or the prior is no share.
    """
    matching, other = _check_groups(matching, other)
    share = len(matching) / (len(matching) + len(other))
    prior = share if prior is None else prior
    _check_share("prior", prior)
    cosines = np.concatenate([matching, other])
    positive, negative = len(matching), len(other)
    targets = np.concatenate(
        [np.full(positive, (positive + 1) / (positive + 2)), np.full(negative, 1 / (negative + 2))]
    )
    # Balanced: rare matches would weigh nothing in the slope; the prior is put back below.
    weights = np.concatenate([np.full(positive, 0.5 / positive), np.full(negative, 0.5 / negative)])
    slope, intercept = _fit_logistic(cosines, targets, weights)
    quantiles = np.quantile(other, np.linspace(0.0, 1.0, NUM_QUANTILES))
    balanced = MatchCalibration(slope, intercept, 0.5, tuple(quantiles.tolist()))
    return balanced.with_prior(prior)


def background_percentile(cosines: Any, background: Any) -> Float[np.ndarray, "..."]:
    """Share of the background below each cosine, interpolated between its quantiles.

    Args:
      cosines: any shape.
      background: cosines at evenly spaced quantiles from 0 to 1, rising.

    Returns:
      float64 in [0, 1].

    Example:
      >>> background_percentile([0.0, 0.2, 0.9], [0.1, 0.2, 0.3]).tolist()
      [0.0, 0.5, 1.0]
    """
    quantiles = np.asarray(background, np.float64)
    shares = np.linspace(0.0, 1.0, len(quantiles))
    return np.asarray(np.interp(np.asarray(cosines, np.float64), quantiles, shares))


def expected_calibration_error(
    probabilities: Float[np.ndarray, " pairs"],
    matches: Bool[np.ndarray, " pairs"],
    *,
    weights: Float[np.ndarray, " pairs"] | None = None,
    num_bins: int = NUM_BINS,
) -> float:
    """Mean distance between the probability that is said and the share that matches, over bins.

    Args:
      probabilities: in [0, 1].
      matches: whether each pair matches.
      weights: of the pairs; all equal by default.
      num_bins: bins of equal width.

    Returns:
      A number in [0, 1]; 0 is perfect.

    Raises:
      ValueError: if there are no pairs, lengths differ or a probability is none.

    Example:
      >>> p, matches = np.array([0.9, 0.9, 0.1, 0.1]), np.array([True, True, False, True])
      >>> round(expected_calibration_error(p, matches), 6)
      0.25
    """
    said, matched = np.asarray(probabilities, np.float64), np.asarray(matches, np.float64)
    mass = np.ones(said.shape) if weights is None else np.asarray(weights, np.float64)
    if not said.size or said.shape != matched.shape or said.shape != mass.shape:
        raise ValueError(f"got {said.shape} probabilities, {matched.shape} matches, {mass.shape}")
    if not ((said >= 0) & (said <= 1)).all():
        raise ValueError("probabilities must lie in [0, 1]")
    bins = np.minimum((said * num_bins).astype(int), num_bins - 1)
    gaps = np.bincount(bins, mass * (said - matched), num_bins)
    return float(np.abs(gaps).sum() / mass.sum())


def threshold_for_precision(
    matching: Float[np.ndarray, " matching"],
    other: Float[np.ndarray, " other"],
    precision: float,
    *,
    prior: float | None = None,
) -> float:
    """The lowest cosine from which on pairs match with a wanted precision.

    Args:
      matching: cosines of held-out pairs that match.
      other: cosines of pairs that do not.
      precision: wanted share of matching pairs among those at or above the threshold, in (0, 1].
      prior: share of matching pairs among all; by default that of the two arrays.

    Returns:
      A cosine among those given; infinite if no threshold reaches the precision.

    Raises:
      ValueError: if there are fewer than two of each, one is not finite, or a share is none.

    Example:
      >>> threshold_for_precision(np.array([0.3, 0.5, 0.6]), np.array([0.1, 0.4]), 0.9)
      0.5
    """
    matching, other = _check_groups(matching, other)
    if not 0.0 < precision <= 1.0:
        raise ValueError(f"precision={precision} is no share; give a number in (0, 1]")
    share = len(matching) / (len(matching) + len(other))
    prior = share if prior is None else prior
    _check_share("prior", prior)
    thresholds = np.unique(np.concatenate([matching, other]))
    found = prior * _share_from(matching, thresholds)
    wrong = (1.0 - prior) * _share_from(other, thresholds)
    reached = found >= precision * (found + wrong) * (1.0 - 1e-12)
    good = np.flatnonzero(reached & (found > 0))
    return float(thresholds[good[0]]) if good.size else math.inf


def _share_from(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Share of the values that are at or above each threshold."""
    return 1.0 - np.searchsorted(np.sort(values), thresholds, side="left") / len(values)


def _fit_logistic(x: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Slope (not negative) and intercept of the weighted maximum likelihood, by Newton's method."""
    centre, spread = float(np.average(x, weights=weights)), float(x.std()) or 1.0
    z = (x - centre) / spread
    a = b = 0.0
    loss = _logistic_loss(a, b, z, targets, weights)
    for _ in range(_MAX_STEPS):
        p = _sigmoid(a * z + b)
        gap, curvature = weights * (p - targets), weights * p * (1.0 - p)
        gradient = np.array([gap @ z, gap.sum()])
        cross = curvature @ z
        hessian = np.array([[curvature @ (z * z), cross], [cross, curvature.sum()]])
        step = np.linalg.solve(hessian + 1e-12 * np.eye(2), gradient)
        size = 1.0
        while (
            new := _logistic_loss(a - size * step[0], b - size * step[1], z, targets, weights)
        ) > (loss) and size > 1e-6:
            size /= 2.0
        a, b, change, loss = a - size * step[0], b - size * step[1], loss - new, new
        if abs(change) < _CONVERGED * max(loss, 1e-12):
            break
    if a <= 0.0:
        mean = float(np.average(targets, weights=weights))
        return 0.0, _log_odds(mean)
    return a / spread, b - a * centre / spread


def _logistic_loss(
    a: float, b: float, z: np.ndarray, targets: np.ndarray, weights: np.ndarray
) -> float:
    logits = a * z + b
    return float(weights @ (np.logaddexp(0.0, logits) - targets * logits))


def _sigmoid(x: Any) -> Any:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def _log_odds(share: float) -> float:
    return math.log(share) - math.log1p(-share)


def _check_share(name: str, value: float) -> None:
    if not 0.0 < value < 1.0:
        raise ValueError(f"{name}={value} is not between 0 and 1, both excluded")


def _check_groups(matching: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    groups = [np.asarray(group, np.float64).ravel() for group in (matching, other)]
    for name, group in zip(("matching", "other"), groups, strict=True):
        if len(group) < 2:
            raise ValueError(
                f"{name} holds {len(group)} cosines; give at least two of pairs that match and two "
                "of pairs that do not, better hundreds"
            )
        if not np.isfinite(group).all():
            raise ValueError(f"{name} holds NaN or infinity; the model or an input is broken")
    return groups[0], groups[1]
