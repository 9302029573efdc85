"""Tables of several kinds as Arrow record batches, one partition per file.

Parquet, Arrow IPC (file and stream) and CSV files are read batch by batch; CSV files may be
compressed. CSV columns are read as text: types guessed file by file would make equal values
different. Tables in DuckDB files are read by `duckdb_file`, those of PostgreSQL servers by
`postgresql`; every server is a partition.
"""

import glob
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from experiments.ndv import duckdb_file, postgresql
from experiments.ndv.partitions import (
    BATCH_ROWS,
    Blocks,
    Partition,
    broken,
    engine,
    plain,
    plain_schema,
    with_blocks,
)
from jaxlab.ndv.columns import hash_column

CSV_BLOCK_BYTES = 2**20
SUFFIXES = {
    ".parquet": "Parquet", ".pq": "Parquet",
    ".arrow": "Arrow", ".arrows": "Arrow", ".ipc": "Arrow", ".feather": "Arrow",
    ".csv": "CSV", ".tsv": "CSV",
    ".duckdb": "DuckDB", ".ddb": "DuckDB",
}  # fmt: skip
COMPRESSIONS = (".gz", ".bz2", ".zst", ".lz4")
"""What may follow the ending of a CSV file: the compressions that Arrow reads by that name."""


def open_partitions(
    patterns: Sequence[str], table: str | None = None, delimiter: str | None = None
) -> list[Partition]:
    """The partitions of a table.

    Args:
      patterns: files, patterns with `*`, `?` and `**`, the same as `file:///...`, or
        `postgresql://user@host/database`.
      table: name of the table inside DuckDB files and PostgreSQL databases; not needed where there
        is one.
      delimiter: between the values of CSV files, one character; by default a comma, in files ending
        in .tsv a tab.

    Returns:
      One partition per file, in the order of their names, then one per server.

    Raises:
      FileNotFoundError: if a pattern matches nothing.
      ConnectionError: if a server cannot be reached or refuses the user.
      ValueError: if an address is none that can be read, a file is of no known kind or broken, a
        table does not exist or has to be named, or files have different columns.
      ModuleNotFoundError: if the package that reads a kind is missing.
    """
    paths: set[Path] = set()
    servers = [pattern for pattern in patterns if postgresql.is_address(pattern)]
    for pattern in patterns:
        if pattern in servers:
            continue
        found = glob.glob(str(Path(_local(pattern)).expanduser()), recursive=True)
        if not found:
            raise FileNotFoundError(
                f"--input={pattern} matches no file in {Path.cwd()}; give a file or a pattern "
                "such as 'data/*.parquet'"
            )
        paths.update(map(Path, found))
    partitions = [_open(path, table, delimiter) for path in sorted(paths)]
    partitions += [with_blocks(postgresql.open_table(address, table)) for address in servers]
    first = partitions[0]
    for one in partitions:
        if twice := sorted({name for name in one.columns if one.columns.count(name) > 1}):
            raise ValueError(
                f"{one.name} has columns {', '.join(twice)} more than once; rename one of each"
            )
    for other in partitions[1:]:
        if different := sorted(set(first.columns) ^ set(other.columns)):
            raise ValueError(
                f"{other.name} and {first.name} differ in columns {', '.join(different)}; wanted "
                "files of one table"
            )
    return partitions


def select_columns(
    partitions: Sequence[Partition], wanted: Sequence[str] | None, excluded: Sequence[str] = ()
) -> list[str]:
    """The columns to read, all by default.

    Args:
      partitions: parts of one table.
      wanted: names; None for all.
      excluded: names that are left out.

    Raises:
      ValueError: if one does not exist, and all that do are named; or if none is left.
    """
    columns = partitions[0].columns
    if unknown := [name for name in (*(wanted or ()), *excluded) if name not in columns]:
        raise ValueError(
            f"columns {', '.join(unknown)} do not exist; {partitions[0].name} has "
            f"{', '.join(columns)}"
        )
    names = [name for name in dict.fromkeys(wanted or columns) if name not in excluded]
    if not names:
        raise ValueError(
            f"no column of {', '.join(columns) or 'none'} is left; exclude fewer, or name others"
        )
    return names


