"""PostgreSQL: its types, its mistakes without a password, and the numbers of its ANALYZE.

A server of the test's own comes from the package `pgserver` or from the system's PostgreSQL.
"""

import importlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jaxlab import ndv
from jaxlab.ndv import table

PASSWORD = "s3cret/%@"
QUOTED_PASSWORD = "s3cret%2F%25%40"
ROWS = 200_000
SAMPLE_ROWS = 30_000
TYPES = """
    CREATE TABLE types AS SELECT
      (i % 7)::int2 AS int2, (i % 8)::int4 AS int4, i::int8 AS int8, i % 2 = 0 AS bool,
      CASE i % 4 WHEN 0 THEN '-0' WHEN 1 THEN '0' WHEN 2 THEN 'NaN' END::float8 AS float8,
      CASE i % 4 WHEN 0 THEN 1.0 WHEN 1 THEN 1.00 WHEN 2 THEN 2 ELSE 'NaN' END::numeric AS numeric,
      (i % 9 / 4.0)::numeric(9, 2) AS decimal,
      timestamptz '2000-01-01 00:00:00+02' + i % 5 * interval '1 us' AS instant,
      timestamp '2000-01-01' + i % 5 * interval '1 day' AS local,
      date '1960-01-01' + i % 6 AS day, time '00:00' + i % 5 * interval '1 s' AS clock,
      ('x' || i % 11) AS text, ('y' || i % 3)::char(9) AS padded, ''::text AS blank,
      decode(lpad(to_hex(i % 12), 2, '0'), 'hex') AS bytea,
      ('00000000-0000-0000-0000-00000000000' || i % 10)::uuid AS uuid,
      jsonb_build_object('b', i % 4, 'a', 1) AS jsonb, ('10.0.0.' || i % 3)::inet AS inet,
      NULL::text AS void
    FROM generate_series(0, 999) AS i
"""
DISTINCT = {
    "int2": 7, "int4": 8, "int8": 1000, "bool": 2, "float8": 2, "numeric": 3, "decimal": 9,
    "instant": 5, "local": 5, "day": 6, "clock": 5, "text": 11, "padded": 3, "blank": 1,
    "bytea": 12, "uuid": 10, "jsonb": 4, "inet": 3, "void": 0,
}  # fmt: skip
SHAPES = """
    CREATE TABLE shapes AS SELECT
      i AS key, i / 20 AS clustered, (random() * 5000)::int AS uniform,
      floor(exp(random() * ln(100000)))::int AS skewed,
      CASE WHEN random() < 0.3 THEN NULL ELSE (random() * 20000)::int END AS holes,
      i % 7 AS few
    FROM generate_series(1, {rows}) AS i
"""


def binaries():
    """The folder of the server's programs, and what must lie beside them; None without any."""
    package = importlib.util.find_spec("pgserver")
    if package is not None and package.submodule_search_locations:
        return Path(package.submodule_search_locations[0]) / "pginstall" / "bin"
    system = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name)
    found = shutil.which("initdb")
    return system[-1] if system else Path(found).parent if found else None


def unprivileged(folder, programs):
    """PostgreSQL refuses to run as root: another user, and programs where that one may read."""
    if os.geteuid() != 0:
        return programs, {}
    shutil.chown(folder / "data", "nobody", "nogroup")
    package = programs.parents[1]
    if package.name == "pgserver":
        shutil.copytree(package / "pginstall", folder / "pgserver" / "pginstall")
        shutil.copytree(package.parent / "pgserver.libs", folder / "pgserver.libs")
        programs = folder / "pgserver" / "pginstall" / "bin"
    return programs, {"user": "nobody", "group": "nogroup", "extra_groups": []}


