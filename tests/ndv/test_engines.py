"""The recipes of the README, as they stand there, on the engines that are installed."""

import glob
import re
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxlab.ndv import table

CHECKOUT = Path(__file__).resolve().parents[2]
README = CHECKOUT / "jaxlab" / "ndv" / "README.md"
FILES, ROWS = 5, 300


def recipe(heading):
    """The first indented block below a heading."""
    section = README.read_text("utf-8").split(f"\n### {heading}\n")[1].split("\n#")[0]
    blocks = re.findall(r"(?:^(?: {4}.*)?\n)+", section, re.M)
    return next(block for block in blocks if block.strip())


def run(heading):
    """The names that a recipe defines."""
    text = "\n".join(line[4:] for line in recipe(heading).splitlines())
    names = {"__name__": "__main__"}
    exec(compile(text, f"{README}: {heading}", "exec"), names)
    return names


@pytest.fixture
def expected(tmp_path, monkeypatch):
    """The table of the files in `data`, merged without an engine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))  # of the engine's own processes
    (tmp_path / "data").mkdir()
    for index in range(FILES):
        ids = np.arange(index * ROWS, index * ROWS + ROWS)
        rows = pa.table({"id": ids, "few": ids % 7, "text": [f"t{i % 40}" for i in ids.tolist()]})
        pq.write_table(rows, tmp_path / "data" / f"{index}.parquet")
    paths = sorted(glob.glob("data/*.parquet"))
    return table.merge_all(
        table.sketch(pq.ParquetFile(path).iter_batches(), partition=i)
        for i, path in enumerate(paths)
    )


def assert_answers(names, expected):
    found = {answer.column: answer.result.estimate for answer in names["answers"]}
    assert found == {"id": FILES * ROWS, "few": 7, "text": 40}
    assert names["table"].num_rows == expected.num_rows
    for name, column in names["table"].columns.items():
        ours, wanted = (
            jax.tree.leaves(record.sketch)
            for record in (column.record, expected.columns[name].record)
        )
        for leaf, other in zip(ours, wanted, strict=True):
            np.testing.assert_array_equal(leaf, other)


def test_dask_gives_the_bits_of_the_files(expected):
    dask = pytest.importorskip("dask", reason="dask is not installed")
    pytest.importorskip("dask.dataframe", reason="dask.dataframe is not installed")
    # On threads of this process: others would import JAX anew.
    with dask.config.set(scheduler="threads", num_workers=2):
        names = run("Dask")
    assert_answers(names, expected)
    assert table.table_to_bytes(names["table"]) == table.table_to_bytes(expected)


def test_ray_gives_the_sketches_of_the_files(expected):
    ray = pytest.importorskip("ray", reason="ray is not installed")
    pytest.importorskip("ray.data", reason="ray.data is not installed")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        assert_answers(run("Ray Data"), expected)  # its blocks may hold several files
    finally:
        ray.shutdown()


def test_beam_writes_the_answers_of_the_files(expected, tmp_path):
    pytest.importorskip("apache_beam", reason="apache-beam is not installed")
    run("Apache Beam")
    found = sorted((tmp_path / "answers").read_text().split("\n"))
    assert found == ["", "('few', 7.0)", "('id', 1500.0)", "('text', 40.0)"]


def test_images_of_data_sketches_tell_the_values_of_the_column():
    names = run("Apache DataSketches")
    # 4,096 registers and 8,765 hashes: three standard errors.
    assert names["by_hll"] == pytest.approx(30_000, rel=3 * 1.04 / 64)
    assert names["by_theta"] == pytest.approx(30_000, rel=3 / 8765**0.5)


@pytest.mark.parity
def test_the_package_of_data_sketches_reads_the_images_of_the_recipe():
    import datasketches as peer

    names = run("Apache DataSketches")
    by_hll = peer.hll_sketch.deserialize(names["hll_image"]).get_estimate()
    by_theta = peer.compact_theta_sketch.deserialize(names["theta_image"]).get_estimate()
    assert by_hll == pytest.approx(names["by_hll"], rel=0.005)
    assert by_theta == pytest.approx(names["by_theta"], rel=1e-9)


def test_the_mesh_counts_the_values_of_all_rows():
    names = run("JAX on many hosts")
    assert names["distinct"] == pytest.approx(1000, rel=0.05)
    assert names["found"].minimum.sharding.is_fully_replicated
