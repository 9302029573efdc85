"""What the readers of tables share: the partition, optional packages, names in SQL."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple


class Partition(NamedTuple):
    """A part of a table that is read by itself.

    Attributes:
      name: the file or the server, for messages.
      num_rows: its rows; None if only reading tells.
      columns: names of its columns.
      batches: `(names) -> record batches` of these columns, in the order of the rows.
    """

    name: str
    num_rows: int | None
    columns: tuple[str, ...]
    batches: Callable[[Sequence[str]], Iterator[Any]]


def engine(name: str) -> Any:
    """A module of an optional package.

    Raises:
      ModuleNotFoundError: if it is missing, with the way to install it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        package = name.split(".")[0]
        raise ModuleNotFoundError(
            f"{package} is not installed; in the checkout, pip install -e '.[ndv]' brings it"
        ) from None


def quoted(name: str | None) -> str:
    """A name as SQL reads it letter by letter."""
    return '"' + str(name).replace('"', '""') + '"'
