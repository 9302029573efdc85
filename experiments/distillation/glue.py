"""Average the tasks of GLUE over the runs of a folder, in both conventions.

    python -m experiments.distillation.evaluate --workdir=RUNS/rte
    python -m experiments.distillation.evaluate --workdir=RUNS/mnli
    python -m experiments.distillation.glue --workdir=RUNS

Reads `evaluation.json` of every folder in RUNS, prints a line a task and writes `glue.json`. Of
several runs of a task (seeds) the median of each metric counts. The leaderboard's average takes the
mean of a task's metrics and of both parts of MNLI; that of most papers takes the first metric and
the matched part. Both are of the tasks that are there, and the others are named.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import print_grid, run
from experiments.distillation.scores import NUMBERS
from jaxlab.data.texts import GLUE
from jaxlab.metrics import GLUE_METRICS, glue_average
from jaxlab.training.workdir import read_json, write_json

logger = logging.getLogger(__name__)

AVERAGES = "glue.json"
CONVENTIONS = {
    "leaderboard": "mean of a task's metrics",
    "papers": "first metric of a task, MNLI matched",
}


def main(workdir: Path) -> None:
    """Collect, average, report."""
    results = read_evaluations(workdir)
    tasks = medians(results)
    averages = {name: glue_average(tasks, name) for name in CONVENTIONS}
    missing = [name for name in GLUE_METRICS if name not in tasks]
    runs = {name: len(found) for name, found in results.items()}
    write_json(workdir / AVERAGES, {**averages, "tasks": tasks, "runs": runs, "missing": missing})
    print_grid(
        {name: {**scores, "runs": runs[name]} for name, scores in tasks.items()},
        title=f"{workdir}: GLUE, validation",
    )
    for name, meaning in CONVENTIONS.items():
        print(f"Average, {name} ({meaning}): {averages[name]:.4f}")
    if missing:
        print(f"Of {', '.join(tasks)}; there is no run of {', '.join(missing)}")


def read_evaluations(workdir: Path) -> dict[str, list[dict[str, float]]]:
    """The metrics of every run of a task of GLUE, MNLI's parts apart.

    Args:
      workdir: folder of the runs' folders.

    Raises:
      FileNotFoundError: if there is no evaluation of a task of GLUE.
      ValueError: naming the evaluations that lack a metric, such as those of another part.
    """
    found: dict[str, list[dict[str, float]]] = {}
    problems = []
    for path in sorted(workdir.glob(f"*/{NUMBERS}")):
        results = read_json(path) or {}
        if results.get("data") not in GLUE:
            logger.info("%s is of no task of GLUE: left out", path)
            continue
        scores = scores_of(results)
        for task, metrics in scores.items():
            found.setdefault(task, []).append(metrics)
        lacking = [
            task for task, metrics in scores.items() if len(metrics) < len(GLUE_METRICS[task])
        ]
        if results.get("part") != "validation" or lacking:
            problems.append(f"{path} (part {results.get('part')})")
    if problems:
        raise ValueError(
            f"{', '.join(problems)}: wanted all metrics of the validation set; run "
            "experiments.distillation.evaluate there without --part"
        )
    if not found:
        raise FileNotFoundError(
            f"--workdir={workdir} has no folder with {NUMBERS} of a task of GLUE; give the folder "
            "of the runs, after experiments.distillation.evaluate has scored each"
        )
    return {task: found[task] for task in GLUE_METRICS if task in found}


def scores_of(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The tasks and metrics of an evaluation.

    Args:
      results: as `evaluation.json` has them.
    """
    prefixes = {results["data"]: ""}
    if results["data"] == "mnli":
        prefixes["mnli_mismatched"] = "mismatched/"
    return {
        task: {
            name: float(results[prefix + name])
            for name in GLUE_METRICS[task]
            if results.get(prefix + name) is not None
        }
        for task, prefix in prefixes.items()
    }


def medians(
    results: Mapping[str, Iterable[Mapping[str, float]]],
) -> dict[str, dict[str, float]]:
    """The median of every metric over the runs of a task.

    Args:
      results: task -> metrics of its runs.
    """
    return {
        task: {
            name: float(np.median([scores[name] for scores in runs])) for name in GLUE_METRICS[task]
        }
        for task, runs in ((task, list(runs)) for task, runs in results.items())
    }


if __name__ == "__main__":
    run(main, workdir_help="Folder with the folders of the runs.")
