r"""Image files of Chinese-CLIP: one image a line, `id<TAB>base64 of the image file`."""

import base64
import binascii
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from jaxlab.data.pairs.records import (
    ImageRecord,
    OnError,
    ProblemList,
    parse_decimal,
    parse_id,
    replaced_file,
    require_file,
)

URL_SAFE_TO_STANDARD = bytes.maketrans(b"-_", b"+/")


def decode_base64(encoded: bytes) -> bytes:
    """The bytes of standard or URL-safe base64.

    Raises:
      ValueError: if a character is neither, or the length is wrong (a truncated line).
    """
    try:
        return base64.b64decode(encoded.translate(URL_SAFE_TO_STANDARD), validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64 ({error}), {len(encoded)} characters") from error


def check_image(image: bytes) -> None:
    """Decodes an image file once.

    Raises:
      ValueError: if it is no image, or a broken one.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(image)) as opened:
            opened.load()
    except Exception as error:  # decoders raise anything on broken bytes
        raise ValueError(
            f"not a readable image ({type(error).__name__}: {error}), {len(image)} bytes that "
            f"begin with {image[:8]!r}"
        ) from error


def write_images_tsv(path: str | Path, images: Iterable[ImageRecord]) -> int:
    """Writes images as `id<TAB>base64` lines, in standard base64.

    Args:
      path: the file; it appears only when complete.
      images: records with distinct ids.

    Returns:
      The number of images.

    Raises:
      ValueError: for an id that is no 64-bit integer or that repeats.
    """
    seen = set()
    with replaced_file(path) as file:
        for image_id, image in images:
            parse_id(image_id, "image_id")
            if image_id in seen:
                raise ValueError(f"image_id={image_id} repeats; ids of a split must be distinct")
            seen.add(image_id)
            file.write(b"%d\t%s\n" % (image_id, base64.b64encode(image)))
    return len(seen)


class TsvImages:
    """Images of a TSV file by id. Holds ids and offsets; the images stay on disk.

    The whole file is read once to check every line. Reading an image opens the file anew, so
    threads and processes may share an instance.

    Args:
      path: the `{split}_imgs.tsv` file.
      on_error: what to do with broken lines: raise them all, or skip and count them.
      verify_images: decode every picture as well. Without it a line whose base64 is sound but
        whose bytes are no image is found only when the image is decoded.

    Attributes:
      image_ids: ids in file order, int64.
      num_skipped: lines left out under the policy "skip".

    Raises:
      FileNotFoundError: if the file is missing.
      ValueError: listing broken lines (columns, id, repeated id, base64, image); or if no
        good one is left.
    """

    image_ids: Int64[np.ndarray, " images"]

    def __init__(
        self, path: str | Path, *, on_error: OnError = "error", verify_images: bool = False
    ) -> None:
        self.path = require_file(path, "image lines `id<TAB>base64`")
        problems = ProblemList(self.path, on_error)
        self._spans: dict[int, tuple[int, int]] = {}  # id -> offset and length of the base64
        for number, offset, line in _lines(self.path):
            try:
                image_id, encoded = _split_line(line)
                if image_id in self._spans:
                    raise ValueError(f"image_id={image_id} repeats an earlier line")
                _check_payload(image_id, encoded, verify_images)
            except ValueError as error:
                problems.add(str(number), str(error))
                continue
            self._spans[image_id] = (offset + line.index(b"\t") + 1, len(encoded))
        problems.finish(len(self._spans), "images")
        self.image_ids = np.fromiter(self._spans, np.int64, len(self._spans))
        self.num_skipped = problems.count

    def __len__(self) -> int:
        return len(self._spans)

    def __contains__(self, image_id: int) -> bool:
        return image_id in self._spans

    def __iter__(self) -> Iterator[ImageRecord]:
        return (ImageRecord(image_id, self.read(image_id)) for image_id in self._spans)

    def read(self, image_id: int) -> bytes:
        """The bytes of an image file.

        Raises:
          KeyError: if the file has no such id.
          ValueError: if the file was changed since it was opened.
        """
        if image_id not in self._spans:
            raise KeyError(f"{self.path} has no image_id={image_id}")
        offset, length = self._spans[image_id]
        with self.path.open("rb") as file:
            file.seek(offset)
            encoded = file.read(length)
        try:
            return decode_base64(encoded)
        except ValueError as error:
            raise ValueError(
                f"{self.path}: image_id={image_id}: {error}. The file changed after it was opened"
            ) from error


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Line number, byte offset and content of the lines that are not blank."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, offset, line
            offset += len(line)


def _split_line(line: bytes) -> tuple[int, bytes]:
    columns = line.rstrip(b"\r\n").split(b"\t")
    if len(columns) != 2:
        raise ValueError(
            f"{len(columns)} columns, expected 2: id<TAB>base64 of the image file; the line begins "
            f"with {line[:32]!r}"
        )
    return parse_decimal(columns[0], "image_id"), columns[1]


def _check_payload(image_id: int, encoded: bytes, verify_image: bool) -> None:
    try:
        image = decode_base64(encoded)
        if not image:
            raise ValueError("the image column is empty, expected base64 of an image file")
        if verify_image:
            check_image(image)
    except ValueError as error:
        raise ValueError(f"image_id={image_id}: {error}") from error
