"""Means, deviations and tests of an ablation: as a table, a picture and flat numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common import print_grid
from experiments.common.axes import Axis
from experiments.common.pictures import save_png
from experiments.common.plots import Plot, Series, draw_plots
from experiments.distillation.settings import AblationConfig
from jaxlab import training
from jaxlab.metrics import paired_test

TABLE, PICTURE = "table.md", "ablation.png"
Rows = Sequence[Mapping[str, Any]]


def write_report(
    workdir: Path,
    config: AblationConfig,
    rows: Rows,
    teacher: Mapping[str, Mapping[str, float]],
    seconds: float,
) -> None:
    """Write `table.md`, `ablation.png` and `results.json`, and print the table.

    Args:
      workdir: folder of the ablation.
      config: its settings.
      rows: a line for every student.
      teacher: scores of the teacher, by part.
      seconds: since the start of the run.
    """
    part = list(teacher)[-1]
    metric = f"{part}/{next(iter(teacher[part]))}"
    names = list(dict.fromkeys(row["variant"] for row in rows))
    table = {name: summarize(rows, name, config.baseline, metric, part) for name in names}
    top = {"teacher": {metric: teacher[part][metric.partition("/")[2]]}}
    title = f"{config.data.name}, {part}, {len(config.seeds)} seeds, {seconds:.0f} s"
    print_grid({**top, **table}, title=f"{workdir}: {title}")
    (workdir / TABLE).write_text(markdown({**top, **table}, title), encoding="utf-8")
    flat = {f"{name}/{n}": v for name, found in {**top, **table}.items() for n, v in found.items()}
    training.write_results(workdir, {**flat, "seconds": seconds})
    save_png(workdir / PICTURE, draw(rows, names, metric, top["teacher"][metric], title))


def summarize(rows: Rows, name: str, baseline: str, metric: str, part: str) -> dict[str, float]:
    """The numbers of a variant over its seeds.

    Args:
      rows: a line for every student.
      name: of the variant.
      baseline: the variant that it is compared with, seed by seed.
      metric: what is compared.
      part: of the data, for agreement and divergence.

    Returns:
      Mean and deviation (with n - 1) of the metric, agreement and divergence from the teacher; the
      paired difference to the baseline, its 95 % interval and the p of the paired t-test.
    """
    own = {row["seed"]: row for row in rows if row["variant"] == name}
    other = {row["seed"]: row for row in rows if row["variant"] == baseline}
    values = np.array([row[metric] for row in own.values()])
    found = {
        metric: float(values.mean()),
        "std": deviation(values),
    }
    for extra in ("agreement", "kl"):
        if (column := f"{part}/{extra}") in next(iter(own.values())):
            values = np.array([row[column] for row in own.values()])
            found[extra] = float(values.mean())
            found[f"{extra} std"] = deviation(values)
    seeds = sorted(own.keys() & other.keys())
    if name != baseline and len(seeds) > 1:
        first, second = ([side[seed][metric] for seed in seeds] for side in (own, other))
        test = paired_test(first, second)
        found |= {
            f"over {baseline}": test.mean,
            "95 % low": test.low,
            "95 % high": test.high,
            "p": test.t_test,
        }
    return found


def deviation(values: np.ndarray) -> float:
    """The deviation with n - 1; 0 of a single number.

    Args:
      values: of the seeds.
    """
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def markdown(table: Mapping[str, Mapping[str, float]], title: str) -> str:
    """A table in Markdown: a line a variant.

    Args:
      table: variant -> column -> number.
      title: what stands above it.
    """
    columns = list(dict.fromkeys(name for row in table.values() for name in row))
    lines = [f"# {title}", "", f"| variant | {' | '.join(columns)} |"]
    lines.append("|" + " --- |" * (len(columns) + 1))
    for name, row in table.items():
        cells = [f"{row[c]:.4f}" if c in row else "" for c in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(rows: Rows, names: Sequence[str], metric: str, teacher: float, title: str) -> Any:
    """The mean of every variant over its seeds with its deviation, side by side.

    Args:
      rows: a line for every student.
      names: of the variants, from left to right.
      metric: what is drawn.
      teacher: its value for the teacher, a line.
      title: of the picture.
    """
    columns = [np.array([row[metric] for row in rows if row["variant"] == n]) for n in names]
    means = [float(values.mean()) for values in columns]
    spreads = [deviation(values) for values in columns]
    students = Series(
        "students",
        x=[float(place) for place in range(1, len(names) + 1)],
        y=means,
        low=[mean - spread for mean, spread in zip(means, spreads, strict=True)],
        high=[mean + spread for mean, spread in zip(means, spreads, strict=True)],
        line=False,
    )
    ends = [0.5, len(names) + 0.5]
    line = Series("teacher", x=ends, y=[teacher, teacher], markers=False, dashed=True)
    plot = Plot((students, line), Axis("", names=tuple(names)), Axis(metric, kind="percent"))
    return draw_plots([plot], title=title, subtitle="mean and deviation over seeds")
