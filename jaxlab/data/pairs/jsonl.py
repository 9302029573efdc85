"""Text files of Chinese-CLIP: one JSON object a line.

`{split}_texts.jsonl` has `{"text_id": 1, "text": "...", "image_ids": [7]}`; the derived
`{split}_texts.tr.jsonl` has `{"image_id": 7, "text_ids": [1]}`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxlab.data.pairs.records import (
    OnError,
    ProblemList,
    TextRecord,
    parse_id,
    replaced_file,
    require_file,
    texts_of_images,
)


class Texts(NamedTuple):
    """The texts of a split.

    Attributes:
      records: good records in file order.
      num_skipped: lines left out under the policy "skip".
    """

    records: tuple[TextRecord, ...]
    num_skipped: int


def read_texts(path: str | Path, *, on_error: OnError = "error") -> Texts:
    """Reads a `{split}_texts.jsonl` file.

    Args:
      path: the file.
      on_error: what to do with broken lines: raise them all, or skip and count them.

    Raises:
      FileNotFoundError: if the file is missing.
      ValueError: listing broken lines (no JSON object, missing or wrong field, id that is no
        integer or repeats); or if no record is left.
    """
    path = require_file(path, 'lines {"text_id": int, "text": str, "image_ids": [int]}')
    problems = ProblemList(path, on_error)
    records: dict[int, TextRecord] = {}
    for number, line in numbered_lines(path):
        try:
            record = _parse_text(parse_object(line, ("text_id", "text", "image_ids")))
            if record.text_id in records:
                raise ValueError(f"text_id={record.text_id} repeats an earlier line")
        except ValueError as error:
            problems.add(str(number), str(error))
            continue
        records[record.text_id] = record
    problems.finish(len(records), "texts")
    return Texts(tuple(records.values()), problems.count)


def write_texts(path: str | Path, texts: Iterable[TextRecord]) -> int:
    """Writes a `{split}_texts.jsonl` file; it appears only when complete.

    Returns:
      The number of texts.

    Raises:
      ValueError: for an id that is no 64-bit integer, or a text id that repeats.
    """
    seen = set()
    with replaced_file(path) as file:
        for text_id, text, image_ids in texts:
            record = {"text_id": text_id, "text": text, "image_ids": list(image_ids)}
            _parse_text(record)
            if text_id in seen:
                raise ValueError(f"text_id={text_id} repeats; ids of a split must be distinct")
            seen.add(text_id)
            file.write(dump_line(record))
    return len(seen)


def read_image_truth(path: str | Path) -> dict[int, tuple[int, ...]]:
    """Reads a `{split}_texts.tr.jsonl` file: image id -> ids of its texts.

    Raises:
      FileNotFoundError: if the file is missing.
      ValueError: listing broken lines; or if there is none.
    """
    return _read_truth(path, "image_id", "text_ids")


def read_text_truth(path: str | Path) -> dict[int, tuple[int, ...]]:
    """Reads the truth in a `{split}_texts.jsonl` file: text id -> ids of its images.

    The texts themselves need not be there.

    Raises:
      FileNotFoundError: if the file is missing.
      ValueError: listing broken lines; or if there is none.
    """
    return _read_truth(path, "text_id", "image_ids")


def write_image_truth(path: str | Path, texts: Iterable[TextRecord]) -> int:
    """Derives and writes the `{split}_texts.tr.jsonl` file of a split's texts.

    Returns:
      The number of images that some text names.
    """
    truth = texts_of_images(texts)
    with replaced_file(path) as file:
        for image_id, text_ids in truth.items():
            file.write(dump_line({"image_id": image_id, "text_ids": list(text_ids)}))
    return len(truth)


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Line number and content of the lines that are not blank."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


def parse_object(line: bytes, fields: tuple[str, ...]) -> dict[str, Any]:
    """A JSON object that has the fields.

    Raises:
      ValueError: saying what the line has instead.
    """
    try:
        value = json.loads(line)
    except ValueError as error:  # JSON and UTF-8 errors
        raise ValueError(f"malformed JSON ({error}); the line begins with {line[:48]!r}") from error
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}, expected an object with {list(fields)}")
    missing = [name for name in fields if name not in value]
    if missing:
        raise ValueError(f"fields {sorted(value)} lack {missing}; expected {list(fields)}")
    return value


def parse_ids(value: Any, name: str) -> tuple[int, ...]:
    """A list of distinct 64-bit ids.

    Raises:
      ValueError: if it is no list, or an entry is no id or repeats.
    """
    if not isinstance(value, list):
        raise ValueError(f"{name} is a {type(value).__name__}, expected a list of integers")
    ids = tuple(parse_id(entry, f"{name}[{i}]") for i, entry in enumerate(value))
    if len(set(ids)) != len(ids):
        repeated = next(entry for entry in ids if ids.count(entry) > 1)
        raise ValueError(f"{name} repeats {repeated}; ids must be distinct")
    return ids


def dump_line(record: Mapping[str, Any]) -> bytes:
    """One line of JSON in UTF-8, Chinese characters as they are."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8") + b"\n"


def _read_truth(path: str | Path, query: str, found: str) -> dict[int, tuple[int, ...]]:
    path = require_file(path, f'lines {{"{query}": int, "{found}": [int]}}')
    problems = ProblemList(path, "error")
    truth: dict[int, tuple[int, ...]] = {}
    for number, line in numbered_lines(path):
        try:
            fields = parse_object(line, (query, found))
            query_id = parse_id(fields[query], query)
            if query_id in truth:
                raise ValueError(f"{query}={query_id} repeats an earlier line")
            truth[query_id] = parse_ids(fields[found], found)
        except ValueError as error:
            problems.add(str(number), str(error))
    problems.finish(len(truth), f"{query[:-3]}s")
    return truth


def _parse_text(fields: Mapping[str, Any]) -> TextRecord:
    text_id = parse_id(fields["text_id"], "text_id")
    text = fields["text"]
    if not isinstance(text, str):
        raise ValueError(f"text_id={text_id}: text is a {type(text).__name__}, expected a string")
    try:
        return TextRecord(text_id, text, parse_ids(fields["image_ids"], "image_ids"))
    except ValueError as error:
        raise ValueError(f"text_id={text_id}: {error}") from error
