"""Captions as people have them: a table beside a folder of pictures.

A CSV or TSV file with a header, or a JSONL file with an object a line, has the fields `image` (the
path of the picture in its folder) and `text` (or `caption`), and may have `score`. A picture may
have several lines, and so may a text: equal texts become one text with several images.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxlab.data.pairs.records import OnError, ProblemList, TextRecord, require_file

ENDINGS = {".csv": ",", ".tsv": "\t", ".txt": "\t", ".jsonl": ""}
TEXT_FIELDS = ("text", "caption")


class Caption(NamedTuple):
    """A line of a table of captions.

    Attributes:
      image: path of the picture, relative to its folder.
      text: the caption.
      score: of the pair, None where there is none.
    """

    image: str
    text: str
    score: float | None


class Captions(NamedTuple):
    """A table of captions.

    Attributes:
      rows: the good lines in file order.
      num_skipped: lines left out under the policy "skip".
    """

    rows: tuple[Caption, ...]
    num_skipped: int


def read_captions(path: str | Path, *, on_error: OnError = "error") -> Captions:
    """Reads a table of captions.

    Args:
      path: a `.csv`, `.tsv` (or `.txt`) or `.jsonl` file in UTF-8.
      on_error: what to do with broken lines: raise them all, or skip and count them.

    Raises:
      FileNotFoundError: if the file is missing.
      ValueError: for another ending, a header without the fields, or broken lines (each is named);
        or if no line is left.
    """
    path = require_file(path, "a table of captions with the fields image and text")
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(
            f"{path} ends in {path.suffix!r}; captions are read from {', '.join(ENDINGS)}"
        )
    problems, rows = ProblemList(path, on_error), []
    for number, fields in _numbered_fields(path):
        try:
            rows.append(_parse_caption(fields))
        except ValueError as error:
            problems.add(str(number), str(error))
    problems.finish(len(rows), "captions")
    return Captions(tuple(rows), problems.count)


def make_records(captions: Captions) -> tuple[dict[int, str], list[TextRecord]]:
    """Ids for pictures and texts, each in the order of their first line.

    Args:
      captions: the table.

    Returns:
      image id -> path of the picture, and the texts.
    """
    images: dict[str, int] = {}
    texts: dict[str, dict[int, None]] = {}
    for row in captions.rows:
        image_id = images.setdefault(row.image, len(images))
        texts.setdefault(row.text, {})[image_id] = None
    records = [TextRecord(i, text, tuple(ids)) for i, (text, ids) in enumerate(texts.items())]
    return {image_id: image for image, image_id in images.items()}, records


def _numbered_fields(path: Path) -> Iterator[tuple[int, Any]]:
    """Line number and fields of every line; the fields are text where a line is no object."""
    delimiter = ENDINGS[path.suffix.lower()]
    try:
        text = path.read_text("utf-8-sig")  # spreadsheets begin with a byte order mark
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text ({error}); save it as UTF-8, from a spreadsheet as 'CSV "
            "UTF-8'"
        ) from error
    if not delimiter:
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield number, _parse_line(line)
        return
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, restkey="")
    header = reader.fieldnames or []
    if "image" not in header or not set(TEXT_FIELDS) & set(header):
        raise ValueError(
            f"{path}:1: the header is {list(header)}; wanted the columns image and text (or "
            f"caption), divided by {'tabs' if delimiter == chr(9) else 'commas'}"
        )
    for fields in reader:
        yield reader.line_num, fields


def _parse_line(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        return f"malformed JSON ({error}); the line begins with {line[:48]!r}"


def _parse_caption(fields: Any) -> Caption:
    if isinstance(fields, str):
        raise ValueError(fields)
    if not isinstance(fields, dict):
        raise ValueError(f"a JSON {type(fields).__name__}, expected an object with image and text")
    if "" in fields:
        raise ValueError("more columns than the header; put texts with the divider into quotes")
    image = fields.get("image")
    text = next((fields[name] for name in TEXT_FIELDS if fields.get(name) is not None), None)
    for name, value in (("image", image), ("text", text)):
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{name} is {value!r}, expected a string that is not empty")
    score = fields.get("score")
    try:
        return Caption(str(image), str(text), None if score in (None, "") else float(str(score)))
    except ValueError as error:
        raise ValueError(f"score is {score!r}, expected a number") from error
