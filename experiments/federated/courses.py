"""One course of a run: simulated with progress, checkpoints and a log, and what comes out of it.

A course has a folder of its own in the folder of the run: `metrics.jsonl` and TensorBoard (a record
an evaluation, with nothing in it that depends on the clock), `checkpoints/`, and at the end
`model.safetensors`, `clients.csv` (every client's own numbers) and `course.json`, with which a run
that is started again passes it over.
"""

import csv
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from experiments.federated.progress import CourseProgress
from experiments.federated.settings import EarlyStopConfig, RunConfig
from experiments.federated.tasks import MODEL, Plan, Problem, make_simulation, save_variables
from jaxlab.federated import ConfigError, CourseState, Evaluation, run_course
from jaxlab.training.metric_log import MetricLog
from jaxlab.training.workdir import read_json, write_json

logger = logging.getLogger(__name__)

COURSE, CLIENTS = "course.json", "clients.csv"
UNSEEN = "_unseen"
_SHOWN = {"correct": "accuracy"}  # names of sums -> names of their means


class Point(NamedTuple):
    """An evaluation, as `course.json` has it.

    Attributes:
      round: aggregations before it.
      virtual_seconds: time of the model.
      metrics: names and numbers.
    """

    round: int
    virtual_seconds: float
    metrics: dict[str, float]


class Outcome(NamedTuple):
    """What a course came to.

    Attributes:
      name: of the course.
      points: its evaluations.
      counts: what `Simulation.report` tells.
      num_timed: clients whose update was aggregated in the second half of the rounds, when programs
        are compiled.
      seconds: that these rounds took.
    """

    name: str
    points: list[Point]
    counts: dict[str, float]
    num_timed: int
    seconds: float

    @property
    def final(self) -> dict[str, float]:
        """Metrics of the last model."""
        return self.points[-1].metrics

    def reached(self, metric: str, target: float) -> Point | None:
        """The first evaluation at which a metric is as good as a target; None if none is."""
        for point in self.points:
            if metric in point.metrics and is_reached(metric, point.metrics[metric], target):
                return point
        return None


def is_loss(metric: str) -> bool:
    """Whether a metric is better where it is smaller."""
    return metric.rpartition("/")[2] == "loss"


def is_reached(metric: str, value: float, target: float) -> bool:
    """Whether a metric is as good as a target."""
    return value <= target if is_loss(metric) else value >= target


class ClientNumbers:
    """Turns the sums of all clients into metrics, and keeps what every client had by itself.

    Attributes:
      rows: split -> name -> (clients, 2), sums and counts of the last evaluation.
    """

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, np.ndarray]] = {}

    def summarize(self, split: str, sums: dict[str, np.ndarray]) -> dict[str, float]:
        """Means over all examples: `test/accuracy`, `test/loss`, `test/global/accuracy` ..."""
        named = {shown_name(name): np.asarray(value, np.float64) for name, value in sums.items()}
        self.rows[split] = named
        totals = {name: value.sum(axis=0) for name, value in named.items()}
        return {f"{split}/{name}": s / n for name, (s, n) in totals.items() if n > 0}


def shown_name(name: str) -> str:
    """The name under which the mean of a sum is shown, `global/accuracy` for `global/correct`."""
    prefix, slash, last = name.rpartition("/")
    return f"{prefix}{slash}{_SHOWN.get(last, last)}"


def watched_metric(config: RunConfig, problem: Problem) -> str:
    """The metric that targets and early stopping look at.

    Args:
      config: the settings of the run.
      problem: tells whether there is an accuracy.

    Raises:
      ConfigError: (a ValueError) if no evaluation has the metric, listing those that it has.
    """
    score = "loss" if problem.data.info.num_classes is None else "accuracy"
    given, split = config.evaluation.metric, config.evaluation.splits[-1]
    if given == "auto":
        return f"{split}/{score}"
    known = [
        f"{s}/{name}" for s in config.evaluation.splits for name in dict.fromkeys((score, "loss"))
    ]
    if (
        given.replace("_unseen/", "/").replace("/global/", "/").replace("/untuned/", "/")
        not in known
    ):
        raise ConfigError(
            f"evaluation.metric={given!r} is not measured; there are {', '.join(known)}, and those "
            "of other models and of unseen clients"
        )
    return given


