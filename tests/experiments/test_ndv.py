"""The command that estimates distinct values: all formats, the table, the JSON, its mistakes."""

import gzip
import importlib
import json
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet
import pytest

from jaxlab.ndv.blocks import sample_blocks

CHECKOUT = Path(__file__).resolve().parents[2]
ROWS = 6000
KEYS = {
    "column", "estimate", "low", "high", "method", "reason", "status", "coverage",
    "null_fraction", "rows", "rows_read", "bytes_exchanged", "clustering",
}  # fmt: skip


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    cities = np.array(["Ulm", "Rom", "Köln", "", None], object)[rng.integers(0, 5, ROWS)]
    return pa.table(
        {"city": cities.tolist(), "key": np.arange(ROWS), "day": rng.integers(0, 365, ROWS)}
    )


def write_stream(table, path):
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


def write_duckdb(table, path):
    duckdb = pytest.importorskip("duckdb", reason="duckdb comes with the extra `ndv`")
    connection = duckdb.connect(str(path))
    connection.register("given", table)
    connection.execute('CREATE TABLE "the ""rows""" AS SELECT * FROM given')
    connection.close()


def write_arrow(table, path):
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)


WRITERS = {
    "parquet": lambda table, path: pa.parquet.write_table(table, path, row_group_size=1000),
    "arrow": write_arrow,
    "arrows": write_stream,
    "csv": lambda table, path: pa.csv.write_csv(table, path),
    "duckdb": write_duckdb,
}


@pytest.fixture
def run(run_program):
    """Runs the command in this process: `(*arguments) -> (exit code, output, errors)`."""
    return lambda *arguments: run_program("ndv.estimate", *arguments)


def estimates(path):
    found = json.loads(path.read_text())["columns"]
    assert all(column.keys() == KEYS for column in found)
    return {column["column"]: column for column in found}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_exact_answer_of_a_full_scan(kind, table, run, tmp_path):
    path, target = tmp_path / f"rows.{kind}", tmp_path / "found.json"
    WRITERS[kind](table, path)
    code, output, errors = run(
        f"--input={path}", "--rate=1", f"--json={target}", "--columns=day,city"
    )
    assert code == 0, errors
    found = estimates(target)
    assert list(found) == ["day", "city"]
    assert (found["day"]["estimate"], found["day"]["method"]) == (365, "EXACT")
    assert found["city"]["estimate"] == 4
    assert found["city"]["null_fraction"] == table["city"].null_count / ROWS
    assert found["day"]["rows"] == found["day"]["rows_read"] == ROWS
    # 365 days: half a byte for the length, and the bytes of numbers or the digits of texts; and all
    # counts but one.
    lengths, numbers, digits = 183, 255 + 2 * 109, 10 + 2 * 90 + 3 * 265
    entries = lengths + (digits if kind == "csv" else numbers) + 364
    assert entries < found["day"]["bytes_exchanged"] < entries + 10
    assert "6,000 of 6,000 rows read" in output and "all rows were read" in output
    assert f"Written: {target}" in output


def test_a_sample_of_several_files_is_near(table, run, tmp_path):
    for index in range(3):
        part = table.slice(index * 2000, 2000)
        pa.parquet.write_table(part, tmp_path / f"{index}.parquet")
    target = tmp_path / "found.json"
    code, output, errors = run(
        f"--input={tmp_path}/*.parquet", "--rate=0.5", f"--json={target}", "--unique_columns=key",
        "--columns=key,city",
    )  # fmt: skip
    assert code == 0, errors
    found = estimates(target)
    assert (found["key"]["estimate"], found["key"]["method"]) == (ROWS, "UNIQUE_KEY")
    assert (found["city"]["estimate"], found["city"]["method"]) == (4, "COMPLETE")
    assert found["city"]["rows_read"] == pytest.approx(3000, abs=200)
    assert found["city"]["rows"] == ROWS
    assert "the schema says that the column is unique" in output.replace("\n", " ")


SORTED_ROWS, GROUP = 200_000, 500


