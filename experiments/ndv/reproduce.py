"""Reproduce the paper's tables, error against bytes, and a benchmark on real columns.

    python -m experiments.ndv.reproduce --config=configs/ndv/tiny.py --workdir=DIR
    python -m experiments.ndv.reproduce --config=configs/ndv/real_columns.py:held_out --workdir=DIR

Each part is a field of the config and is left out with `--config.machines=None` and the like. DIR
gets `results.json`, the pictures `bytes.png` and `columns.png`, and a file for each finished data
set of the long part: started again with the same config, the run goes on behind them. A folder in
which another config ran is refused.
"""

import dataclasses
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.common import print_grid, run
from experiments.common.pictures import save_png
from experiments.common.plots import draw_plots
from experiments.ndv import column_errors, error_bytes, published
from experiments.ndv.machines import run_machines
from experiments.ndv.real_columns import Column, load_columns
from experiments.ndv.settings import (
    BenchmarkConfig,
    BytesConfig,
    ExpectedConfig,
    MachinesConfig,
    RunConfig,
)
from jaxlab import training
from jaxlab.ndv.estimators import estimate_many
from jaxlab.ndv.populations import expected_profile
from jaxlab.training.workdir import (
    check_config,
    open_workdir,
    read_json,
    save_config,
    write_json,
)

logger = logging.getLogger(__name__)

Grid = dict[str, dict[str, float]]


def main(config: RunConfig, workdir: Path) -> None:
    """Reproduce every part that the config has, print and write what comes out."""
    workdir = open_workdir(workdir)
    with training.lock_workdir(workdir):
        check_config(workdir, config)
        # First: a package that is missing is named before the long parts, not after them.
        columns = benchmark_columns(config.benchmark) if config.benchmark is not None else []
        save_config(workdir, config)
        _reproduce(config, columns, workdir)


def _reproduce(config: RunConfig, columns: Sequence[Column], workdir: Path) -> None:
    started = time.monotonic()
    results: dict[str, float] = {}
    if config.expected is not None:
        results |= reproduce_expected(config.expected)
    if config.machines is not None:
        results |= reproduce_machines(config.machines, workdir)
    if config.bytes is not None:
        results |= reproduce_bytes(config.bytes, workdir)
    if config.benchmark is not None:
        results |= reproduce_benchmark(config.benchmark, columns, workdir)
    seconds = time.monotonic() - started
    training.write_results(workdir, {**results, "seconds": seconds})
    print(f"Results: {workdir / 'results.json'}, {seconds:.0f} s")


def reproduce_expected(config: ExpectedConfig) -> dict[str, float]:
    """Tables of the paper's data sets and of the estimators on them, beside what is published.

    Args:
      config: which data sets.

    Returns:
      `expected/SET/largest_error`, how far the numbers of a set are from the published ones at
      most, and `expected/SET/ratio_ESTIMATOR`.
    """
    sizes: Grid = {}
    ratios: Grid = {}
    results: dict[str, float] = {}
    for name in config.populations:
        population = published.make_population(name)
        profile = expected_profile(population, config.rate)
        ours = published.Published(
            population.num_rows, population.num_distinct, float(profile.n), float(profile.d),
            float(profile.f[0]), float(profile.f[1]),
        )  # fmt: skip
        theirs = published.PROFILES[name]
        sizes[name], sizes[f"{name} *"] = _millions(ours), _millions(theirs)
        errors = [a / b - 1 for a, b in zip(ours, theirs, strict=True)]
        results[f"expected/{name}/largest_error"] = max(map(abs, errors))
        found = estimate_many(profile, published.RATIO_ESTIMATORS)
        ratios[name] = {
            key: float(each.unclamped) / ours.num_distinct for key, each in found.items()
        }
        known = zip(published.RATIO_ESTIMATORS, published.RATIOS[name], strict=True)
        ratios[f"{name} *"] = dict(known)
        results |= {f"expected/{name}/ratio_{key}": ratio for key, ratio in ratios[name].items()}
    rate = f"sample of {_percent(config.rate)}"
    print_grid(sizes, title=f"Expected profiles of a {rate}, in millions (*: published)")
    short = {
        name: {_short(key): value for key, value in row.items()} for name, row in ratios.items()
    }
    print_grid(short, title=f"Estimate / truth, expected {rate}, not clamped (*: published)")
    return results


