"""What the commands print of evaluations: scores of courses, and how they are spread."""

from collections.abc import Mapping

from experiments.common import print_grid
from experiments.federated.metrics import SPREAD, spread
from jaxlab.federated.baselines import STOPPED

SPREAD_COLUMNS = 4
"""Columns of a table at most, so that it is no wider than a terminal."""


def print_spread(metrics: Mapping[str, float], title: str) -> None:
    """Prints how scores (losses, where there are none) are spread over clients: a row a statistic.

    Args:
      metrics: names and numbers of an evaluation.
      title: what stands above.
    """
    rows = spread(metrics)
    rows = {name: rows[name] for name in scores(dict.fromkeys(rows, 0.0))}
    names = list(rows)
    for first in range(0, len(names), SPREAD_COLUMNS):
        some = {name: rows[name] for name in names[first : first + SPREAD_COLUMNS]}
        print_grid(transposed(some), title=title)


def shown_numbers(numbers: Mapping[str, float], metric: str) -> dict[str, float]:
    """What is printed: not what is spread over clients, and of the best round only the scores."""
    kept = ("best/round", f"best/{metric}", *(f"best/{name}" for name in scores(numbers)))
    return {
        name: value
        for name, value in numbers.items()
        if not SPREAD.search(name) and (name in kept or not name.startswith("best/"))
    }


def transposed(columns: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Columns of numbers as rows, in order of appearance."""
    names = dict.fromkeys(name for column in columns.values() for name in column)
    return {
        name: {heading: column[name] for heading, column in columns.items() if name in column}
        for name in names
    }


def scores(final: Mapping[str, float]) -> dict[str, float]:
    """The scores of an evaluation over all examples, or the losses where there are no scores."""
    whole = {name: value for name, value in final.items() if not SPREAD.search(name)}
    other = ("loss", STOPPED)
    found = {n: value for n, value in whole.items() if n.rpartition("/")[2] not in other}
    return found or {n: value for n, value in whole.items() if n.endswith("/loss")}
