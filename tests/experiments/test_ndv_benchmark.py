"""The benchmark of distinct values: every suite at a tiny size, for its form; expected bytes."""

import json

import numpy as np
import pytest

from experiments.ndv import benchmark_bytes

TINY = {
    "speed": ("--rows=4000", "--text_rows=3000", "--rounds=1"),
    "communication": ("--rows=4000", "--partitions=2"),
    "leave_one_out": ("--machines=3", "--precision=4", "--values=300", "--seeds=1"),
    "estimators": ("--profiles=3", "--rounds=1", "--methods=GEE,CHAO,ESTNDV"),
}
GRIDS = {
    "speed": {
        "Columns to sketches": (
            {"int64 few", "int64 many", "int64 unique", "double", "short text", "long text",
             "dictionary of text"},
            {"hll Mrows/s", "profile Mrows/s", "duckdb Mrows/s", "hll / duckdb",
             "profile / duckdb", "hll / duckdb, CPU time", "profile / duckdb, CPU time"},
        ),
        "Steps": (
            {"hash", "HLL", "registers, of hashes", "bottom-k, of hashes", "whole profile",
             "exact profile"},
            {"Mrows/s"},
        ),
    },
    "communication": {
        "Bytes": (
            {"near-unique", "Zipf 0.5", "Zipf 1"},
            {"messages MB", "dictionaries MB", "ratio", "q-error, sketch",
             "q-error, exact profile"},
        ),
    },
    "estimators": {
        "Estimators": ({"GEE", "CHAO", "ESTNDV", "classical, in one call"}, {"profiles/s"}),
    },
}  # fmt: skip


@pytest.mark.parametrize("suite", ["speed", "communication", "estimators"])
def test_a_suite_writes_positive_numbers_for_every_row(suite, run_program, tmp_path):
    if suite == "speed":
        pytest.importorskip("duckdb", reason="duckdb comes with the extra `ndv`")
    target = tmp_path / "found.json"
    code, output, errors = run_program(
        "ndv.benchmark", f"--suite={suite}", f"--json={target}", *TINY[suite]
    )
    assert code == 0, errors
    found = json.loads(target.read_text())
    assert found.keys() == GRIDS[suite].keys()
    for title, (names, metrics) in GRIDS[suite].items():
        assert title in output and found[title].keys() == names
        for row in found[title].values():
            assert row.keys() == metrics and all(value > 0 for value in row.values())


def test_leave_one_out_is_compared_at_no_larger_an_error(run_program, tmp_path):
    target = tmp_path / "found.json"
    code, _, errors = run_program(
        "ndv.benchmark", "--suite=leave_one_out", f"--json={target}", *TINY["leave_one_out"]
    )
    assert code == 0, errors
    found = json.loads(target.read_text())
    assert found.keys() == {"leave-one-out", "registers", "bottom-k"}
    for name, base in found["leave-one-out"].items():
        assert base["kB"] == pytest.approx(3 * 2 * 17 / 1000)
        for kind in ("registers", "bottom-k"):
            row = found[kind][name]
            if row:
                assert row["rms %"] <= base["rms %"]
                assert row["times fewer"] == pytest.approx(base["kB"] / row["kB"])


@pytest.mark.parametrize("exponent", benchmark_bytes.KEYS.values())
def test_the_expected_dictionary_is_that_of_drawn_keys(exponent):
    keys, rows, draws = 3000, 2000, 40
    rng = np.random.default_rng(0)
    ranks = benchmark_bytes.ranks_of(exponent, keys)
    assert ranks.number.sum() == keys
    assert (ranks.number * ranks.probability).sum() == pytest.approx(1)
    drawn = [
        sum(
            len(str(key)) + 5
            for key in np.unique(benchmark_bytes.draw_keys(exponent, keys, rows, rng))
        )
        for _ in range(draws)
    ]
    # Six standard errors of the mean of the draws.
    expected = benchmark_bytes.expected_dictionary_bytes(ranks, rows)
    assert abs(np.mean(drawn) - expected) < 6 * np.std(drawn) / draws**0.5


@pytest.mark.parametrize("exponent", benchmark_bytes.KEYS.values())
def test_bins_of_ranks_change_nothing(exponent, monkeypatch):
    exact = benchmark_bytes.ranks_of(exponent, 50_000)
    monkeypatch.setattr(benchmark_bytes, "_EXACT_RANKS", 100)
    monkeypatch.setattr(benchmark_bytes, "_BINS", 2000)
    binned = benchmark_bytes.ranks_of(exponent, 50_000)
    assert len(exact.number) == 50_000 and len(binned.number) < 2200
    for rows in (100, 10**6):
        assert benchmark_bytes.expected_dictionary_bytes(binned, rows) == pytest.approx(
            benchmark_bytes.expected_dictionary_bytes(exact, rows), rel=1e-4
        )


def test_the_expected_profile_sums_to_its_rows_and_values():
    ranks = benchmark_bytes.ranks_of(1.0, 1000)
    profile = benchmark_bytes.expected_profile(ranks, 5000, 500_000)
    f, i = np.asarray(profile.f), np.asarray(profile.i)
    assert float(f @ i + profile.n_tail) == pytest.approx(5000)
    mean = 5000 * ranks.probability
    assert float(f.sum() + profile.d_tail) == pytest.approx(-np.expm1(-mean).sum())
    assert f[0] == pytest.approx((mean * np.exp(-mean)).sum())


@pytest.mark.parametrize(
    ("suite", "option", "message"),
    [
        ("speed", "--rows=-1", "flag --rows=-1.0: wanted from 1 to 1e+13 rows"),
        ("communication", "--rows=0", "flag --rows=0.0: wanted from 1 to 1e+13 rows"),
        ("communication", "--rows=nan", "flag --rows=nan: wanted from 1 to"),
        ("speed", "--text_rows=1e30", "flag --text_rows=1e+30: wanted from 1 to"),
        ("communication", "--rows=100", "--rows=100 is less than --partitions=512"),
        ("estimators", "--methods=GEE,BEST", "--methods has BEST; there are SCALE, EB"),
        ("leave_one_out", "--values=10", "flag --values=10: 10 is not integer >= 300"),
    ],
)
def test_a_number_out_of_range_is_told_with_its_flag(suite, option, message, run_program):
    code, _, errors = run_program("ndv.benchmark", f"--suite={suite}", option)
    assert code == 2 and f"error: {message}" in errors and "Traceback" not in errors


def test_a_missing_suite_is_told(run_program):
    code, _, errors = run_program("ndv.benchmark")
    assert code == 2 and "--suite is missing" in errors
