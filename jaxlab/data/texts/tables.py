"""One's own texts from CSV, TSV and JSONL files with named columns."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxlab.data.texts.examples import (
    TextData,
    TextExample,
    TextInfo,
    check_classes,
    count_parts,
    hold_out,
    split_every_tenth,
    text_data,
)
from jaxlab.data.texts.files import (
    Row,
    check_columns,
    checksums,
    find_files,
    read_csv,
    read_jsonl,
    read_tsv,
)
from jaxlab.data.texts.labels import is_blank, make_examples, to_label

logger = logging.getLogger(__name__)

SUFFIXES = (".tsv", ".csv", ".jsonl", ".json")


class Columns(NamedTuple):
    """Names of the columns of a table.

    Attributes:
      text: the text, or the first of a pair.
      pair: the second, or None.
      label: the label, or None if there is none.
      id: a number of the example, or None to count the rows.
    """

    text: str = "text"
    pair: str | None = None
    label: str | None = "label"
    id: str | None = None


def load_tables(
    folder: str | Path,
    columns: Columns | None = None,
    *,
    label_names: Sequence[str] | None = None,
    is_regression: bool = False,
    name: str | None = None,
) -> TextData:
    """Files `train`, `validation` (or `dev`) and `test` with named columns.

    Args:
      folder: of the files, each `.tsv` (quotes are ordinary characters), `.csv` (quoted), or
        `.jsonl` (one object a line). Only the training file must be there: without a test file
        every tenth row is for the test, without a validation file a tenth of the training texts is
        held out; both are logged.
      columns: names of the columns, None for those of `Columns`. A test file may lack the label. An
        empty label is one that is not known; such rows and empty texts are counted in a warning.
      label_names: of the classes; None takes the sorted labels of the training file.
      is_regression: labels are numbers.
      name: of the data set; None takes the folder's.

    Raises:
      FileNotFoundError: if there is no training file.
      ValueError: naming file and line of what is wrong, or if there is only one class.
    """
    columns = columns or Columns()
    folder = Path(folder).expanduser()
    names = {"train": ("train",), "validation": ("validation", "dev", "valid"), "test": ("test",)}
    candidates = {part: [s + x for s in stems for x in SUFFIXES] for part, stems in names.items()}
    paths = find_files(folder, {"train": candidates["train"]})
    for part in ("validation", "test"):
        if any((folder / file).is_file() for file in candidates[part]):
            paths |= find_files(folder, {part: candidates[part]})
    for part, path in paths.items():
        there = [name for name in candidates[part] if (folder / name).is_file()]
        if len(there) > 1:
            warnings.warn(
                f"{folder} has {' and '.join(there)}: {path.name} is read for {part}, the others "
                "are not",
                stacklevel=2,
            )
    rows = {part: read_table(path) for part, path in paths.items()}
    for part, path in paths.items():
        check_columns(rows[part], _needed(columns, rows[part]), path)
        _warn_of_blanks(rows[part], columns, path)
    if is_regression or columns.label is None:
        label_names = ()
    elif label_names is None:
        labels = [row.fields[columns.label] for row in rows["train"]]
        _warn_of_types(labels, columns.label, paths["train"])
        known = {str(label) for label in labels if not is_blank(label)}
        if not known:
            raise ValueError(
                f"{paths['train']}: column {columns.label!r} is empty in all {len(labels)} rows; "
                "give the labels of some, so that it is known which classes there are"
            )
        label_names = sorted(known, key=_numbers_first)
    parts = _to_parts(rows, columns, tuple(label_names))
    counts: dict[str, int] = {}
    if "test" not in parts:
        parts["train"], parts["test"], copies = split_every_tenth(parts["train"])
        counts["also_in_test"] = copies
        _say_held_out("test", len(parts["test"]), len(rows["train"]), folder)
        if copies:
            logger.info("%d further rows have texts of those: left out of training", copies)
    if "validation" not in parts:
        whole = len(parts["train"])
        parts["train"], parts["validation"] = hold_out(parts["train"])
        _say_held_out("validation", len(parts["validation"]), whole, folder)
    if not parts["train"]:
        raise ValueError(
            f"{paths['train']}: all {len(rows['train'])} rows have texts that are held out, and "
            "none is left to train on; give more different texts, or files for test and validation"
        )
    if label_names:
        check_classes(parts["train"], label_names, str(paths["train"]))
    info = TextInfo(str(folder), "", checksums(paths.values()), count_parts(parts, **counts))
    task = "classification" if label_names else "regression"
    return text_data(name or folder.name, task, parts, label_names, info)


def read_table(path: str | Path) -> list[Row]:
    """The rows of a file, by its suffix.

    Args:
      path: `.tsv`, `.csv`, `.jsonl` or `.json` (one object a line).

    Raises:
      ValueError: for another suffix, or naming file and line of what is wrong.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} has the suffix {path.suffix!r}; wanted one of {SUFFIXES}")
    if path.suffix == ".tsv":
        return read_tsv(path, None)
    return read_csv(path) if path.suffix == ".csv" else read_jsonl(path)


