"""Tables of several kinds as Arrow record batches, one partition per file.

Parquet, Arrow IPC (file and stream) and CSV files, and tables in DuckDB files, are read batch by
batch. CSV columns are read as text: types guessed file by file would make equal values different.
"""

import glob
import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

BATCH_ROWS = 2**16
SUFFIXES = {
    ".parquet": "Parquet", ".pq": "Parquet",
    ".arrow": "Arrow", ".arrows": "Arrow", ".ipc": "Arrow", ".feather": "Arrow",
    ".csv": "CSV",
    ".duckdb": "DuckDB", ".ddb": "DuckDB",
}  # fmt: skip


class Blocks(NamedTuple):
    """Parts of a partition that are read one by one.

    Attributes:
      count: how many there are; of files that only reading tells it, this reads them.
      read: `(names, numbers) -> record batches or tables` of these columns, one a block, for
        ascending numbers from 0 on.
    """

    count: Callable[[], int]
    read: Callable[[Sequence[str], Sequence[int]], Iterator[Any]]


class Partition(NamedTuple):
    """A part of a table that is read by itself.

    Attributes:
      name: the file, for messages.
      num_rows: its rows; None if only reading tells.
      columns: names of its columns.
      batches: `(names) -> record batches` of these columns, in the order of the rows.
      blocks: row groups of Parquet and batches of Arrow files, of which only the chosen ones are
        read; batches of other kinds, which are all read; None before the file is opened.
    """

    name: str
    num_rows: int | None
    columns: tuple[str, ...]
    batches: Callable[[Sequence[str]], Iterator[Any]]
    blocks: Blocks | None = None


def open_partitions(patterns: Sequence[str], table: str | None = None) -> list[Partition]:
    """The partitions of a table.

    Args:
      patterns: files, or patterns with `*`, `?` and `**`.
      table: name of the table inside DuckDB files; not needed where there is one.

    Returns:
      One partition per file, in the order of their names.

    Raises:
      FileNotFoundError: if a pattern matches nothing.
      ValueError: if a file is of no known kind or broken, a table does not exist or has to be
        named, or files have different columns.
      ModuleNotFoundError: if the package that reads a kind is missing.
    """
    paths: set[Path] = set()
    for pattern in patterns:
        found = glob.glob(str(Path(pattern).expanduser()), recursive=True)
        if not found:
            raise FileNotFoundError(
                f"--input={pattern} matches no file in {Path.cwd()}; give a file or a pattern "
                "such as 'data/*.parquet'"
            )
        paths.update(map(Path, found))
    partitions = [_open(path, table) for path in sorted(paths)]
    first = partitions[0]
    for other in partitions[1:]:
        if different := sorted(set(first.columns) ^ set(other.columns)):
            raise ValueError(
                f"{other.name} and {first.name} differ in columns {', '.join(different)}; wanted "
                "files of one table"
            )
    return partitions


def select_columns(partitions: Sequence[Partition], wanted: Sequence[str] | None) -> list[str]:
    """The columns to read, all by default.

    Raises:
      ValueError: if one does not exist; all that do are named.
    """
    columns = partitions[0].columns
    if wanted is None:
        return list(columns)
    if unknown := [name for name in wanted if name not in columns]:
        raise ValueError(
            f"columns {', '.join(unknown)} do not exist; {partitions[0].name} has "
            f"{', '.join(columns)}"
        )
    return list(dict.fromkeys(wanted))


def _open(path: Path, table: str | None) -> Partition:
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None or not path.is_file():
        what = "no file" if kind is not None else f"a {path.suffix or 'nameless'} file"
        raise ValueError(f"{path} is {what}; wanted a file ending in one of {', '.join(SUFFIXES)}")
    if kind == "DuckDB":
        return _with_blocks(_open_duckdb(path, table))
    if table is not None:
        raise ValueError(f"--table={table} names a table of a DuckDB file, and {path} is {kind}")
    opener = {"Parquet": _open_parquet, "Arrow": _open_arrow, "CSV": _open_csv}[kind]
    arrow = _engine("pyarrow")
    try:
        found = opener(path)
    except (arrow.ArrowException, OSError) as error:
        raise _broken(path, kind, error) from error
    found = _with_blocks(found)
    blocks = found.blocks
    assert blocks is not None
    return found._replace(
        batches=lambda names: _guard(path, kind, found.batches(names)),
        blocks=blocks._replace(
            read=lambda names, numbers: _guard(path, kind, blocks.read(names, numbers))
        ),
    )


def _with_blocks(partition: Partition) -> Partition:
    """The partition with its batches as blocks, if it has no others."""
    if partition.blocks is not None:
        return partition

    def read(names: Sequence[str], numbers: Sequence[int]) -> Iterator[Any]:
        chosen = set(numbers)
        yield from (b for i, b in enumerate(partition.batches(names)) if i in chosen)

    def count() -> int:
        return sum(1 for _ in partition.batches(partition.columns[:1]))

    return partition._replace(blocks=Blocks(count, read))


