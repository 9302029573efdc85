"""One course of a run: simulated with progress, checkpoints and a log, and what comes out of it.

A course, or a baseline, has a folder of its own in the folder of the run: `metrics.jsonl` and
TensorBoard (a record an evaluation, with nothing in it that depends on the clock), `checkpoints/`,
and at the end `model.safetensors` (not of clients that train alone), `clients.csv` (every client's
own numbers) and `course.json`, with which a run that is started again passes it over.
"""

import csv
import logging
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from experiments.federated.learned import MODEL, save_variables
from experiments.federated.metrics import (
    ClientNumbers,
    baseline_metric,
    is_reached,
    watched_metric,
)
from experiments.federated.progress import CourseProgress
from experiments.federated.settings import RunConfig
from experiments.federated.tasks import Plan, Problem, make_simulation
from jaxlab import training
from jaxlab.federated import (
    CourseState,
    EarlyStop,
    Evaluation,
    Simulation,
    is_larger_better,
    run_course,
)
from jaxlab.federated.checkpoint import has_checkpoint, restore_course, save_course
from jaxlab.federated.monitoring import UNSEEN_SUFFIX
from jaxlab.federated.width import AUTO
from jaxlab.training.metric_log import MetricLog
from jaxlab.training.stopping import StopSignals
from jaxlab.training.workdir import read_json, write_json

logger = logging.getLogger(__name__)

COURSE, CLIENTS, CHECKPOINTS = "course.json", "clients.csv", "checkpoints"


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
      counts: what `counts_of` tells.
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

    def best(self, metric: str) -> Point:
        """The first evaluation at which a metric is best; the last one if it is never finite."""
        sign = 1.0 if is_larger_better(metric) else -1.0
        finite = [p for p in self.points if math.isfinite(p.metrics.get(metric, math.nan))]
        return max(finite, key=lambda p: sign * p.metrics[metric], default=self.points[-1])


def make_is_converged(config: RunConfig, metric: str) -> Callable[[Sequence[Evaluation]], bool]:
    """Whether a course ends early.

    Args:
      config: the settings of the run.
      metric: what is looked at.
    """
    given = config.early_stop
    stop = EarlyStop(metric, given.patience, given.delta, given.mode)

    def is_converged(evaluations: Sequence[Evaluation]) -> bool:
        value = evaluations[-1].metrics.get(metric, math.nan)
        if given.at_target and is_reached(metric, value, config.evaluation.target):
            return True
        return stop(evaluations)

    return is_converged


def metric_of(config: RunConfig, problem: Problem, kind: str) -> str:
    """The metric that is watched of a course or of a baseline.

    Args:
      config: the settings of the run.
      problem: what its courses share.
      kind: of the plan.
    """
    metric = watched_metric(config, problem.data.info.num_classes, problem.scores)
    return metric if kind == "course" else baseline_metric(metric)