def write_sorted(path):
    """A key of four rows each in order, a column at random, and one without values."""
    rng = np.random.default_rng(2)
    columns = {
        "key": np.arange(SORTED_ROWS) // 4 * 7,
        "random": rng.integers(0, 300, SORTED_ROWS),
        "void": pa.nulls(SORTED_ROWS),
    }
    pa.parquet.write_table(
        pa.table(columns), path, row_group_size=GROUP, use_dictionary=False, compression="none"
    )


def test_a_block_sample_is_right_on_a_sorted_key_and_says_that_it_is_sorted(run, tmp_path):
    path, target = tmp_path / "sorted.parquet", tmp_path / "found.json"
    write_sorted(path)
    code, output, errors = run(
        f"--input={path}", "--rate=0.02", "--sample=blocks", f"--json={target}"
    )
    assert code == 0, errors
    found = estimates(target)
    key, truth = found["key"], SORTED_ROWS // 4
    assert (key["method"], key["status"]) == ("COLLAPSE+DUJ1", "block")
    assert 0.65 * truth < key["estimate"] < 1.1 * truth
    assert key["low"] <= truth <= key["high"] <= SORTED_ROWS == key["rows"]
    assert key["rows_read"] == 8 * GROUP and key["clustering"] > 0.5
    assert found["random"]["clustering"] < 0.2 and found["void"]["clustering"] is None
    assert "lie together in blocks in key (0.75 of the rows" in output.replace("\n", " ")
    assert "random (" not in output and "Compare with --sample=rows" in output
    # The same rows taken for a sample of rows: every value four times, so they seem to be all.
    readers = importlib.import_module("experiments.ndv.readers")
    table_sketch = importlib.import_module("jaxlab.ndv.table")
    (partition,) = readers.open_partitions([str(path)])
    chosen = sample_blocks(SORTED_ROWS // GROUP, 0.02, seed=0).tolist()
    rows = partition.blocks.read(["key"], chosen)
    naive = table_sketch.estimate_table(table_sketch.sketch(rows, rate=0.02, is_sampled=True))
    assert naive[0].result.estimate < 0.025 * truth


def test_blocks_that_were_not_drawn_are_not_read(run, tmp_path):
    path = tmp_path / "sorted.parquet"
    write_sorted(path)
    chosen = set(sample_blocks(SORTED_ROWS // GROUP, 0.02, seed=0).tolist())
    metadata = pa.parquet.ParquetFile(path).metadata
    data = bytearray(path.read_bytes())
    for group in set(range(metadata.num_row_groups)) - chosen:
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            start = column.data_page_offset
            data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(bytes(data))
    code, output, errors = run(f"--input={path}", "--rate=0.02", "--sample=blocks")
    assert code == 0, errors
    assert f"{8 * GROUP:,} of {SORTED_ROWS:,} rows read" in output
    assert_one_error(run(f"--input={path}", "--rate=0.02"), "cannot be read as Parquet")


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_blocks(kind, table, run, tmp_path):
    for index in range(2):
        WRITERS[kind](table.slice(index * 3000, 3000), tmp_path / f"{index}.{kind}")
    target = tmp_path / "found.json"
    code, output, errors = run(
        f"--input={tmp_path}/*.{kind}", "--rate=0.5", "--sample=blocks", "--columns=key,city",
        f"--json={target}",
    )  # fmt: skip
    assert code == 0, errors
    # So few blocks say nothing of the others: all of them are read.
    assert "would be fewer than 8" in output
    found = estimates(target)
    assert found["key"]["rows_read"] == found["key"]["rows"] == ROWS
    assert found["city"]["estimate"] == 4 and found["city"]["method"] == "EXACT"


def test_a_block_sample_of_a_csv_file_knows_the_rows_of_all_blocks(run, tmp_path, monkeypatch):
    path, target = tmp_path / "rows.csv", tmp_path / "found.json"
    path.write_text("key\n" + "".join(f"{key}\n" for key in range(ROWS)))
    monkeypatch.setattr("experiments.ndv.readers.CSV_BLOCK_BYTES", 999)
    code, output, errors = run(
        f"--input={path}", "--rate=0.3", "--sample=blocks", f"--json={target}"
    )
    assert code == 0, errors
    key = estimates(target)["key"]
    # Blocks have different numbers of rows: their share does not tell those of the table.
    assert key["rows"] == ROWS and 0 < key["rows_read"] < ROWS / 2
    assert f"{key['rows_read']:,} of 6,000 rows read" in output


@pytest.mark.parametrize("kind", WRITERS)
def test_blocks_of_every_format_are_read_one_by_one(kind, table, tmp_path):
    from experiments.ndv import readers

    path = tmp_path / f"table.{kind}"
    WRITERS[kind](table, path)
    (partition,) = readers.open_partitions([str(path)])
    sizes = partition.blocks.sizes(["key"])
    number = len(sizes)
    rows = [next(partition.blocks.read(["key"], [index])).num_rows for index in range(number)]
    assert sum(rows) == ROWS and rows == list(sizes)
    last = next(partition.blocks.read(["key"], [number - 1]))["key"].to_pylist()
    assert [int(value) for value in last] == list(range(ROWS - rows[-1], ROWS))


def test_a_block_sample_of_everything_is_exact(table, run, tmp_path):
    path, target = tmp_path / "rows.parquet", tmp_path / "found.json"
    WRITERS["parquet"](table, path)
    options = ("--rate=1", "--sample=blocks", "--columns=day,city", f"--json={target}")
    code, _, errors = run(f"--input={path}", *options)
    assert code == 0, errors
    found = estimates(target)["day"]
    assert (found["estimate"], found["method"]) == (365, "EXACT")
    whole = json.loads(target.read_text())
    parts = sum(column["bytes_exchanged"] for column in whole["columns"])
    assert whole["bytes_exchanged"] == parts + whole["shared_bytes"]


def test_duckdb_asks_which_of_several_tables(table, run, tmp_path):
    duckdb = pytest.importorskip("duckdb", reason="duckdb comes with the extra `ndv`")
    path = tmp_path / "two.duckdb"
    connection = duckdb.connect(str(path))
    connection.execute("CREATE TABLE a AS SELECT 1 AS x; CREATE TABLE b AS SELECT 2 AS x")
    connection.close()
    for option in ((), ("--table=c",)):
        result = run(f"--input={path}", *option)
        assert_one_error(result, "give one of a, b")
    code, output, errors = run(f"--input={path}", "--table=b", "--rate=1")
    assert code == 0 and "1 of 1 rows read" in output, errors


ENDINGS = {"csv": ",", "tsv": "\t", "csv.gz": ",", "tsv.gz": "\t", "csv.bz2": ",",
           "TSV.zst": "\t", "csv.lz4": ";"}  # fmt: skip


@pytest.mark.parametrize(("ending", "delimiter"), ENDINGS.items())
def test_csv_files_are_read_with_their_delimiter_and_compression(ending, delimiter, run, tmp_path):
    path, target = tmp_path / f"rows.{ending}", tmp_path / "found.json"
    kind = {"gz": "gzip", "bz2": "bz2", "zst": "zstd", "lz4": "lz4"}.get(ending[4:])
    rows = [f'{key}{delimiter}"a{delimiter}{key % 7}\nb"\n' for key in range(ROWS)]
    with pa.output_stream(str(path), compression=kind) as file:
        file.write(f"key{delimiter}text\n{''.join(rows)}".encode())
    options = ("--delimiter=;",) if delimiter == ";" else ()
    code, _, errors = run(f"--input=file://{path}", "--rate=1", f"--json={target}", *options)
    assert code == 0, errors
    found = estimates(target)
    assert {name: found[name]["estimate"] for name in found} == {"key": ROWS, "text": 7}
    assert found["key"]["rows"] == ROWS


def test_a_value_of_a_csv_file_may_have_lines_anywhere(run, tmp_path, monkeypatch):
    path, target = tmp_path / "rows.csv", tmp_path / "found.json"
    monkeypatch.setattr("experiments.ndv.readers.CSV_BLOCK_BYTES", 64)
    path.write_text("a|b\n" + "".join(f'{key}|"x\n{key},"\n' for key in range(99)))
    code, _, errors = run(f"--input={path}", "--rate=1", f"--json={target}", "--delimiter=|")
    assert code == 0, errors
    assert [column["estimate"] for column in estimates(target).values()] == [99, 99]


def test_help_names_every_flag_and_breaks_no_name():
    for program in ("estimate", "benchmark"):
        command = [sys.executable, "-m", f"experiments.ndv.{program}", "--help"]
        output = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True).stdout
        assert "--json: File to write the numbers to." in output and "(default: '')" not in output
        assert not any(line.endswith("_") or line.strip() == ")" for line in output.splitlines())
        assert program == "benchmark" or "HYBSKEW_COMPAT, HYBGEE_COMPAT" in output


def test_a_sample_that_missed_all_values_is_told(run, tmp_path):
    columns = {"key": np.arange(100), "rare": [None] * 99 + [1], "void": pa.nulls(100)}
    pa.parquet.write_table(pa.table(columns), tmp_path / "rows.parquet")
    found = {}
    for rate in ("0.0001", "0.1", "1"):
        code, output, errors = run(f"--input={tmp_path}/rows.parquet", f"--rate={rate}")
        assert code == 0, errors
        found[rate] = [line for line in output.splitlines() if line.startswith("Warning")]
        assert "partition," in output
    assert found["0.0001"][0].startswith(
        "Warning: none of the 100 rows was read. The sample is too"
    )
    assert found["0.1"][0].startswith("Warning: no row with a value of rare was read, though there")
    assert found["1"] == []


def test_a_method_that_was_not_needed_has_its_reason_in_the_table(run, tmp_path):
    pa.parquet.write_table(pa.table({"key": np.arange(9) // 2}), tmp_path / "rows.parquet")
    target = tmp_path / "found.json"
    options = ("--rate=1", "--method=GEE", f"--json={target}")
    code, output, errors = run(f"--input={tmp_path}/rows.parquet", *options)
    assert code == 0, errors
    key = estimates(target)["key"]
    assert key["method"] == "EXACT" and key["reason"] and key["reason"] in output


def test_a_table_that_is_piped_is_as_wide_as_its_texts(run, tmp_path):
    name = "a_column_with_a_long_name_" * 5
    pa.parquet.write_table(pa.table({name: np.arange(5) // 2}), tmp_path / "rows.parquet")
    code, output, errors = run(f"--input={tmp_path}/rows.parquet", "--rate=1")
    assert code == 0, errors
    (line,) = [line for line in output.splitlines() if name in line]
    assert "3 to 3" in line and "all rows were read" in line and "…" not in output


NESTED = {
    "tags": pa.array([["a"], [], None] * 2, pa.list_(pa.string())),
    "place": pa.array([{"x": 1, "y": 2.0}] * 6),
    "counts": pa.array([[("a", 1)]] * 6, pa.map_(pa.string(), pa.int32())),
    "key": pa.array(range(6)),
    "kind": pa.array(["a", "b", "a"] * 2).dictionary_encode(),
}


@pytest.mark.skipif(not hasattr(pa, "json_"), reason="the type came with pyarrow 19")
@pytest.mark.parametrize("kind", ["parquet", "arrow", "arrows"])
def test_uuid_and_json_columns_are_their_bytes_and_texts(kind, run, tmp_path):
    uuids = [uuid.uuid5(uuid.NAMESPACE_OID, str(i % 50)).bytes for i in range(90)]
    columns = {
        "id": pa.array(uuids, pa.uuid()),
        "text": pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{}", None, "[]"] * 30)),
    }
    WRITERS[kind](pa.table(columns), tmp_path / f"rows.{kind}")
    target = tmp_path / "found.json"
    for options in (("--rate=1",), ("--rate=0.9", "--sample=blocks")):
        options = (f"--input={tmp_path}/rows.{kind}", f"--json={target}", *options)
        code, output, errors = run(*options)
        assert code == 0 and "Skipped" not in output, errors
        found = estimates(target)
        assert {name: found[name]["estimate"] for name in found} == {"id": 50, "text": 2}


@pytest.mark.parametrize("sample", ["rows", "blocks"])
def test_nested_columns_are_skipped_with_a_note(sample, run, tmp_path):
    target = tmp_path / "found.json"
    pa.parquet.write_table(pa.table(NESTED), tmp_path / "rows.parquet")
    options = (f"--input={tmp_path}/rows.parquet", f"--json={target}", f"--sample={sample}")
    code, output, errors = run(*options, "--rate=0.99")
    assert code == 0, errors
    assert estimates(target).keys() == {"key", "kind"}
    assert json.loads(target.read_text())["skipped"] == [
        {"column": "tags", "type": "list<element: string>"},
        {"column": "place", "type": "struct<x: int64, y: double>"},
        {"column": "counts", "type": "map<string, int32 ('counts')>"},
    ]
    assert "\nSkipped: column 'place' of type struct<x: int64, y: double>; --ser" in output
    code, output, errors = run(*options, "--rate=1", "--serialize_nested", "--exclude=place,key")
    assert code == 0, errors
    found = estimates(target)
    assert {name: found[name]["estimate"] for name in found} == {"tags": 2, "counts": 1, "kind": 2}
    assert json.loads(target.read_text())["skipped"] == [] and "Skipped" not in output
    for named in ("--columns=key,tags", "--unique_columns=tags"):
        assert_one_error(run(*options, named), "column 'tags': Arrow type list")
    assert_one_error(run(*options, "--exclude=tugs"), "columns tugs do not exist; ")
    assert_one_error(run(*options, "--columns=key", "--exclude=key"), "no column of tags, place")


@pytest.fixture
def shop(tmp_path):
    """A DuckDB file with two schemas, a view, and a table whose name has a dot."""
    duckdb = pytest.importorskip("duckdb", reason="duckdb comes with the extra `ndv`")
    path = tmp_path / "shop.duckdb"
    connection = duckdb.connect(str(path))
    connection.execute("""
        CREATE SCHEMA sales; CREATE SCHEMA "old.sales";
        CREATE TABLE Orders AS SELECT range AS key FROM range(30);
        CREATE TABLE sales.orders AS SELECT range AS key FROM range(20);
        CREATE TABLE "old.sales"."or.ders" AS SELECT range AS key FROM range(10);
        CREATE VIEW sales.large AS SELECT * FROM main.orders WHERE key > 24;
        CREATE TABLE gone AS SELECT 1 AS key;
        CREATE VIEW sales.broken AS SELECT * FROM gone;
        DROP TABLE gone;
    """)
    connection.close()
    return path


@pytest.mark.parametrize(
    ("name", "rows", "sample"),
    [
        ("main.orders", 30, ()), ('SALES."Orders"', 20, ()), ("or.ders", 10, ()),
        ("large", 5, ()), ("shop.sales.large", 5, ("--rate=0.9", "--sample=blocks")),
        ('"old.sales"."or.ders"', 10, ("--rate=0.9", "--sample=blocks")),
    ],
)  # fmt: skip
def test_duckdb_finds_tables_and_views_of_every_schema(name, rows, sample, shop, run, tmp_path):
    target = tmp_path / "found.json"
    code, _, errors = run(
        f"--input={shop}", f"--table={name}", f"--json={target}", *(sample or ("--rate=1",))
    )
    assert code == 0, errors
    key = estimates(target)["key"]
    assert (key["estimate"], key["rows"]) == (rows, rows)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ((), 'no --table for {}; give one of main.Orders, "old.sales"."or.ders", sales.broken,'),
        (("--table=absent",), "--table=absent for {}; give one of main.Orders,"),
        (("--table=orders",), "is several tables of {}; give one of main.Orders, sales.orders"),
        (("--table=sales.broken",), "{}:sales.broken cannot be read: "),
    ],
)
def test_duckdb_tells_which_tables_there_are(option, message, shop, run):
    assert_one_error(run(f"--input={shop}", *option), message.format(shop))


def assert_one_error(result, message):
    code, output, errors = result
    assert code == 2, errors
    last = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(last) == 1 and message in last[0], errors
    assert "Traceback" not in errors + output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--input is missing; give a file or a pattern"),
        (["--input={folder}/*.pq"], "matches no file in"),
        (["--input={folder}/notes.txt"], "notes.txt is a .txt file; wanted a file ending in one"),
        (["--input={folder}/broken.parquet"], "broken.parquet cannot be read as Parquet"),
        (["--input={folder}/broken.arrow"], "broken.arrow cannot be read as Arrow"),
        (["--input={folder}/empty.csv"], "empty.csv cannot be read as CSV"),
        (["--input={folder}/ragged.csv"], "ragged.csv cannot be read as CSV"),
        (
            ["--input={folder}/good.csv", "--rate=0"],
            "flag --rate=0.0: wanted a share in (0, 1]; 0.01 reads",
        ),
        (["--input={folder}/good.csv", "--rate=nan"], "flag --rate=nan: wanted a share in (0, 1]"),
        (
            ["--input={folder}/good.csv", "--level=95"],
            "flag --level=95.0: wanted a number in (0, 1), such",
        ),
        (["--input={folder}/good.csv", f"--seed={2**63}"], "--seed=9223372036854775808"),
        (["--input={folder}/good.csv", "--columns=z"], "columns z do not exist;"),
        (["--input={folder}/good.csv", "--unique_columns=z"], "columns z do not exist;"),
        (["--input={folder}/good.csv", "--table=t"], "--table=t names a table of a DuckDB file"),
        (["--input={folder}/good.parquet.gz"], "is a compressed Parquet file; unpack it"),
        (["--input={folder}/cut.csv.gz"], "cut.csv.gz cannot be read as CSV"),
        (["--input={folder}/good.csv", "--delimiter=ab"], "--delimiter='ab' cannot stand"),
        (["--input={folder}/list.parquet", "--delimiter=;"], "--delimiter is that of a CSV file"),
        (["--input=s3://bucket/*.parquet"], "--input=s3://bucket/*.parquet is an address that"),
        (["--input=https://host/a.csv"], "give files of this machine (a path, a pattern, or file:"),
        (["--input=file://host/a.csv"], "--input=file://host/a.csv is an address that cannot"),
        (["--input={folder}/good.csv", "--budget_bytes=10"], "flag --budget_bytes=10: 10 is not"),
        (
            ["--input={folder}/good.csv", "--method=BEST"],
            "--method=BEST is no estimator; did you mean ESTNDV",
        ),
        (["--input={folder}/good.csv", "--json={folder}/no/a.json"], "a.json cannot be written"),
        (["--input={folder}/good.csv,{folder}/other.csv"], "differ in columns a, c"),
        (["--input={folder}/list.parquet"], "column 'x': Arrow type list"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, run, tmp_path):
    (tmp_path / "notes.txt").write_text("no table")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing more")
    (tmp_path / "broken.arrow").write_bytes(b"ARROW1 and nothing more")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "good.parquet.gz").write_bytes(b"")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n")[:-9])
    (tmp_path / "ragged.csv").write_text("a,b\n1,2\n3\n")
    (tmp_path / "good.csv").write_text("a,b\n1,2\n")
    (tmp_path / "other.csv").write_text("b,c\n1,2\n")
    pa.parquet.write_table(pa.table({"x": [[1], [2]]}), tmp_path / "list.parquet")
    result = run(*(argument.format(folder=tmp_path) for argument in arguments))
    assert_one_error(result, message)


def test_a_missing_engine_is_named(monkeypatch, tmp_path):
    (tmp_path / "a.csv").write_text("a\n1\n")
    readers = importlib.import_module("experiments.ndv.readers")
    partitions = importlib.import_module("experiments.ndv.partitions")

    def refuse(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(partitions.importlib, "import_module", refuse)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[ndv\]'"):
        readers.open_partitions([str(tmp_path / "a.csv")])


def test_files_whose_types_differ_are_refused_by_name(run, tmp_path):
    pa.parquet.write_table(pa.table({"a": [1, 2]}), tmp_path / "one.parquet")
    pa.parquet.write_table(pa.table({"a": [1.0, 2.0]}), tmp_path / "two.parquet")
    for extra in ([], ["--sample=blocks"]):
        code, _, errors = run(f"--input={tmp_path}/*.parquet", "--rate=1", *extra)
        assert code == 2 and "one.parquet and floats in" in errors and "cast them" in errors