def _open_parquet(path: Path) -> Partition:
    parquet = _engine("pyarrow.parquet")
    file = parquet.ParquetFile(path)

    def batches(names: Sequence[str]) -> Iterator[Any]:
        for batch in file.iter_batches(BATCH_ROWS, columns=list(names)):
            yield batch.select(list(names))

    def read(names: Sequence[str], numbers: Sequence[int]) -> Iterator[Any]:
        for number in numbers:
            yield file.read_row_group(number, columns=list(names)).select(list(names))

    columns = tuple(file.schema_arrow.names)
    blocks = Blocks(lambda: file.metadata.num_row_groups, read)
    return Partition(str(path), file.metadata.num_rows, columns, batches, blocks)


def _open_arrow(path: Path) -> Partition:
    arrow, ipc = _engine("pyarrow"), _engine("pyarrow.ipc")
    try:
        with ipc.open_file(str(path)) as file:
            sizes = [file.get_batch(i).num_rows for i in range(file.num_record_batches)]
            schema = file.schema
    except arrow.ArrowInvalid:
        with arrow.memory_map(str(path)) as mapped:
            schema = ipc.open_stream(mapped).schema
        return Partition(str(path), None, tuple(schema.names), lambda names: _stream(path, names))

    def read(names: Sequence[str], numbers: Sequence[int]) -> Iterator[Any]:
        with arrow.memory_map(str(path)) as mapped, ipc.open_file(mapped) as again:
            yield from _select((again.get_batch(i) for i in numbers), names)

    def batches(names: Sequence[str]) -> Iterator[Any]:
        return read(names, range(len(sizes)))

    blocks = Blocks(lambda: len(sizes), read)
    return Partition(str(path), sum(sizes), tuple(schema.names), batches, blocks)


def _stream(path: Path, names: Sequence[str]) -> Iterator[Any]:
    arrow, ipc = _engine("pyarrow"), _engine("pyarrow.ipc")
    with arrow.memory_map(str(path)) as mapped:
        yield from _select(ipc.open_stream(mapped), names)


def _open_csv(path: Path) -> Partition:
    arrow, csv = _engine("pyarrow"), _engine("pyarrow.csv")
    with csv.open_csv(path) as header:
        columns = tuple(header.schema.names)
    options = csv.ConvertOptions(
        column_types=dict.fromkeys(columns, arrow.string()),
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
        null_values=[""],
    )

    def batches(names: Sequence[str]) -> Iterator[Any]:
        with csv.open_csv(path, convert_options=options) as reader:
            yield from _select(reader, names)

    return Partition(str(path), None, columns, batches)


def _open_duckdb(path: Path, table: str | None) -> Partition:
    duckdb = _engine("duckdb")
    try:
        connection = duckdb.connect(str(path), read_only=True)
        tables = [row[0] for row in connection.execute("SHOW TABLES").fetchall()]
    except duckdb.Error as error:
        raise _broken(path, "DuckDB", error) from error
    name = table if table is not None or len(tables) != 1 else tables[0]
    if name not in tables:
        got = "no --table" if name is None else f"--table={name}"
        raise ValueError(f"{got} for {path}; give one of {', '.join(tables) or '(it has none)'}")
    source = _quoted(name)
    num_rows = connection.execute(f"SELECT count(*) FROM {source}").fetchall()[0][0]
    description = connection.execute(f"SELECT * FROM {source} LIMIT 0").description

    def batches(names: Sequence[str]) -> Iterator[Any]:
        listed = ", ".join(map(_quoted, names))
        relation = connection.sql(f"SELECT {listed} FROM {source}")
        yield from relation.to_arrow_reader(BATCH_ROWS)

    return Partition(f"{path}:{name}", num_rows, tuple(c[0] for c in description), batches)


def _select(batches: Any, names: Sequence[str]) -> Iterator[Any]:
    for batch in batches:
        yield batch.select(list(names))


def _guard(path: Path, kind: str, batches: Iterator[Any]) -> Iterator[Any]:
    """The batches; what breaks while reading is an error that names the file."""
    arrow = _engine("pyarrow")
    try:
        yield from batches
    except (arrow.ArrowException, OSError) as error:  # Arrow tells damaged pages as OSError
        raise _broken(path, kind, error) from error


def _broken(path: Path, kind: str, error: Exception) -> ValueError:
    text = " ".join(str(error).split())
    return ValueError(f"{path} cannot be read as {kind}: {text}; write it again, or leave it out")


def _quoted(name: str | None) -> str:
    return '"' + str(name).replace('"', '""') + '"'


def _engine(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        package = name.split(".")[0]
        raise ModuleNotFoundError(
            f"{package} is not installed; in the checkout, pip install -e '.[ndv]' brings it"
        ) from None