def reproduce_machines(config: MachinesConfig, workdir: Path) -> dict[str, float]:
    """The paper's experiment; data sets that the folder holds are not run again.

    Args:
      config: data sets, machines, sizes of sketches.
      workdir: folder of the run.

    Returns:
      `machines/SET/NUMBER` for all numbers of `run_machines` and the errors, and over all sets
      `bytes/ratio_to_dictionary`, dictionaries' bytes over those of our messages.
    """
    found = {
        f"{name} x{repeats}": _finished(name, repeats, config, workdir)
        for name in config.populations
        for repeats in config.repeats
    }
    _print_sketches(found, config)
    _print_estimates(found)
    results: dict[str, float] = {}
    for heading, numbers in found.items():
        key = heading.replace(" ", "_")
        results |= {f"machines/{key}/{name}": value for name, value in numbers.items()}
        for kind in ("paper", "our"):
            for what in ("d", "f1"):
                error = numbers[f"{kind}_{what}"] / numbers[what] - 1
                results[f"machines/{key}/{kind}_{what}_error"] = error
    total = {
        kind: sum(numbers[f"{kind}_bytes"] for numbers in found.values())
        for kind in ("dictionary", "paper", "our")
    }
    results["bytes/ratio_to_dictionary"] = total["dictionary"] / total["our"]
    results["bytes/ratio_to_paper"] = total["paper"] / total["our"]
    return results


def reproduce_bytes(config: BytesConfig, workdir: Path) -> dict[str, float]:
    """Error against bytes, as a table and a picture.

    Args:
      config: data sets, machines, sizes of sketches.
      workdir: folder of the run.

    Returns:
      `bytes/SET/SCHEME_SIZE/NUMBER`: bytes of all machines and the two errors.
    """
    found = {}
    for name in config.populations:
        logger.info("error against bytes: %s", name)
        found[name] = error_bytes.measure(name, config)
    results: dict[str, float] = {}
    for name, points in found.items():
        rows: Grid = {}
        for point in sorted(points, key=lambda point: (point.scheme, point.num_bytes)):
            row = {"bytes": round(point.num_bytes), "answer %": 100 * point.error}
            if point.f1_error == point.f1_error:
                row["f1 %"] = 100 * point.f1_error
            rows[f"{point.scheme}, {point.size}" if point.size else point.scheme] = row
            key = f"bytes/{name}/{_KEYS[point.scheme]}_{point.size}"
            results[f"{key}/bytes"] = point.num_bytes
            results[f"{key}/error"] = point.error
            if point.f1_error == point.f1_error:
                results[f"{key}/f1_error"] = point.f1_error
        title = f"{name}: rms error, {config.trials} samples on {config.machines} machines"
        print_grid(rows, title=title, columns=["bytes", "f1 %", "answer %"])
    figure = draw_plots(
        error_bytes.make_plots(found),
        title="Error against bytes",
        subtitle=f"{_percent(config.rate)} of {config.block_rows:,.0f} rows on {config.machines} "
        f"machines, {config.trials} samples",
    )
    print(f"Picture: {save_png(workdir / 'bytes.png', figure)}")
    return results


def benchmark_columns(config: BenchmarkConfig) -> list[Column]:
    """The columns of the benchmark.

    Raises:
      ModuleNotFoundError: if the package of a source is not installed.
      ValueError: if there is no column.
    """
    columns = load_columns(config.columns)
    if not columns:
        raise ValueError(
            f"no column has min_rows={config.columns.min_rows} rows; name tables, or ask for fewer"
        )
    return columns


def reproduce_benchmark(
    config: BenchmarkConfig, columns: Sequence[Column], workdir: Path
) -> dict[str, float]:
    """The estimators and the automatic choice on columns of tables, as tables and a picture.

    Args:
      config: rates and estimators.
      columns: at least one.
      workdir: folder of the run.

    Returns:
      See `column_errors.flat_results`.
    """
    results = []
    for rate in config.rates:
        logger.info("%d columns at %s", len(columns), _percent(rate))
        results.append(column_errors.measure_rate(columns, rate, config))
    samples = f"{len(columns)} columns, {config.num_seeds} samples each"
    for found in results:
        rows = column_errors.summary(found)
        if found.rate != config.report_rate:
            rows = dict(list(rows.items())[:6])
        kind = "all" if found.rate == config.report_rate else "the best"
        print_grid(rows, title=f"q-error at {_percent(found.rate)}, {samples}, {kind} estimators")
    figure = draw_plots(
        [column_errors.plot_rates(results)], title="Error on columns of tables", subtitle=samples
    )
    print(f"Picture: {save_png(workdir / 'columns.png', figure)}")
    return column_errors.flat_results(results, config.report_rate)


