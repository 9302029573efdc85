"""Records of image-text pairs, and what happens to broken ones.

Ids are 64-bit integers and stay on the host: JAX's default integers have 32 bits.
"""

import contextlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

logger = logging.getLogger(__name__)

OnError = Literal["error", "skip"]
MAX_LISTED = 10
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
DECIMAL = re.compile(rb"-?[0-9]{1,19}")


class ImageRecord(NamedTuple):
    """An image as its file's bytes.

    Attributes:
      image_id: 64-bit id.
      image: bytes of a JPEG, PNG, ... file.
    """

    image_id: int
    image: bytes


class TextRecord(NamedTuple):
    """A text and the images it describes.

    Attributes:
      text_id: 64-bit id.
      text: the text.
      image_ids: images it describes; empty in test splits whose truth is withheld.
    """

    text_id: int
    text: str
    image_ids: tuple[int, ...]


class Pair(NamedTuple):
    """One image with one of its texts.

    Attributes:
      image_id: id of the image.
      text_id: id of the text.
      text: the text.
    """

    image_id: int
    text_id: int
    text: str


def flatten_pairs(texts: Iterable[TextRecord]) -> list[Pair]:
    """One pair for every image of every text, in order: many-to-many becomes a list."""
    return [
        Pair(image_id, record.text_id, record.text)
        for record in texts
        for image_id in record.image_ids
    ]


def texts_of_images(texts: Iterable[TextRecord]) -> dict[int, tuple[int, ...]]:
    """Image id -> ids of its texts: the truth of image-to-text retrieval.

    Only images that a text names, in the order in which they are first named.
    """
    truth: dict[int, list[int]] = {}
    for record in texts:
        for image_id in record.image_ids:
            truth.setdefault(image_id, []).append(record.text_id)
    return {image_id: tuple(text_ids) for image_id, text_ids in truth.items()}


class ProblemList:
    """Collects the broken records of one file and ends in one error, or in one counted warning.

    Args:
      path: the file.
      on_error: "error" raises all problems at once at the end; "skip" counts them.

    Attributes:
      count: number of problems so far.
      listed: texts of the first of them.

    Raises:
      ValueError: for another policy.
    """

    def __init__(self, path: Path, on_error: OnError) -> None:
        if on_error not in ("error", "skip"):
            raise ValueError(f"on_error={on_error!r} is not one of 'error', 'skip'")
        self.path = path
        self.on_error = on_error
        self.count = 0
        self.listed: list[str] = []

    def add(self, place: str, problem: str) -> None:
        """Notes a broken record.

        Args:
          place: where in the file, such as "12" (the line) or "key '7'".
          problem: what was found, what was expected.
        """
        self.count += 1
        if len(self.listed) < MAX_LISTED:
            self.listed.append(f"{self.path}:{place}: {problem}")

    def finish(self, num_kept: int, what: str) -> None:
        """Raises what was collected, or reports how much was skipped.

        Args:
          num_kept: number of good records.
          what: their plural, such as "images".

        Raises:
          ValueError: for problems under the policy "error", and when no good record is left.
        """
        more = self.count - len(self.listed)
        listing = "\n  ".join([*self.listed, *([f"... and {more} more"] if more else [])])
        if self.count and self.on_error == "error":
            raise ValueError(
                f"{self.path}: {self.count} broken records. Repair them, or pass "
                f'on_error="skip" to leave them out and count them:\n  {listing}'
            )
        if not num_kept:
            skipped = f" ({self.count} were broken and skipped):\n  {listing}" if self.count else ""
            raise ValueError(
                f"{self.path}: the split is empty, expected at least one of its {what}; check that "
                f"the file belongs to this split and was written completely{skipped}"
            )
        if self.count:
            logger.warning(
                "%s: skipped %d broken records, kept %d %s:\n  %s",
                self.path,
                self.count,
                num_kept,
                what,
                listing,
            )


def parse_id(value: Any, name: str) -> int:
    """A 64-bit id.

    Raises:
      ValueError: if it is no integer (a string of digits is none) or does not fit 64 bits.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name}={value!r} is not an integer; ids are 64-bit integers")
    if not INT64_MIN <= value <= INT64_MAX:
        raise ValueError(f"{name}={value} does not fit 64 bits")
    return value


def parse_decimal(value: bytes, name: str) -> int:
    """A 64-bit id from its decimal digits.

    Raises:
      ValueError: if it is anything else.
    """
    if not DECIMAL.fullmatch(value):
        raise ValueError(
            f"{name}={value[:32].decode('utf-8', 'replace')!r} is not an integer; ids are 64-bit "
            "integers in decimal digits"
        )
    return parse_id(int(value), name)


def require_file(path: str | Path, what: str) -> Path:
    """The path, if it exists.

    Raises:
      FileNotFoundError: saying what was expected there.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; expected {what}. Check the folder and the name of the split"
        )
    return path


@contextlib.contextmanager
def replaced_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file that takes its name only when it was written completely."""
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
