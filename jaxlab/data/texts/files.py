"""Reading rows of files with errors that name the file and the line, all at once."""

import csv
import io
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxlab.packages import file_sha256

_MAX_LISTED = 10


class Row(NamedTuple):
    """A row of a file.

    Attributes:
      place: file and line, for messages.
      fields: column -> text, or what JSON holds.
    """

    place: str
    fields: Mapping[str, Any]


def find_files(folder: str | Path, wanted: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """The files of a data set.

    Args:
      folder: where they lie.
      wanted: part -> names that its file may have, the official one first.

    Returns:
      Part -> path.

    Raises:
      FileNotFoundError: naming the folder or all files that are missing.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder; wanted one with "
            f"{', '.join(' or '.join(names) for names in wanted.values())}"
        )
    found = {
        part: next((folder / name for name in names if (folder / name).is_file()), None)
        for part, names in wanted.items()
    }
    missing = [" or ".join(wanted[part]) for part, path in found.items() if path is None]
    if missing:
        raise FileNotFoundError(
            f"{folder} has no {', no '.join(missing)}; it has "
            f"{sorted(path.name for path in folder.iterdir())[:20]}"
        )
    return {part: path for part, path in found.items() if path is not None}


def checksums(paths: Iterable[Path]) -> dict[str, str]:
    """File name -> SHA-256.

    Args:
      paths: of the files.
    """
    return {path.name: file_sha256(path) for path in paths}


def read_text(path: Path, *, may_be_latin_1: bool = False) -> str:
    """The text of a file that is not empty; see `decode` for bytes that are no UTF-8.

    Args:
      path: the file.
      may_be_latin_1: see `decode`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is empty.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, or is no file")
    data = path.read_bytes()
    if not data.strip():
        raise ValueError(f"{path} is empty ({len(data)} bytes); wanted one example a line")
    return decode(data, str(path), may_be_latin_1=may_be_latin_1)


def decode(data: bytes, source: str, *, may_be_latin_1: bool = False) -> str:
    """UTF-8 as text; Latin-1, which always fits, with a warning if one byte is no UTF-8.

    Args:
      data: the bytes.
      source: name of the file, for the warning.
      may_be_latin_1: the files of this set are known to be Latin-1: no warning.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if not may_be_latin_1:
            place = len(data) - len(error.object) + error.start  # the object lacks a mark of UTF-8
            line = data.count(b"\n", 0, place) + 1
            warnings.warn(
                f"{source}:{line}: the byte {data[place]:#04x} at offset {place} is no UTF-8, so "
                "that the whole file is read as Latin-1; save it as UTF-8 if it is something else",
                stacklevel=3,
            )
        return data.decode("latin-1")


def read_tsv(
    path: Path, columns: Sequence[str] | None, *, skip_malformed: bool = False
) -> list[Row]:
    """Rows of tab-separated values in which quotes are ordinary characters.

    Args:
      path: the file.
      columns: names of the columns of a file without a head line; None reads them from its head.
      skip_malformed: leave rows of another number of fields out, with a warning; else refuse them.

    Raises:
      ValueError: listing lines with other numbers of fields.
    """
    lines = read_text(path).replace("\r\n", "\n").split("\n")
    first = 1
    if columns is None:
        columns, lines, first = lines[0].split("\t"), lines[1:], 2
    numbered = [(first + place, line.split("\t")) for place, line in enumerate(lines) if line]
    wrong = [(number, len(fields)) for number, fields in numbered if len(fields) != len(columns)]
    problems = [f"{path}:{number}: {count} fields" for number, count in wrong]
    wanted = f"{len(columns)} fields separated by tabs ({', '.join(columns)})"
    if skip_malformed and problems and len(problems) < len(numbered) / 10:
        warnings.warn(
            f"{len(problems)} rows left out, wanted {wanted}: {', '.join(problems[:5])}",
            stacklevel=2,
        )
        numbered = [(number, f) for number, f in numbered if len(f) == len(columns)]
    else:
        raise_problems(problems, f"wanted {wanted}")
    return [
        Row(f"{path}:{number}", dict(zip(columns, fields, strict=True)))
        for number, fields in numbered
    ]


def read_csv(path: Path, delimiter: str = ",") -> list[Row]:
    """Rows of a CSV file with a head line, quoted as spreadsheets do.

    Args:
      path: the file.
      delimiter: between fields.

    Raises:
      ValueError: listing lines with other numbers of fields, or naming one that is no CSV.
    """
    (_, columns), *numbered = _csv_lines(path, delimiter)
    rows, problems = [], []
    for number, fields in numbered:
        if not fields:
            continue
        place = f"{path}:{number}"
        if len(fields) != len(columns):
            problems.append(f"{place}: {len(fields)} fields")
        else:
            rows.append(Row(place, dict(zip(columns, fields, strict=True))))
    raise_problems(problems, f"wanted {len(columns)} fields ({', '.join(columns)})")
    return rows


def _csv_lines(path: Path, delimiter: str) -> list[tuple[int, list[str]]]:
    """The number of the line on which every row ends, and its fields of any length."""
    text = read_text(path)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    before = csv.field_size_limit()  # 131,072 characters: less than a long document
    csv.field_size_limit(max(before, len(text)))
    try:
        return [(reader.line_num, fields) for fields in reader]
    except csv.Error as error:
        raise ValueError(
            f"{path}:{reader.line_num}: {error}; wanted fields separated by {delimiter!r}, those "
            "with quotes or line breaks in double quotes"
        ) from error
    finally:
        csv.field_size_limit(before)


def read_jsonl(path: Path) -> list[Row]:
    """Rows of a file with one JSON object a line.

    Args:
      path: the file.

    Raises:
      ValueError: listing lines that hold something else.
    """
    rows, problems = [], []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"{path}:{number}: {error}")
            continue
        if isinstance(fields, dict):
            rows.append(Row(f"{path}:{number}", fields))
        else:
            problems.append(f"{path}:{number}: a {type(fields).__name__}")
    raise_problems(problems, "wanted one JSON object a line")
    return rows


def check_columns(rows: Sequence[Row], columns: Iterable[str], path: Path) -> None:
    """Refuse rows that lack columns.

    Args:
      rows: of one file.
      columns: that are needed.
      path: of the file.

    Raises:
      ValueError: if there are no rows, or naming the columns that are missing and those there are.
    """
    if not rows:
        raise ValueError(f"{path} has a head line and no rows; wanted one example a line")
    wanted = list(columns)
    for row in rows:
        missing = [column for column in wanted if column not in row.fields]
        if missing:
            raise ValueError(
                f"{row.place}: no column {', '.join(map(repr, missing))}; wanted {wanted}, the "
                f"columns are {list(row.fields)}"
            )


def raise_problems(problems: Sequence[str], wanted: str) -> None:
    """One error for all mistakes of an input; nothing if there are none.

    Args:
      problems: file, line and what is wrong, each.
      wanted: what is allowed, and what to do.

    Raises:
      ValueError: if there is a problem.
    """
    if problems:
        more = f"\n  and {len(problems) - _MAX_LISTED} more" if len(problems) > _MAX_LISTED else ""
        listed = "\n  ".join(problems[:_MAX_LISTED])
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        raise ValueError(f"{count}; {wanted}:\n  {listed}{more}")
