"""What evaluations of many clients come to: means, and how fair they are.

An evaluation gives sums and counts of every client, which add up: `name -> (clients, 2)`. Here they
become the numbers of a report. All are pure functions on the host, in float64.

    simulation = make_simulation(
        ..., splits={"val": val, "test": test},
        summarize=Report(("weighted_avg", "avg", "fairness")),
        is_converged=EarlyStop("val/loss", patience=5),
    )
    state = run_course(simulation.course, simulation.start())
    best_evaluation(state.server.evaluations, "val/loss").metrics["test/fairness/correct_std"]

Names are `split/name` over all examples, `split/avg/name` for the mean over clients,
`split/fairness/name_statistic`, and `split/group_k/name`; clients that never train have the split
`test_unseen`, and the server has `test_server`.

References:
  Li et al. 2020, "Fair Resource Allocation in Federated Learning", arXiv:1905.10497, section 4 and
  appendix (variance, worst and best tenth, angle to all ones, entropy);
  `federatedscope/core/monitors/monitor.py` (`format_eval_res`) of FederatedScope 0.3.0.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Num

from jaxlab.federated.strategy import ConfigError
from jaxlab.federated.tasks import OF_CLIENT

FORMS = ("weighted_avg", "avg", "fairness", "group_avg")
"""Forms of a report: over all examples, over clients, how it is spread, and over groups."""

STATISTICS = (
    "std", "bottom_decile", "top_decile", "min", "max", "bottom10%", "top10%", "cos1", "entropy",
)  # fmt: skip
"""What `fairness` tells."""

SMALLER_IS_BETTER = ("loss", "mse", "rmse", "regularisation")
LARGER_IS_BETTER = (
    "correct", "accuracy", "f1", "roc_auc", "average_precision", "improvement", "hits",
)  # fmt: skip

SERVER_SUFFIX, UNSEEN_SUFFIX = "_server", "_unseen"
"""What the names of splits end with that the server evaluates, or clients that never train."""

ClientSums = Mapping[str, Num[np.ndarray, "*clients two"]]
"""Name -> sums and counts, of every client (clients, 2), or of all together (2,)."""


class Metric(NamedTuple):
    """A metric, of every client or of all together.

    Attributes:
      values: of the metric; NaN where it is not known.
      is_known: whether there is anything that it is of; a model that has diverged is known to be
        NaN.
    """

    values: Float[np.ndarray, "*clients"]
    is_known: Bool[np.ndarray, "*clients"]


def metric_values(sums: ClientSums) -> dict[str, Metric]:
    """Means from sums and counts, and what is derived from them.

    The F1 scores of classes, `f1@3`, become their mean over the classes that occur or are
    predicted, `f1`, and shares of right answers to several questions, `correct@3`, their mean over
    the questions, `correct`. Numbers of clients, such as `roc_auc@client`, lose what their names
    end with. Beside `mse` stands its root, `rmse`.

    Args:
      sums: name -> sums and counts.

    Example:
      >>> sums = {"f1@0": np.array([2.0, 4.0]), "f1@1": np.array([4.0, 4.0])}
      >>> float(metric_values(sums)["f1"].values)
      0.75
    """
    found: dict[str, Metric] = {}
    classes: dict[str, list[np.ndarray]] = {}
    for name, pairs in sums.items():
        total, count = np.moveaxis(np.asarray(pairs, np.float64), -1, 0)
        mean = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
        prefix, slash, last = name.rpartition("/")
        base = last.partition("@")[0]
        if last.startswith(("f1@", "correct@")):
            classes.setdefault(f"{prefix}{slash}{base}", []).append(mean)
            continue
        found[name.removesuffix(OF_CLIENT)] = Metric(mean, count > 0)
        if last == "mse":
            found[f"{prefix}{slash}rmse"] = Metric(np.sqrt(mean), count > 0)
    for name, scores in classes.items():
        mean = _mean_without_nan(np.stack(scores))
        found[name] = Metric(mean, ~np.isnan(mean))
    return found


def fairness(values: Float[np.ndarray, " clients"]) -> dict[str, float | None]:
    """How a metric is spread over clients.

    Args:
      values: of every client.

    Returns:
      `std` (over the population), the values at a tenth and at nine tenths of the sorted clients
      (`bottom_decile`, `top_decile`), `min`, `max`, the means of the lowest and of the highest
      tenth (`bottom10%`, None with fewer than ten clients; `top10%`), the cosine between the values
      and all ones (`cos1`) and the entropy of their shares, in nats (`entropy`); the last two are
      1 and log n where all clients are equal, and None where they have no meaning (nothing but
      zeros; for shares also negative values).

    Raises:
      ValueError: if there are no values, or one is not finite.

    Example:
      >>> found = fairness(np.arange(1, 21) / 20)
      >>> [round(found[name], 7) for name in ("std", "bottom10%", "cos1", "entropy")]
      [0.2883141, 0.075, 0.8765231, 2.8251924]
    """
    x = np.sort(np.asarray(values, np.float64))
    n = x.size
    if not n or not np.isfinite(x).all():
        raise ValueError(
            f"{int((~np.isfinite(x)).sum())} of {n} values are not finite; wanted the metric of at "
            "least one client, and numbers"
        )
    square, total = np.mean(x**2), x.sum()
    shares = x / total if total > 0 and x[0] >= 0 else None
    return {
        "std": float(np.std(x)),
        "bottom_decile": float(x[n // 10]),
        "top_decile": float(x[9 * n // 10]),
        "min": float(x[0]),
        "max": float(x[-1]),
        "bottom10%": float(x[: n // 10].mean()) if n >= 10 else None,
        "top10%": float(x[9 * n // 10 :].mean()),
        "cos1": float(x.mean() / math.sqrt(square)) if square > 0 else None,
        "entropy": None if shares is None else _entropy(shares),
    }


def group_means(values: Float[np.ndarray, " clients"], sizes: Sequence[int]) -> dict[int, float]:
    """Means over groups of consecutive clients, such as those of one data set of several.

    Args:
      values: of every client, in order; NaN leaves a client out.
      sizes: clients of each group; the last ones may be missing.

    Returns:
      Number of the group, from 1 -> mean; groups without a value are left out.

    Raises:
      ConfigError: (a ValueError) if there are more clients than the groups have.

    Example:
      >>> group_means(np.array([1.0, 2.0, 3.0, 5.0]), [2, 2])
      {1: 1.5, 2: 4.0}
    """
    if len(values) > sum(sizes):
        raise ConfigError(
            f"{len(values)} clients in groups of {list(sizes)}, {sum(sizes)} in all; give every "
            "client a group"
        )
    found = np.split(np.asarray(values, np.float64), np.cumsum(sizes)[:-1])
    means = {number: _mean_without_nan(group) for number, group in enumerate(found, 1)}
    return {number: float(mean) for number, mean in means.items() if np.isfinite(mean)}


@dataclasses.dataclass(frozen=True)
class Report:
    """What evaluations report, the `summarize` of a simulation.

    A number that has no meaning, such as the mean of no examples, is left out.

    Attributes:
      forms: of `FORMS`. `weighted_avg` is over the examples of all clients as one set, which for
        means is the mean of clients weighted by their examples; `avg` counts clients equally.
      group_sizes: of the form `group_avg`, see `group_means`; not for clients that never train.
      keep_raw: called with the split and name -> value of every client (NaN for one without
        examples) at every evaluation, for files of what each client has.
      base: what `improvement` is measured from, beside `mse` and `correct`, see `improvement`; None
        leaves it out.
    """

    forms: tuple[str, ...] = ("weighted_avg", "avg", "fairness")
    group_sizes: tuple[int, ...] = ()
    keep_raw: Callable[[str, dict[str, np.ndarray]], None] | None = None
    base: float | None = None

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
          ConfigError: (a ValueError) if there is no such form, no group sizes for `group_avg`, or
            the base is not positive.
        """
        if not self.forms or not set(self.forms) <= set(FORMS):
            raise ConfigError(f"Report: forms={self.forms} must be some of {', '.join(FORMS)}")
        if "group_avg" in self.forms and not self.group_sizes:
            raise ConfigError("Report: the form group_avg needs group_sizes, clients of each group")
        if self.base is not None:
            improvement(0.0, self.base)

    def __call__(self, split: str, sums: ClientSums) -> dict[str, float]:
        """The metrics of an evaluation.

        Args:
          split: name of the examples.
          sums: name -> (clients, 2), sums and counts.
        """
        if split.endswith(SERVER_SUFFIX):
            return self._over_examples(split, sums)
        rows = self._improved(metric_values(sums))
        if self.keep_raw is not None:
            self.keep_raw(split, {name: metric.values for name, metric in rows.items()})
        found = self._over_examples(split, sums) if "weighted_avg" in self.forms else {}
        for name, metric in rows.items():
            found |= self._over_clients(split, name, metric)
        return found

    def _over_examples(self, split: str, sums: ClientSums) -> dict[str, float]:
        return _named(split, self._improved(_mean_values(sums)))

    def _improved(self, metrics: dict[str, Metric]) -> dict[str, Metric]:
        """With `improvement` beside mean squared errors and shares of right answers."""
        found, base = dict(metrics), self.base
        for name, (values, known) in metrics.items():
            prefix, slash, last = name.rpartition("/")
            if base is not None and last in ("mse", "correct"):
                errors = values if last == "mse" else 1.0 - values
                better = np.asarray(improvement(errors, base))
                found[f"{prefix}{slash}improvement"] = Metric(better, known)
        return found

    def _over_clients(self, split: str, name: str, metric: Metric) -> dict[str, float]:
        own, found = metric.values[metric.is_known], {}
        if "avg" in self.forms and own.size:
            found[f"{split}/avg/{name}"] = float(own.mean())
        if "fairness" in self.forms and own.size > 1 and np.isfinite(own).all():
            spread = fairness(own).items()
            found |= {f"{split}/fairness/{name}_{k}": v for k, v in spread if v is not None}
        if "group_avg" in self.forms and not split.endswith(UNSEEN_SUFFIX):
            means = group_means(metric.values, self.group_sizes).items()
            found |= {f"{split}/group_{number}/{name}": mean for number, mean in means}
        return found