def split_nested(
    partitions: Sequence[Partition], names: Sequence[str], required: Iterable[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """The columns whose values can be hashed, and those that would stop the whole table.

    Args:
      partitions: parts of one table.
      names: columns to read.
      required: those of them that have to be read.

    Returns:
      Names, and of the others the name and Arrow type.

    Raises:
      TypeError: if a required column, or every column, is a list, struct, map, or of another type
        without values that can be hashed; it is named.
    """
    refused: dict[str, tuple[str, TypeError]] = {}
    for name in names:
        for kind in {partition.schema.field(name).type for partition in partitions}:
            if (error := _refusal(kind)) is not None:
                refused[name] = (str(kind), error)
    for name in refused:
        if name in required or len(refused) == len(names):
            raise TypeError(f"column {name!r}: {refused[name][1]}")
    return (
        [name for name in names if name not in refused],
        {name: kind for name, (kind, _) in refused.items()},
    )


def _refusal(kind: Any) -> TypeError | None:
    """Why values of an Arrow type cannot be hashed."""
    try:
        hash_column(engine("pyarrow").nulls(0, kind))
    except TypeError as error:
        return error
    return None


def _local(pattern: str) -> str:
    """The path or pattern that an input is; an address of another machine is refused."""
    scheme, separator, rest = pattern.partition("://")
    if not separator:
        return pattern
    path = unquote(rest.removeprefix("localhost"))
    if scheme != "file" or not path.startswith("/"):
        raise ValueError(
            f"--input={pattern} is an address that cannot be read; give files of this machine (a "
            "path, a pattern, or file:///path), copied or mounted from there, or "
            "postgresql://user@host/database"
        )
    return path


def _kind(path: Path) -> str:
    """What a file holds, by its name."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a pattern such as '{path}/*.parquet'")
    kind = SUFFIXES.get(_ending(path))
    if kind is None or not path.is_file():
        what = "no file" if kind is not None else f"a {path.suffix or 'nameless'} file"
        raise ValueError(
            f"{path} is {what}; wanted a file ending in one of {', '.join(SUFFIXES)}; .csv and "
            f".tsv may be followed by one of {', '.join(COMPRESSIONS)}"
        )
    if path.suffix in COMPRESSIONS and kind != "CSV":
        raise ValueError(f"{path} is a compressed {kind} file; unpack it, only CSV may be packed")
    return kind


def _ending(path: Path) -> str:
    """The end of a file's name that tells its kind, in lower case."""
    return Path(path.stem if path.suffix in COMPRESSIONS else path.name).suffix.lower()


def _open(path: Path, table: str | None, delimiter: str | None) -> Partition:
    kind = _kind(path)
    if delimiter is not None and kind != "CSV":
        raise ValueError(f"--delimiter is that of a CSV file, and {path} is {kind}")
    if kind == "DuckDB":
        return with_blocks(duckdb_file.open_table(path, table))
    if table is not None:
        raise ValueError(f"--table={table} names a table of a DuckDB file, and {path} is {kind}")
    arrow = engine("pyarrow")
    try:
        if kind == "CSV":
            found = _open_csv(path, delimiter)
        else:
            found = _open_parquet(path) if kind == "Parquet" else _open_arrow(path)
    except (arrow.ArrowException, OSError) as error:
        raise broken(path, kind, error) from error
    found = with_blocks(found)
    blocks = found.blocks
    assert blocks is not None
    return found._replace(
        batches=lambda names: _guard(path, kind, found.batches(names)),
        blocks=blocks._replace(
            read=lambda names, numbers: _guard(path, kind, blocks.read(names, numbers))
        ),
    )


def _open_parquet(path: Path) -> Partition:
    parquet = engine("pyarrow.parquet")
    file = parquet.ParquetFile(path)

    def batches(names: Sequence[str]) -> Iterator[Any]:
        for batch in file.iter_batches(BATCH_ROWS, columns=list(names)):
            yield plain(batch.select(list(names)))

    def read(names: Sequence[str], numbers: Sequence[int]) -> Iterator[Any]:
        for number in numbers:
            yield plain(file.read_row_group(number, columns=list(names)).select(list(names)))

    metadata = file.metadata
    groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    blocks = Blocks(lambda names: groups, read)
    return Partition(str(path), metadata.num_rows, plain_schema(file.schema_arrow), batches, blocks)


def _open_arrow(path: Path) -> Partition:
    arrow, ipc = engine("pyarrow"), engine("pyarrow.ipc")
    try:
        with ipc.open_file(str(path)) as file:
            sizes = [file.get_batch(i).num_rows for i in range(file.num_record_batches)]
            schema = file.schema
    except arrow.ArrowInvalid:
        with arrow.memory_map(str(path)) as mapped:
            schema = ipc.open_stream(mapped).schema
        return Partition(str(path), None, plain_schema(schema), lambda names: _stream(path, names))

    def read(names: Sequence[str], numbers: Sequence[int]) -> Iterator[Any]:
        with arrow.memory_map(str(path)) as mapped, ipc.open_file(mapped) as again:
            yield from _select((again.get_batch(i) for i in numbers), names)

    def batches(names: Sequence[str]) -> Iterator[Any]:
        return read(names, range(len(sizes)))

    blocks = Blocks(lambda names: sizes, read)
    return Partition(str(path), sum(sizes), plain_schema(schema), batches, blocks)


def _stream(path: Path, names: Sequence[str]) -> Iterator[Any]:
    arrow, ipc = engine("pyarrow"), engine("pyarrow.ipc")
    with arrow.memory_map(str(path)) as mapped:
        yield from _select(ipc.open_stream(mapped), names)


def _open_csv(path: Path, delimiter: str | None) -> Partition:
    arrow, csv = engine("pyarrow"), engine("pyarrow.csv")
    usual = "\t" if _ending(path) == ".tsv" else ","
    parse = csv.ParseOptions(delimiter=delimiter or usual, newlines_in_values=True)
    with csv.open_csv(path, parse_options=parse) as header:
        columns = header.schema.names
    convert = csv.ConvertOptions(
        column_types=dict.fromkeys(columns, arrow.string()),
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
        null_values=[""],
    )

    def batches(names: Sequence[str]) -> Iterator[Any]:
        blocks = csv.ReadOptions(block_size=CSV_BLOCK_BYTES)
        with csv.open_csv(path, blocks, parse, convert) as reader:
            yield from _select(reader, names)

    schema = arrow.schema([(name, arrow.string()) for name in columns])
    return Partition(str(path), None, schema, batches)


def _select(batches: Any, names: Sequence[str]) -> Iterator[Any]:
    for batch in batches:
        yield plain(batch.select(list(names)))


def _guard(path: Path, kind: str, batches: Iterator[Any]) -> Iterator[Any]:
    """The batches; what breaks while reading is an error that names the file."""
    arrow = engine("pyarrow")
    try:
        yield from batches
    except (arrow.ArrowException, OSError) as error:  # Arrow tells damaged pages as OSError
        raise broken(path, kind, error) from error