_KEYS = {
    error_bytes.DICTIONARY: "dictionary", error_bytes.PAPER: "paper",
    error_bytes.REGISTERS: "registers", error_bytes.BOTTOM_K: "bottom_k",
    error_bytes.MESSAGE: "message", error_bytes.ALL_ROWS: "all_rows",
}  # fmt: skip


def _finished(name: str, repeats: int, config: MachinesConfig, workdir: Path) -> dict[str, float]:
    """The numbers of a data set, from the folder if it was finished with these settings."""
    path = workdir / "machines" / f"{name}_x{repeats}.json"
    common = dataclasses.replace(config, populations=(name,), repeats=(repeats,))
    settings = json.loads(json.dumps(dataclasses.asdict(common)))
    stored = read_json(path) or {}
    if stored.get("settings") == settings:
        logger.info("%s x%d was finished before: %s", name, repeats, path)
        return stored["numbers"]
    from tqdm import tqdm

    logger.info("%s x%d on %d machines", name, repeats, config.machines)
    total = published.make_population(name, config.block_rows, repeats).num_rows * config.rate
    with tqdm(total=round(total), unit="row", unit_scale=True, disable=None) as bar:
        numbers = run_machines(name, repeats, config, on_rows=bar.update)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"settings": settings, "numbers": numbers})
    return numbers


def _print_sketches(found: Mapping[str, Mapping[str, float]], config: MachinesConfig) -> None:
    errors: Grid = {}
    sizes: Grid = {}
    for heading, numbers in found.items():
        name, _, repeats = heading.partition(" x")
        row = {
            f"{what}, {kind}": 100 * (numbers[f"{key}_{what}"] / numbers[what] - 1)
            for what in ("d", "f1")
            for kind, key in (("paper's", "paper"), ("ours", "our"))
        }
        if (stored := published.stored_errors(name, int(repeats))) is not None:
            row |= {"d, published": 100 * stored[0], "f1, published": 100 * stored[1]}
        errors[heading] = row
        megabytes = {key: numbers[f"{key}_bytes"] / 1e6 for key in ("dictionary", "paper", "our")}
        sizes[heading] = {
            "sampled rows": int(numbers["n"]),
            "dictionaries MB": megabytes["dictionary"],
            "paper's MB": megabytes["paper"],
            "ours MB": megabytes["our"],
            "dictionaries / ours": megabytes["dictionary"] / megabytes["our"],
        }
    columns = [
        f"{what}, {kind}" for what in ("d", "f1") for kind in ("published", "paper's", "ours")
    ]
    where = f"{config.machines} machines, {2**config.precision:,} registers in the paper's sketches"
    print_grid(errors, title=f"Error in percent, {where}", columns=columns)
    print_grid(sizes, title=f"Bytes of all machines, {config.budget_bytes:,} a machine for ours")


def _print_estimates(found: Mapping[str, Mapping[str, float]]) -> None:
    rows: Grid = {}
    for heading, numbers in found.items():
        name, _, repeats = heading.partition(" x")
        for key, value in numbers.items():
            if "/" in key:
                rows.setdefault(key, {})[heading] = value / numbers["values"]
        theirs = published.STORED_ESTIMATES.get((name, int(repeats)), {})
        for key, value in theirs.items():
            truth = published.PROFILES[name].num_distinct * int(repeats) / 10
            rows[key][f"{heading}, published"] = value / truth
    print_grid(rows, title="Estimate / truth: from exact counts, the paper's sketches, ours")


def _millions(numbers: published.Published) -> dict[str, float]:
    headings = ("N", "D", "n", "d", "f1", "f2")
    return {key: value / 1e6 for key, value in zip(headings, numbers, strict=True)}


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _short(name: str) -> str:
    """A heading; with C++, the formula that the authors' program has."""
    return name.replace("_AUTHORS_CPP", " C++")


if __name__ == "__main__":
    run(main)