def mean_metrics(split: str, sums: ClientSums) -> dict[str, float]:
    """Metrics over the examples of all clients as one set, `split/name`; without examples none.

    Args:
      split: name of the examples.
      sums: name -> (clients, 2), sums and counts.
    """
    return _named(split, _mean_values(sums))


def _mean_values(sums: ClientSums) -> dict[str, Metric]:
    totals = {name: np.asarray(pairs, np.float64).sum(axis=0) for name, pairs in sums.items()}
    return metric_values(totals)


def _named(split: str, metrics: Mapping[str, Metric]) -> dict[str, float]:
    return {f"{split}/{name}": float(value) for name, (value, known) in metrics.items() if known}


def is_larger_better(metric: str) -> bool:
    """Whether a metric is better where it is larger, by its name.

    Spread (`_std`) is better where it is smaller, `_cos1` and `_entropy`, which are largest where
    clients are equal, where they are larger; other statistics are as their metric.

    Raises:
      ConfigError: (a ValueError) if the name tells nothing.

    Example:
      >>> is_larger_better("test/global/correct"), is_larger_better("test/fairness/correct_std")
      (True, False)
    """
    last = metric.rpartition("/")[2]
    for statistic in STATISTICS:
        if last.endswith(f"_{statistic}"):
            if statistic in ("std", "cos1", "entropy"):
                return statistic != "std"
            last = last.removesuffix(f"_{statistic}")
            break
    base = last.partition("@")[0]
    if base in SMALLER_IS_BETTER or base in LARGER_IS_BETTER:
        return base in LARGER_IS_BETTER
    raise ConfigError(
        f"whether {metric!r} is better where it is larger is not known; say so with "
        f"larger_is_better. Known are {', '.join(SMALLER_IS_BETTER + LARGER_IS_BETTER)}"
    )