def _warn_of_blanks(rows: Sequence[Row], columns: Columns, path: Path) -> None:
    """Count what a file leaves empty, with the first place of each."""
    named = (("text", columns.text), ("text", columns.pair), ("label", columns.label))
    for kind, column in named:
        empty = [row for row in rows if column in row.fields and is_blank(row.fields[column])]
        if column is None or not empty:
            continue
        if kind == "label" and path.name.startswith("test") and len(empty) == len(rows):
            continue  # a test set to predict
        effect = "are kept as they are" if kind == "text" else "count as not known"
        warnings.warn(
            f"{path}: {len(empty)} of {len(rows)} fields of column {column!r} are empty, the first "
            f"in {empty[0].place}; they {effect}",
            stacklevel=3,
        )


def _warn_of_types(labels: Sequence[object], column: str, path: Path) -> None:
    """Tell that labels which may be meant to be the same are written as different types of JSON."""
    kinds = {type(label).__name__: label for label in labels if not is_blank(label)}
    if len(kinds) > 1:
        written = " and ".join(f"{label!r} ({kind})" for kind, label in kinds.items())
        warnings.warn(
            f"{path}: labels of column {column!r} are of several types, such as {written}; each is "
            "the class that it is written as",
            stacklevel=3,
        )


def _say_held_out(part: str, number: int, total: int, folder: Path) -> None:
    logger.info(
        "%s has no file for %s: %d of %d training rows are held out for it",
        folder, part, number, total,
    )  # fmt: skip


def _needed(columns: Columns, rows: Sequence[Row]) -> list[str]:
    """Columns that a file must have; files to test on may have no labels."""
    needed = [name for name in (columns.text, columns.pair, columns.id) if name is not None]
    is_test = bool(rows) and Path(rows[0].place).name.startswith("test")
    return needed if is_test or columns.label is None else [*needed, columns.label]


def _numbers_first(label: str) -> tuple[float, str]:
    number = to_label(label, ())
    return (float("inf") if number is None else float(number), label)


def _to_parts(
    rows: dict[str, list[Row]], columns: Columns, label_names: tuple[str, ...]
) -> dict[str, tuple[TextExample, ...]]:
    parts, first_id = {}, 0
    for part, found in rows.items():
        has_label = columns.label is not None and columns.label in found[0].fields
        parts[part] = make_examples(
            found, text=columns.text, pair=columns.pair,
            label=columns.label if has_label else None, label_names=label_names,
            first_id=first_id, may_lack_labels=True, named_by=" (the classes of the training file)",
        )  # fmt: skip
        first_id += len(found)
    if columns.id is not None:
        parts = _with_ids(parts, rows, columns.id)
    return parts


def _with_ids(
    parts: dict[str, tuple[TextExample, ...]], rows: dict[str, list[Row]], column: str
) -> dict[str, tuple[TextExample, ...]]:
    """The examples with the ids of a column, if these are whole numbers and all different."""
    values = [str(row.fields[column]) for found in rows.values() for row in found]
    if not all(value.removeprefix("-").isdecimal() for value in values):
        raise ValueError(f"column {column!r} holds {values[:3]}; wanted whole numbers as ids")
    if copies := len(values) - len(set(values)):
        warnings.warn(
            f"{copies} of {len(values)} ids of column {column!r} occur before; rows are counted "
            "instead",
            stacklevel=4,
        )
        return parts
    left = iter(values)
    return {
        part: tuple(TextExample(int(next(left)), e.text, e.pair, e.label) for e in examples)
        for part, examples in parts.items()
    }
