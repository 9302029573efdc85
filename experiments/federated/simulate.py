"""Simulate a federated course on virtual time, and perhaps a second one beside it.

    python -m experiments.federated.simulate --config=configs/federated/tiny.py --workdir=DIR

DIR gets a folder a course, `sync` or `async`, and a baseline, `local` or `global` (see `courses`),
`accuracy.png` with the accuracy against virtual time, `results.json` with the numbers that matter
and `report.json` with all of them. Run again, it goes on where it was.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from experiments.common import print_grid, print_results, run
from experiments.common.axes import Axis
from experiments.common.pictures import save_png
from experiments.common.plots import Plot, Series, draw_plots
from experiments.federated.cores import start_devices
from experiments.federated.courses import Outcome, metric_of, play
from experiments.federated.learned import num_outputs
from experiments.federated.metrics import baseline_metric
from experiments.federated.settings import RunConfig
from experiments.federated.tables import print_spread, scores, shown_numbers, transposed
from experiments.federated.tasks import Problem, make_problem, plan_run
from jaxlab import training
from jaxlab.training.workdir import check_config, open_workdir, save_config, write_json

logger = logging.getLogger(__name__)

PICTURE, REPORT = "accuracy.png", "report.json"


def main(config: RunConfig, workdir: Path) -> None:
    """Load, simulate, report."""
    started = time.monotonic()
    logging.getLogger("jaxlab.federated.server").setLevel(logging.WARNING)  # every failed client
    mesh = start_devices()
    workdir = open_workdir(workdir)
    with training.lock_workdir(workdir):
        check_config(workdir, config)
        problem = make_problem(config)
        plans = plan_run(config, problem)
        metric = metric_of(config, problem, "course")
        save_config(workdir, config)
        describe(problem)
        outcomes = [play(config, problem, plan, workdir / plan.name, mesh) for plan in plans]
        split = len(plans) - len(config.baselines)
        report(config, outcomes[:split], outcomes[split:], metric, workdir)
    print(f"Results: {workdir / 'results.json'}, {time.monotonic() - started:.0f} s")


def describe(problem: Problem) -> None:
    """Says what is learned, and what the clients hold."""
    data, classes = problem.data, problem.data.info.num_classes
    sizes = [int(size) for size in data.train.sizes]
    numbers = num_outputs(data)
    learned = f"classification with {classes} classes"
    if classes is None:
        learned = f"regression of {numbers} {'numbers' if numbers > 1 else 'number'}"
    logger.info(
        "%s (%s): %s; %d clients train on %d to %d examples, %d in all; they test on %d",
        data.info.name, data.info.source, learned, data.num_clients, min(sizes), max(sizes),
        sum(sizes), int(data.test.sizes.sum()),
    )  # fmt: skip
    if empty := sizes.count(0):
        logger.warning("%d clients have no training examples and are never asked", empty)


def report(
    config: RunConfig,
    outcomes: Sequence[Outcome],
    baselines: Sequence[Outcome],
    metric: str,
    workdir: Path,
) -> None:
    """Writes and prints what came out.

    Args:
      config: the settings of the run.
      outcomes: of its courses, the main one last.
      baselines: what they are compared with.
      metric: what is compared.
      workdir: folder of the run.
    """
    results = headline(config, outcomes, baselines, metric)
    write_json(workdir / training.workdir.RESULTS, results)
    metrics = dict.fromkeys((each.name for each in outcomes), metric)
    metrics |= dict.fromkeys((each.name for each in baselines), baseline_metric(metric))
    everything = [*outcomes, *baselines]
    details = {each.name: all_numbers(each, metrics[each.name]) for each in everything}
    write_json(workdir / REPORT, details)
    shown = {name: shown_numbers(found, metrics[name]) for name, found in details.items()}
    print_grid(transposed(shown), title=f"Courses; the best round by {metric}")
    for outcome in everything:
        if outcome.name != "global":  # which has no clients to differ
            print_spread(outcome.final, f"{outcome.name} over its clients")
    print_results(
        {name: value for name, value in results.items() if value is not None},
        title=f"Results of {outcomes[-1].name}",
    )
    save_png(workdir / PICTURE, draw_course(config, outcomes, baselines, metric))
    print(f"Picture: {workdir / PICTURE}")


def all_numbers(outcome: Outcome, metric: str) -> dict[str, float]:
    """Everything that is known of a course.

    Args:
      outcome: what it came to.
      metric: what tells the best round.
    """
    best = outcome.best(metric)
    return {
        **outcome.final,
        **outcome.counts,
        "clients_per_second": speed(outcome),
        "best/round": best.round,
        **{f"best/{name}": value for name, value in best.metrics.items()},
    }


def headline(
    config: RunConfig, outcomes: Sequence[Outcome], baselines: Sequence[Outcome], metric: str
) -> dict[str, float | None]:
    """The numbers of `results.json`: scores and speed of the main course, times to the target.

    Args:
      config: the settings of the run.
      outcomes: of its courses, the main one last.
      baselines: whose scores have their names before them.
      metric: what is compared.
    """
    results: dict[str, float | None] = dict(scores(outcomes[-1].final))
    for outcome in baselines:
        found = scores(outcome.final)
        results |= {f"{outcome.name}/{name}": value for name, value in found.items()}
    if config.evaluation.target:
        for outcome in outcomes:
            point = outcome.reached(metric, config.evaluation.target)
            unit = "virtual_seconds" if config.devices.kind != "none" else "rounds"
            name = f"{outcome.name}/{unit}_to_target"
            results[name] = None
            if point is not None:
                results[name] = point.virtual_seconds if unit != "rounds" else point.round
            else:
                logger.warning(
                    "%s: %s did not come to the target %g", outcome.name, metric,
                    config.evaluation.target,
                )  # fmt: skip
    results["clients_per_second"] = speed(outcomes[-1])
    return results


def speed(outcome: Outcome) -> float:
    """Updates a second, of the second half of a course."""
    return outcome.num_timed / outcome.seconds if outcome.seconds else 0.0


def draw_course(
    config: RunConfig, outcomes: Sequence[Outcome], baselines: Sequence[Outcome], metric: str
) -> Image.Image:
    """A metric against virtual time, or against rounds where answers take none.

    Args:
      config: the settings of the run.
      outcomes: of its courses.
      baselines: whose last number is a line: they have no virtual time, and rounds of their own.
      metric: what is drawn.
    """
    timed = config.devices.kind != "none"
    series = []
    for outcome in outcomes:
        points = [point for point in outcome.points if metric in point.metrics]
        x = [point.virtual_seconds if timed else point.round for point in points]
        y = [point.metrics[metric] for point in points]
        series.append(Series(outcome.name, x, y, markers=len(points) < 40))
    levels = {each.name: each.final.get(baseline_metric(metric)) for each in baselines}
    levels |= {"target": config.evaluation.target or None}
    ends = [0.0, max(max(each.x) for each in series)]
    series += [
        Series(name, ends, [level] * 2, markers=False, dashed=True)
        for name, level in levels.items()
        if level is not None
    ]
    axis = Axis("virtual time", kind="seconds") if timed else Axis("round")
    kind = "percent" if metric.endswith("/accuracy") else "number"
    plot = Plot(series, axis, Axis(metric, kind=kind))
    return draw_plots([plot], title=f"{config.algorithm.name} on {config.data.name}")


if __name__ == "__main__":
    run(main)