def improvement(
    value: Float[np.ndarray, "..."] | float, base: float
) -> Float[np.ndarray, "..."] | float:
    """By how many percent a number that should be small is below a base: `(base - x) / base`.

    Args:
      value: such as a mean squared error, or one minus an accuracy.
      base: what is reached without learning, positive.

    Raises:
      ConfigError: (a ValueError) if the base is not positive.

    Example:
      >>> improvement(0.25, 0.5)
      50.0
    """
    if not base > 0:
        raise ConfigError(f"base={base} must be positive: the improvement is a share of it")
    return (base - value) / base * 100.0


def check_metric(metric: str, available: Iterable[str]) -> None:
    """Looks whether a metric is among those of an evaluation.

    Raises:
      ConfigError: (a ValueError) listing those that there are.
    """
    names = sorted(available)
    if metric not in names:
        raise ConfigError(
            f"the metric {metric!r} is not among those of an evaluation: "
            f"{', '.join(names) or 'there are none'}. Name one of them, or give the examples of "
            f"its split, splits={{{metric.partition('/')[0]!r}: ...}}"
        )


def _entropy(shares: Float[np.ndarray, " clients"]) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum())


def _mean_without_nan(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is a number; NaN where nothing is."""
    known = ~np.isnan(values)
    total, count = np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)
