"""How far every estimator is off on columns of tables, and how far the automatic choice is.

Every column is sampled several times at every rate. An error is a q-error, the factor by which an
estimate is too large or too small; estimates lie between the values seen and what the rows not seen
leave room for, as all of the library's do. Beside the estimators stand the automatic choice and the
oracle: for every sample the estimator that happens to be nearest, which nobody can know.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from experiments.common.plots import Axis, Plot, Series
from experiments.ndv.real_columns import Column, draw_sample
from experiments.ndv.settings import BenchmarkConfig
from jaxlab.ndv.choice import Sample, estimate_columns
from jaxlab.ndv.estimators import estimate_many
from jaxlab.ndv.profile import Profile, stack_profiles

AUTO, ORACLE, BEST = "auto", "oracle", "best_single"
METRICS = ("mean", "p50", "p75", "p90", "p95", "p99", "max")
_GROUP = 64  # samples in one array: the longest profile sets the width of all


@dataclasses.dataclass(frozen=True)
class RateErrors:
    """Errors at one sampling rate.

    Attributes:
      rate: the sampling rate.
      columns: the column of every sample.
      q_errors: name of an estimator, or `AUTO` -> the error of every sample.
      bounds: N / n of every sample, which no error of a sensible answer exceeds.
    """

    rate: float
    columns: tuple[Column, ...]
    q_errors: Mapping[str, Float[np.ndarray, " samples"]]
    bounds: Float[np.ndarray, " samples"]

    @property
    def oracle(self) -> Float[np.ndarray, " samples"]:
        """The smallest error of any estimator, sample by sample."""
        singles = [errors for name, errors in self.q_errors.items() if name != AUTO]
        return np.min(singles, axis=0)

    @property
    def num_runaways(self) -> int:
        """Samples on which the automatic choice errs by more than N / n."""
        return int((self.q_errors[AUTO] > self.bounds * (1 + 1e-9)).sum())


def measure_rate(columns: Sequence[Column], rate: float, config: BenchmarkConfig) -> RateErrors:
    """Sample all columns at one rate and estimate by everything.

    Samples depend on the column, the rate and the seed alone, not on what else is measured.

    Args:
      columns: at least one.
      rate: sampling rate.
      config: estimators, number of samples and seed.
    """
    owners, profiles = [], []
    for column in columns:
        name = f"{column.table}.{column.name}".encode()
        rng = np.random.default_rng([config.seed, round(rate * 1e9), *name])
        for _ in range(config.num_seeds):
            owners.append(column)
            profiles.append(draw_sample(column, rate, rng))
    truths = np.array([column.num_distinct for column in owners], np.float64)
    found = _estimate_all(profiles, config.estimators)
    answers = estimate_columns([Sample(profile) for profile in profiles], num_draws=0)
    found[AUTO] = np.array([answer.estimate for answer in answers])
    rows = np.array([float(profile.n) for profile in profiles])
    sizes = np.array([column.num_rows for column in owners], np.float64)
    errors = {name: q_errors(values, truths) for name, values in found.items()}
    return RateErrors(rate, tuple(owners), errors, sizes / np.maximum(rows, 1))


def q_errors(
    estimates: Float[np.ndarray, " samples"], truths: Float[np.ndarray, " samples"]
) -> Float[np.ndarray, " samples"]:
    """`real_columns.q_error` of many: the factor between estimate and truth, at least 1."""
    estimates = np.maximum(estimates, 1.0)
    return np.maximum(estimates / truths, truths / estimates)


def summarize_errors(errors: Float[np.ndarray, " samples"]) -> dict[str, float]:
    """Mean, percentiles and maximum."""
    values = {"mean": float(errors.mean()), "max": float(errors.max())}
    for metric in METRICS[1:-1]:
        values[metric] = float(np.percentile(errors, int(metric[1:])))
    return {metric: values[metric] for metric in METRICS}


def summary(found: RateErrors) -> dict[str, dict[str, float]]:
    """Row heading -> metric -> number: the automatic choice, the oracle, the best single one.

    The best single estimator is chosen for every metric by itself, so no estimator need be as good
    as the whole row. The estimators follow, by their means.
    """
    rows = {name: summarize_errors(errors) for name, errors in found.q_errors.items()}
    singles = {name: row for name, row in rows.items() if name != AUTO}
    best = {metric: min(row[metric] for row in singles.values()) for metric in METRICS}
    ranked = sorted(singles, key=lambda name: singles[name]["mean"])
    head = {AUTO: rows[AUTO], ORACLE: summarize_errors(found.oracle), BEST: best}
    return head | {name: singles[name] for name in ranked}


def flat_results(results: Sequence[RateErrors], report_rate: float) -> dict[str, float]:
    """The numbers for `results.json`: plain keys at the reported rate, all rates in full."""
    flat: dict[str, float] = {}
    for found in results:
        rows = summary(found)
        for name, row in rows.items():
            for metric, value in row.items():
                flat[f"{name}/rate_{found.rate:g}/{metric}_q_error"] = value
        flat[f"{AUTO}/rate_{found.rate:g}/runaways"] = found.num_runaways
        if found.rate == report_rate:
            plain = {
                f"{name}/{metric}_q_error": rows[name][metric]
                for name in (AUTO, BEST, ORACLE) for metric in METRICS
            }  # fmt: skip
            flat = plain | {"columns/number": len(set(map(id, found.columns)))} | flat
    return flat


def plot_rates(results: Sequence[RateErrors], most: int = 5) -> Plot:
    """Mean q-error against sampling rate: automatic choice, oracle, and the best estimators.

    Args:
      results: of all rates.
      most: estimators beside the two, those with the lowest mean at any rate first.
    """
    ordered = sorted(results, key=lambda found: found.rate)
    rates = [found.rate for found in ordered]
    rows = [summary(found) for found in ordered]
    singles = [name for name in rows[0] if name not in (AUTO, ORACLE, BEST)]
    means = {name: [row[name]["mean"] for row in rows] for name in (AUTO, ORACLE, *singles)}
    ranked = sorted(singles, key=lambda name: float(np.prod(means[name])))[:most]
    series = [
        Series("automatic choice", rates, means[AUTO]),
        *(Series(name, rates, means[name]) for name in ranked),
        Series("oracle", rates, means[ORACLE], dashed=True),
    ]
    return Plot(
        series,
        Axis("share of the rows that is sampled", "log", "percent"),
        Axis("mean q-error", "log", low=1.0),
    )


def _estimate_all(
    profiles: Sequence[Profile], names: Sequence[str]
) -> dict[str, Float[np.ndarray, " samples"]]:
    """Estimates of all profiles by name, on the host in float64; profiles of like length together.

    What a group of many short profiles and a long one would waste on padding, sorting saves.
    """
    order = sorted(range(len(profiles)), key=lambda index: len(profiles[index].f))
    values = {name: np.empty(len(profiles)) for name in names}
    for start in range(0, len(order), _GROUP):
        places = order[start : start + _GROUP]
        batch = stack_profiles([profiles[place] for place in places])
        for name, found in estimate_many(batch, names).items():
            values[name][places] = found.value
    return values