def make_is_converged(config: RunConfig, metric: str) -> Callable[[Sequence[Evaluation]], bool]:
    """Whether a course ends early.

    Args:
      config: the settings of the run.
      metric: what is looked at.
    """
    given, sign = config.early_stop, -1.0 if is_loss(metric) else 1.0

    def is_converged(evaluations: Sequence[Evaluation]) -> bool:
        values = [e.metrics[metric] for e in evaluations if metric in e.metrics]
        if given.at_target and values and is_reached(metric, values[-1], config.evaluation.target):
            return True
        return bool(given.patience) and has_stalled([sign * value for value in values], given)

    return is_converged


def has_stalled(values: Sequence[float], given: EarlyStopConfig) -> bool:
    """Whether values, of which larger ones are better, have stopped improving.

    Args:
      values: in order.
      given: patience and what counts as an improvement.
    """
    before = values[: -given.patience]
    if not before:
        return False
    if given.mode == "mean":
        previous = values[-given.patience - 1 : -1]
        return values[-1] <= sum(previous) / len(previous) + given.delta
    best, without = -math.inf, 0
    for value in values:
        best, without = (value, 0) if value > best + given.delta else (best, without + 1)
    return without >= given.patience


def play(
    config: RunConfig, problem: Problem, plan: Plan, folder: Path, mesh: Mesh, width: int
) -> Outcome:
    """Simulates a course, or reads what came out of it before.

    Args:
      config: the settings of the run.
      problem: what its courses share.
      plan: the course.
      folder: of the course.
      mesh: the devices.
      width: clients of a device that are computed at once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (done := read_outcome(folder)) is not None:
        logger.info("%s: the course in %s has ended and is not run again", plan.name, folder)
        return done
    metric = watched_metric(config, problem)
    numbers = ClientNumbers()
    simulation = make_simulation(
        problem, plan, mesh, width=width, summarize=numbers.summarize,
        is_converged=make_is_converged(config, metric),
    )  # fmt: skip
    state = simulation.start()
    with (
        MetricLog(folder, state.server.round) as log,
        CourseProgress(plan.name, plan.config.num_rounds, state, metric) as progress,
    ):
        logged = len(state.server.evaluations)

        def on_round(state: CourseState) -> None:
            nonlocal logged
            progress.update(state)
            for evaluation in state.server.evaluations[logged:]:
                seconds = {"virtual_seconds": evaluation.time_us / 1e6}
                log.write(evaluation.round, {**seconds, **evaluation.metrics})
            logged = len(state.server.evaluations)

        state = run_course(simulation.course, state, on_round=on_round)
    num_models = config.algorithm.num_models if config.algorithm.name == "fed_em" else 0
    save_variables(
        folder / MODEL, problem.module, problem.example, simulation.variables(state), num_models
    )
    write_clients(folder / CLIENTS, problem, plan, numbers)
    outcome = Outcome(
        plan.name,
        [Point(e.round, e.time_us / 1e6, dict(e.metrics)) for e in state.server.evaluations],
        simulation.report(state),
        *progress.timed,
    )
    write_json(
        folder / COURSE, outcome._asdict() | {"points": [p._asdict() for p in outcome.points]}
    )
    return outcome


def read_outcome(folder: Path) -> Outcome | None:
    """What came out of a course that has ended; None if it has not."""
    found: dict[str, Any] | None = read_json(folder / COURSE)
    if found is None:
        return None
    found["points"] = [Point(**point) for point in found["points"]]
    return Outcome(**found)


def write_clients(path: Path, problem: Problem, plan: Plan, numbers: ClientNumbers) -> None:
    """Writes a line for every client and split: examples, and the means of its own numbers.

    Args:
      path: a CSV file.
      problem: names the clients.
      plan: tells who never trains.
      numbers: of the last evaluation.
    """
    names = list(dict.fromkeys(name for rows in numbers.rows.values() for name in rows))
    seen = plan.config.num_clients - plan.config.num_unseen
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["client", "split", "examples", *names])
        for split, rows in numbers.rows.items():
            first = seen if split.endswith(UNSEEN) else 0
            for place in range(len(next(iter(rows.values())))):
                sums = {name: value[place] for name, value in rows.items()}
                count = int(max(n for _, n in sums.values()))
                means = [_mean(*sums[name]) if name in sums else "" for name in names]
                writer.writerow([problem.data.names[first + place], split, count, *means])


def _mean(total: float, count: float) -> str:
    return f"{total / count:.6g}" if count else ""