@pytest.fixture(scope="module")
def address():
    """`postgresql://owner@127.0.0.1:port/postgres`, without the password."""
    pytest.importorskip("adbc_driver_postgresql", reason="the driver comes with the extra `ndv`")
    programs = binaries()
    if programs is None:
        pytest.skip("there is no PostgreSQL server; pgserver comes with the extra `parity`")
    folder = Path(tempfile.mkdtemp(prefix="jaxlab-postgres-"))
    folder.chmod(0o755)
    (folder / "data").mkdir(mode=0o700)
    (folder / "password").write_text(PASSWORD)
    programs, who = unprivileged(folder, programs)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def call(program, *arguments):
        # To a file: a server that inherits a pipe keeps it open.
        with open(folder / "output", "a") as output:
            command = [programs / program, "-D", folder / "data", *arguments]
            code = subprocess.call(command, stdout=output, stderr=output, cwd="/", **who)
        assert code == 0, (folder / "output").read_text()

    call(
        "initdb", "-U", "owner", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}",
        "--encoding=UTF8", "--no-locale", "--no-sync",
    )  # fmt: skip
    call("pg_ctl", "-w", "-o", f"-p {port} -k {folder / 'data'} -h 127.0.0.1 -F", "start")
    try:
        yield f"postgresql://owner@127.0.0.1:{port}/postgres"
    finally:
        call("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.fixture
def readers(monkeypatch):
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    return importlib.import_module("experiments.ndv.readers")


@pytest.fixture(scope="module")
def execute(address):
    """Runs statements: `(*statements) -> rows of the last one`."""
    driver = importlib.import_module("adbc_driver_postgresql.dbapi")

    def call(*statements):
        with_password = address.replace("owner@", f"owner:{QUOTED_PASSWORD}@")
        with (
            driver.connect(with_password, autocommit=True) as connection,
            connection.cursor() as cursor,
        ):
            for statement in statements:
                cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []

    return call


@pytest.fixture(scope="module")
def tables(execute):
    execute(
        TYPES,
        "SELECT setseed(0.5)",
        SHAPES.format(rows=ROWS),
        "CREATE SCHEMA other",
        'CREATE TABLE other."Odd "".name" AS SELECT ARRAY[1] AS list, interval \'1 day\' AS span',
        "ANALYZE shapes",
    )


@pytest.mark.parity
def test_every_type_is_counted_exactly_on_a_full_scan(address, tables, readers):
    (partition,) = readers.open_partitions([address], "public.types")
    assert partition.columns == tuple(DISTINCT) and partition.num_rows is None
    found = table.sketch(partition.batches(list(DISTINCT)))
    answers = {answer.column: answer for answer in table.estimate_table(found)}
    assert {name: answer.result.estimate for name, answer in answers.items()} == DISTINCT
    assert answers["float8"].null_fraction == 0.25 and answers["void"].null_fraction == 1


@pytest.mark.parity
def test_values_hash_as_the_same_values_of_other_sources(address, tables, readers):
    (partition,) = readers.open_partitions([address], "types")
    names = ["int2", "float8", "instant", "local", "day", "clock", "text", "bytea", "uuid"]
    rows = range(1000)
    micros = 946_677_600_000_000  # 2000-01-01 00:00 at +02
    nothing = [-0.0, 0.0, np.nan, None]
    same = pa.table(
        {
            "int2": pa.array([i % 7 for i in rows], pa.int64()),
            "float8": [nothing[i % 4] for i in rows],
            "instant": pa.array([micros + i % 5 for i in rows], pa.timestamp("us", "UTC")),
            "local": pa.array(
                [micros + (7200 + 86_400 * (i % 5)) * 10**6 for i in rows], pa.timestamp("us")
            ),
            "day": pa.array([i % 6 - 3653 for i in rows], pa.date32()),
            "clock": pa.array([i % 5 * 10**6 for i in rows], pa.time64("us")),
            "text": [f"x{i % 11}" for i in rows],
            "bytea": [bytes([i % 12]) for i in rows],
            "uuid": [bytes([0] * 15 + [i % 10]) for i in rows],
        }
    )
    ours = table.sketch(partition.batches(names))
    assert table.table_to_bytes(ours) == table.table_to_bytes(table.sketch([same]))


@pytest.mark.parity
def test_a_seed_draws_the_same_sample_again(address, tables, readers):
    (partition,) = readers.open_partitions([address], "shapes")
    once, again = (table.sketch(partition.batches(["uniform"]), rate=0.1, seed=3) for _ in range(2))
    assert table.table_to_bytes(once) == table.table_to_bytes(again)
    assert once.num_rows == ROWS


@pytest.mark.parity
def test_the_command_reads_a_table(address, tables, readers, run_program, tmp_path):
    target = tmp_path / "found.json"
    code, output, errors = run_program(
        "ndv.estimate", f"--input={address}", "--table=public.shapes", "--columns=few",
        "--rate=1", f"--json={target}",
    )  # fmt: skip
    assert code == 0, errors
    (few,) = json.loads(target.read_text())["columns"]
    assert (few["estimate"], few["method"], few["rows"]) == (7, "EXACT", ROWS)
    code, output, errors = run_program(
        "ndv.estimate", f"--input={address}", '--table=other.Odd ".name', "--columns=list"
    )
    assert code == 2 and "column 'list': Arrow type list<item: int32> has no canonical" in errors


@pytest.mark.parity
@pytest.mark.parametrize(
    ("change", "name", "error", "message"),
    [
        ({}, "absent", ValueError, '--table=absent for .*; give one of other."Odd "".name"'),
        ({}, None, ValueError, r"no --table for .*public.shapes, public.types"),
        ({"owner": "owner:wr0ng"}, "types", ConnectionError, "authentication failed for user"),
        ({"owner": "owner:wr0%zz"}, "types", ConnectionError, r'percent-encoded token: "\*\*\*"'),
        ({"/postgres": "/none"}, "types", ConnectionError, 'database "none" does not exist'),
        ({"owner": "guest"}, "types", ValueError, "permission denied for table types; give anoth"),
    ],
)
def test_a_mistake_is_told_without_the_password(
    address, execute, tables, readers, change, name, error, message
):
    if change.get("owner") == "guest":
        execute(f"CREATE ROLE guest LOGIN PASSWORD '{PASSWORD}'")
    for old, new in change.items():
        address = address.replace(old, new) if old != "/postgres" else address[:-9] + new
    with pytest.raises(error, match=message) as raised:
        readers.open_partitions([address], name)
    assert "wr0" not in str(raised.value) and PASSWORD not in str(raised.value)
    # Nor does a traceback show what the driver said.
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


@pytest.mark.parity
def test_interval_and_array_columns_are_refused_by_name(address, tables, readers):
    (partition,) = readers.open_partitions([address], 'other.Odd ".name')
    for name in ("list", "span"):
        with pytest.raises(TypeError, match=f"column '{name}': Arrow type .*serialize_nested"):
            table.sketch(partition.batches([name]))
        found = table.sketch(partition.batches([name]), serialize_nested=True)
        assert table.estimate_table(found)[0].result.estimate == 1


def test_no_server_is_told_without_the_password(run_program):
    pytest.importorskip("adbc_driver_postgresql", reason="the driver comes with the extra `ndv`")
    with socket.socket() as unused:  # bound and not listening: nobody answers
        unused.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{unused.getsockname()[1]}/shop?password=hunter2"
        code, output, errors = run_program(
            "ndv.estimate", f"--input=postgres://me:{QUOTED_PASSWORD}@{place}"
        )
    assert code == 2 and "Connection refused" in errors and "check host, port" in errors
    for secret in ("hunter2", "s3cret"):
        assert secret not in output + errors


def profile_of(values, population):
    """Profile of the values of a sample without nulls."""
    return ndv.profile_from_values(values, population=population, rate=len(values) / population)


def formula_of_analyze(values, population):
    """`compute_scalar_stats` of src/backend/commands/analyze.c, in its order of operations."""
    counts = np.unique(values, return_counts=True)[1]
    n, d, f1 = len(values), len(counts), int((counts == 1).sum())
    return min(max(n * d / ((n - f1) + f1 * n / population), d), population)


@pytest.mark.parity
@pytest.mark.parametrize("column", ["clustered", "uniform", "skewed", "holes", "few"])
def test_duj1_is_the_formula_and_the_answer_of_analyze(column, execute, tables):
    """Within five standard deviations of 40 samples of 30,000 rows; a miss in 1e5 runs or so."""
    rows = np.array([row[0] for row in execute(f"SELECT {column} FROM shapes")], np.float64)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(40):
        sample = rng.choice(rows, SAMPLE_ROWS, replace=False)
        values = sample[~np.isnan(sample)]
        # As in ANALYZE the share of nulls in the sample stands for that of the table.
        population = ROWS * len(values) / SAMPLE_ROWS
        ours = ndv.estimate(profile_of(values, population), "DUJ1").value
        assert ours == pytest.approx(formula_of_analyze(values, population), rel=1e-12)
        found.append(ours)
    told = execute(
        "SELECT n_distinct, reltuples FROM pg_stats JOIN pg_class ON relname = tablename "
        f"WHERE tablename = 'shapes' AND attname = '{column}'"
    )[0]
    assert told[1] == ROWS
    reported = told[0] if told[0] > 0 else -told[0] * ROWS
    assert abs(reported - np.mean(found)) <= 5 * np.std(found, ddof=1) + 0.5


@pytest.mark.parity
def test_a_unique_column_is_as_many_as_rows_here_and_there(execute, tables):
    ((told,),) = execute("SELECT n_distinct FROM pg_stats WHERE attname = 'key'")
    values = np.arange(SAMPLE_ROWS)
    estimate = ndv.estimate(profile_of(values, ROWS), "DUJ1")
    assert (told, estimate.value) == (-1, ROWS)