def play(config: RunConfig, problem: Problem, plan: Plan, folder: Path, mesh: Mesh) -> Outcome:
    """Simulates a course, or reads what came out of it before.

    Args:
      config: the settings of the run.
      problem: what its courses share.
      plan: the course.
      folder: of the course.
      mesh: the devices.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (done := read_outcome(folder)) is not None:
        logger.info("%s: the course in %s has ended and is not run again", plan.name, folder)
        return done
    metric = metric_of(config, problem, plan.kind)
    numbers = ClientNumbers(config.evaluation.report)
    simulation = make_simulation(
        problem, plan, mesh, width=config.width or AUTO, summarize=numbers.summarize,
        is_converged=make_is_converged(config, metric),
    )  # fmt: skip
    state = restore(simulation, folder)
    if state is None:
        state = simulation.start()
    else:
        logger.info("%s: going on after round %d", plan.name, state.server.round)
    evaluations = state.server.evaluations
    with (
        StopSignals() as signals,
        MetricLog(folder, evaluations[-1].round if evaluations else 0) as log,
        CourseProgress(plan.name, plan.config.num_rounds, state, metric) as progress,
    ):
        logged, saved = len(evaluations), state.server.round

        def on_round(state: CourseState) -> None:
            nonlocal logged, saved
            progress.update(state)
            for evaluation in state.server.evaluations[logged:]:
                seconds = {"virtual_seconds": evaluation.time_us / 1e6}
                log.write(evaluation.round, {**seconds, **evaluation.metrics})
            logged = len(state.server.evaluations)
            if state.server.evaluating:  # what clients keep should not change on the way
                return
            number, every = state.server.round, config.save_every_rounds
            if signals.requested or (every and number >= saved + every):
                save_course(folder / CHECKPOINTS, simulation, state)
                saved = number
                progress.pause()
            if signals.requested:
                interrupted = training.TrainingInterrupted(number, str(folder.parent))
                progress.say(f"{plan.name}: {interrupted}")
                raise interrupted

        state = run_course(simulation.course, state, on_round=on_round)
        progress.finish(state)
    save_course(folder / CHECKPOINTS, simulation, state)
    if not numbers.values:  # the last evaluation was before the checkpoint that this went on from
        evaluate_clients(simulation, state, plan, numbers)
    if plan.kind != "local":  # whose models are those of the clients, in the checkpoint
        num_models = config.algorithm.num_mixed if plan.kind == "course" else 0
        if plan.algorithm.for_client is not None:  # one of every client
            num_models = plan.config.num_clients
        variables = simulation.variables(state)
        save_variables(folder / MODEL, problem.module, problem.example, variables, num_models)
    write_clients(folder / CLIENTS, plan, numbers)
    outcome = Outcome(
        plan.name,
        [Point(e.round, e.time_us / 1e6, dict(e.metrics)) for e in state.server.evaluations],
        counts_of(simulation, state, plan),
        *progress.timed,
    )
    write_json(
        folder / COURSE, outcome._asdict() | {"points": [p._asdict() for p in outcome.points]}
    )
    return outcome


def counts_of(simulation: Simulation, state: CourseState, plan: Plan) -> dict[str, float]:
    """What a simulation tells of a course; not of time and bytes where nobody sends anything.

    Args:
      simulation: the course.
      state: where it stands.
      plan: tells whether it is a baseline.
    """
    counts = simulation.report(state)
    if plan.kind == "course":
        return counts
    return {name: n for name, n in counts.items() if not re.search("bytes|bits|virtual", name)}


def read_outcome(folder: Path) -> Outcome | None:
    """What came out of a course that has ended; None if it has not."""
    found: dict[str, Any] | None = read_json(folder / COURSE)
    if found is None:
        return None
    found["points"] = [Point(**point) for point in found["points"]]
    return Outcome(**found)


def write_clients(path: Path, plan: Plan, numbers: ClientNumbers) -> None:
    """Writes a line for every client and split: examples, and its own metrics.

    Args:
      path: a CSV file.
      plan: names the clients, and tells who never trains.
      numbers: of the last evaluation.
    """
    names = list(dict.fromkeys(name for rows in numbers.values.values() for name in rows))
    seen = plan.config.num_clients - plan.config.num_unseen
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["client", "split", "examples", *names])
        for split, rows in numbers.values.items():
            is_whole = split in plan.splits
            first = 0 if is_whole else seen
            sizes = plan.splits[split if is_whole else split.removesuffix(UNSEEN_SUFFIX)].sizes
            for place, values in enumerate(zip(*(rows[name] for name in names), strict=True)):
                client = first + place
                shown = ["" if math.isnan(value) else f"{value:.6g}" for value in values]
                writer.writerow([plan.clients[client], split, int(sizes[client]), *shown])


def restore(simulation: Simulation, folder: Path) -> CourseState | None:
    """The state that a course was saved in last; None if it was not.

    Args:
      simulation: the course.
      folder: its folder.
    """
    saved = folder / CHECKPOINTS
    return restore_course(saved, simulation) if has_checkpoint(saved) else None


def evaluate_clients(
    simulation: Simulation, state: CourseState, plan: Plan, numbers: ClientNumbers
) -> dict[str, float]:
    """Metrics of all clients with the models that they would use now.

    Args:
      simulation: the course.
      state: where it stands.
      plan: tells who never trains.
      numbers: gets what every client has by itself.
    """
    seen = plan.config.num_clients - plan.config.num_unseen
    metrics: dict[str, float] = {}
    for split, sums in simulation.evaluate(state).items():
        for name, part in (
            (split, slice(None, seen)),
            (f"{split}{UNSEEN_SUFFIX}", slice(seen, None)),
        ):
            # Alone, a client that never trains has the model that it started from.
            if name == split or (plan.config.num_unseen and plan.kind != "local"):
                metrics |= numbers.summarize(name, {key: rows[part] for key, rows in sums.items()})
    return metrics
