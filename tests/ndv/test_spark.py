"""Apache Spark: the bits of the same partitions without it, types, retries, losses, mistakes."""

import os
import shutil
import sys
import weakref
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxlab.ndv import bottom_k, spark, table
from jaxlab.ndv.columns import hash_column
from jaxlab.ndv.hashing import join_words
from jaxlab.ndv.table import estimate_table, merge_all, table_from_bytes, table_to_bytes

# Java and the workers' first import of JAX fall on the first test: minutes on a busy machine.
pytestmark = [pytest.mark.spark, pytest.mark.timeout(600)]
PARTITIONS, ROWS = 4, 800
SMALL = {"budget_bytes": 700, "block_rows": 128}
COLUMNS = [
    "id",
    "id % 7 AS few",
    "IF(id % 5 = 0, NULL, concat('n', id % 90)) AS `a.b`",
    "CAST(id % 11 / 4 AS DECIMAL(9, 2)) AS price",
]


@pytest.fixture(scope="module")
def session():
    sql = pytest.importorskip("pyspark.sql", reason="pyspark comes with the extra `spark`")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("Apache Spark needs Java 17 and there is none; `.ci/peer_env spark` brings it")
    settings = {
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.shuffle.partitions": "3",
        # A thousand rows are not worth compiling for, by Java or by Spark.
        "spark.driver.extraJavaOptions": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1",
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        # Neither the zone of the session nor that of the machine may move a timestamp.
        "spark.sql.session.timeZone": "America/New_York",
    }
    # Two workers at a time; a task may fail three times.
    builder = sql.SparkSession.builder.master("local[2,4]").appName("jaxlab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        started = builder.config(map=settings).getOrCreate()
        started.sparkContext.setLogLevel("OFF")
        yield started
        started.stop()


@pytest.fixture(scope="module")
def frame(session):
    return session.range(0, PARTITIONS * ROWS, 1, PARTITIONS).selectExpr(*COLUMNS)


def partition_of(index):
    """The rows of a partition of the frame, made without Spark, in batches of another size."""
    ids = np.arange(index * ROWS, (index + 1) * ROWS)
    cents = [None if i is None else Decimal(i % 11 * 25).scaleb(-2) for i in ids.tolist()]
    columns = {
        "id": ids,
        "few": ids % 7,
        "a.b": [None if i % 5 == 0 else f"n{i % 90}" for i in ids.tolist()],
        "price": pa.array(cents, pa.decimal128(9, 2)),
    }
    return pa.table(columns).to_batches(max_chunksize=300)


def without_spark(rates=(1.0,) * PARTITIONS, **options):
    return merge_all(
        table.sketch(partition_of(i), partition=i, rate=rate, **SMALL, **options)
        for i, rate in enumerate(rates)
    )


@pytest.mark.parametrize("fan_in", [32, 3])
def test_a_full_scan_has_the_bits_of_the_same_partitions_without_spark(frame, fan_in, monkeypatch):
    monkeypatch.setattr(spark, "FAN_IN", fan_in)  # 3 messages a task: two tasks merge 4 of them
    found = spark.sketch(frame, **SMALL)
    assert table_to_bytes(found) == table_to_bytes(without_spark())
    assert found.num_rows == PARTITIONS * ROWS
    exact = {answer.column: answer.result for answer in estimate_table(found)}
    assert (exact["few"].estimate, exact["few"].method) == (7, "EXACT")
    assert (exact["price"].estimate, exact["price"].method) == (11, "EXACT")
    assert (exact["a.b"].estimate, exact["a.b"].method) == (72, "EXACT")
    assert exact["id"].method == "SKETCH"


def test_a_sample_of_chosen_columns_has_the_bits_of_the_same_sample_without_spark(frame):
    columns = ["a.b", "few"]
    answers = spark.estimate(
        frame, columns=columns, rate=0.25, seed=5, unique_columns=["few"], num_draws=16, **SMALL
    )
    expected = estimate_table(
        without_spark((0.25,) * PARTITIONS, columns=columns, seed=5),
        unique_columns=["few"], num_draws=16, seed=5,
    )  # fmt: skip
    assert answers == expected and [answer.column for answer in answers] == columns
    assert answers[0].num_read == pytest.approx(PARTITIONS * ROWS / 4, rel=0.15)
    assert answers[1].result.reason.startswith("declared unique, but")  # the flag has arrived


def test_partitions_of_different_rates_have_the_bits_of_those_without_spark(frame):
    rates = (1.0, 0.5, 0.25, 0.1)
    found = spark.sketch(frame, rate=rates, **SMALL)
    expected = without_spark(rates, mixed_rates=True)
    assert table_to_bytes(found) == table_to_bytes(expected)
    assert estimate_table(found, num_draws=16)[0].result.method == "GEE_MIXED"


def every_type(rows=500):
    rng = np.random.default_rng(0)
    numbers = rng.integers(-90, 90, rows)
    gaps = rng.random(rows) < 0.2

    def column(values, kind):
        values = [None if gap else value for gap, value in zip(gaps, values, strict=True)]
        return pa.array(values, kind)

    floats = np.choose(numbers % 4, [-0.0, 0.0, np.nan, numbers / 8]).tolist()
    whole, micros = numbers.tolist(), (numbers * 86_400_000_001).tolist()
    return pa.table(
        {
            "int8": column(whole, pa.int8()),
            "int16": column(whole, pa.int16()),
            "int32": column(whole, pa.int32()),
            "int64": column([n << 40 for n in whole], pa.int64()),
            "uint32": column([abs(n) + 2**31 for n in whole], pa.uint32()),
            "bool": column([n > 0 for n in whole], pa.bool_()),
            "float32": column(floats, pa.float32()),
            "float64": column(floats, pa.float64()),
            "decimal": column([Decimal(n).scaleb(-2) for n in whole], pa.decimal128(10, 2)),
            "wide": column([Decimal(n * 10**30).scaleb(-5) for n in whole], pa.decimal128(38, 5)),
            "date": column(whole, pa.date32()),
            "instant": column(micros, pa.timestamp("us", "UTC")),
            "local": column(micros, pa.timestamp("us")),
            "text": column([("", "é", "e\u0301", "x" * 40)[n % 4] for n in whole], pa.string()),
            "coded": column([f"k{n}" for n in whole], pa.string()).dictionary_encode(),
            "binary": column([bytes([n % 200, 0]) for n in whole], pa.binary()),
            "void": pa.nulls(rows, pa.string()),
        }
    )


def read_with_arrow(path, **options):
    return table_to_bytes(
        table.sketch(pq.ParquetFile(path, **options).iter_batches(), partition=0, block_rows=128)
    )


def test_every_type_hashes_as_the_same_column_read_from_parquet(session, tmp_path):
    pq.write_table(every_type(), tmp_path / "rows.parquet", store_schema=False)
    frame = session.read.parquet(str(tmp_path / "rows.parquet")).coalesce(1)
    found = table_to_bytes(spark.sketch(frame, block_rows=128))
    assert found == read_with_arrow(tmp_path / "rows.parquet")
    frame.write.parquet(str(tmp_path / "written"))  # timestamps with a zone as INT96
    (written,) = (tmp_path / "written").glob("*.parquet")
    assert found == read_with_arrow(written, coerce_int96_timestamp_unit="us")


def test_a_task_that_fails_and_is_tried_again_counts_once(frame):
    def fails_once(batches):
        from pyspark import TaskContext

        context = TaskContext.get()
        for batch in batches:
            yield batch.slice(0, 200)
            if context.partitionId() in (1, 2) and context.attemptNumber() == 0:
                raise OSError("the disk is gone")
            yield batch.slice(200)

    plain = frame.withColumnRenamed("a.b", "b")
    found = spark.sketch(plain.mapInArrow(fails_once, plain.schema), **SMALL)
    assert table_to_bytes(found) == table_to_bytes(spark.sketch(plain, **SMALL))
    assert found.columns["id"].record.partitions.tolist() == [0, 1, 2, 3]


def test_messages_are_kept_and_merged_later_and_lost_or_repeated_ones_are_named(
    session, frame, tmp_path
):
    kept = str(tmp_path / "messages")
    for day in range(2):
        rows = frame.where(f"id % 2 = {day}").select("id")
        made = spark.partition_messages(rows, first_partition=day * PARTITIONS, **SMALL)
        made.write.mode("append").parquet(kept)
    messages = session.read.parquet(kept)
    found = spark.merge_messages(messages, partitions=range(2 * PARTITIONS))
    # Partitions of half as many rows have higher thresholds; every id below them is there, once.
    words = np.sort(join_words(hash_column(np.arange(PARTITIONS * ROWS)).lanes))
    merged = bottom_k.held(found.columns["id"].record.sketch)
    np.testing.assert_array_equal(merged.words, words[: len(merged.words)])
    assert merged.limit == words[len(merged.words)] and (merged.counts == 1).all()
    with pytest.raises(ValueError, match=r"partitions \[1, 6\] are missing \(2 of 8\)"):
        some = messages.where("partition NOT IN (1, 6)")
        spark.merge_messages(some, partitions=range(2 * PARTITIONS))
    with pytest.raises(ValueError, match=r"partitions \[0\] are in both"):
        spark.merge_messages(messages.union(messages.where("partition = 0")))


def test_partitions_that_a_shuffle_makes_or_leaves_empty_are_all_there(session, frame):
    shuffled = frame.groupBy("few").count()  # adaptive: how many partitions, only the run knows
    found = spark.sketch(shuffled)
    assert [answer.result.estimate for answer in estimate_table(found)] == [7, 2]
    sparse = session.range(0, 2, 1, 5)
    record = spark.sketch(sparse).columns["id"].record
    assert (record.partitions.tolist(), record.num_rows) == ([0, 1, 2, 3, 4], 2)


def test_a_batch_is_dropped_before_the_next_one_comes(monkeypatch, session):
    import pyspark

    class Context:
        def partitionId(self):
            return 3

    monkeypatch.setattr(pyspark.TaskContext, "get", classmethod(lambda cls: Context()))
    alive = []

    def batches():
        for start in range(0, 1000, 100):
            batch = pa.record_batch([np.arange(start, start + 100)], names=["c0"])
            alive.append(weakref.ref(batch))
            yield batch
            del batch
            assert sum(reference() is not None for reference in alive) <= 1

    (message,) = spark._sketch_partition(
        batches(), names=["x"], rate=1.0, first_partition=0, options=SMALL
    )
    assert message["partition"].to_pylist() == [3] and len(alive) == 10
    found = table_from_bytes(message["message"][0].as_py())
    assert found.num_rows == 1000 and list(found.columns) == ["x"]


def test_the_daemon_that_forks_workers_has_no_jax_and_workers_are_reused(session, frame):
    def processes(batches):
        loaded = open(f"/proc/{os.getppid()}/maps").read()
        for _ in batches:
            pass
        yield pa.record_batch([[os.getpid()], ["jaxlib" in loaded]], names=["pid", "jax"])

    if not os.path.exists("/proc/self/maps"):
        pytest.skip("what a process has loaded is read from /proc, which this system lacks")
    spark.sketch(frame, columns=["few"], **SMALL)
    rows = session.range(0, 8, 1, 8).mapInArrow(processes, "pid long, jax boolean").collect()
    assert not any(row.jax for row in rows)
    assert len({row.pid for row in rows}) < len(rows)


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (None, {"columns": ["no", "few"]}, ValueError, r"columns \['no'\] do not exist; there are"),
        (None, {"columns": []}, ValueError, "no column to sketch"),
        (None, {"rate": 1.5}, ValueError, r"rate=1.5 is not in \(0, 1\]"),
        (None, {"rate": [0.5, 0]}, ValueError, r"rate=0 is not in \(0, 1\]"),
        (None, {"rate": [0.5, 1]}, ValueError, "rate has 2 numbers and the DataFrame 4 partitions"),
        (None, {"budget_bytes": 9}, ValueError, "budget_bytes=9"),
        (None, {"partition": 1}, TypeError, r"options \['partition'\] are unknown; there are bl"),
        (None, {"unique_columns": ["no"]}, ValueError, r"unique_columns has \['no'\]; there are"),
        (["id", "id"], {}, ValueError, r"columns \['id'\] exist more than once"),
        (["array(id) AS l"], {}, TypeError, "column 'l': Arrow type list"),
        (["make_interval(1) AS i"], {}, TypeError, "column 'i': Spark has no Arrow form of interv"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(frame, change, options, error, message):
    changed = frame if change is None else frame.selectExpr(*change)
    with pytest.raises(error, match=message):
        spark.estimate(changed, **options)
