"""Images in an ArrayRecord file, the random-access record format of JAX pipelines.

`imgs.array_record` has a record an image: its id as 8 bytes (little-endian, signed) and the bytes
of the image file, without Base64. `imgs.ids.npy` has the ids in the order of the records.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from jaxlab.data.pairs.records import (
    ImageRecord,
    OnError,
    ProblemList,
    parse_id,
    replaced_file,
    require_file,
)
from jaxlab.data.pairs.tsv import check_image

IMAGES, IDS = "imgs.array_record", "imgs.ids.npy"
_ID_BYTES = 8


def write_array_records(folder: str | Path, images: Iterable[ImageRecord]) -> int:
    """Writes images as records; the ids, without which nothing is read, come last.

    Args:
      folder: the folder of the split, such as `records/train`.
      images: records with distinct ids.

    Returns:
      The number of images.

    Raises:
      ImportError: where the package `array_record` is not installed (it exists for Linux only).
      ValueError: for an id that is no 64-bit integer or that repeats.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / IDS).unlink(missing_ok=True)
    seen: dict[int, None] = {}
    # A record a group: reading one does not read its neighbours.
    writer = ArrayRecordWriter(str(folder / IMAGES), "group_size:1")
    try:
        for image_id, image in images:
            parse_id(image_id, "image_id")
            if image_id in seen:
                raise ValueError(f"image_id={image_id} repeats; ids of a split must be distinct")
            seen[image_id] = None
            writer.write(image_id.to_bytes(_ID_BYTES, "little", signed=True) + image)
    finally:
        writer.close()
    with replaced_file(folder / IDS) as file:
        np.save(file, np.fromiter(seen, np.int64, len(seen)))
    return len(seen)


class RecordImages:
    """Images of an ArrayRecord file by id; the images stay on disk.

    Args:
      folder: the folder of the split, such as `records/train`.
      on_error: what to do with broken records: raise them all, or skip and count them.
      verify_images: read every record and decode its picture.

    Attributes:
      image_ids: ids in the order of the records, int64.
      num_skipped: records left out under the policy "skip".

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if the numbers of ids and records differ, listing broken records, or if none is
        left.
    """

    image_ids: Int64[np.ndarray, " images"]

    def __init__(
        self, folder: str | Path, *, on_error: OnError = "error", verify_images: bool = False
    ) -> None:
        self.path = require_file(Path(folder) / IMAGES, "an ArrayRecord file of images")
        ids_path = require_file(Path(folder) / IDS, "the ids of the records, written last")
        ids = np.load(ids_path, allow_pickle=False).astype(np.int64)
        self._reader: Any = None
        if len(ids) != (found := self._records().num_records()):
            raise ValueError(f"{self.path} has {found} records, {ids_path} {len(ids)} ids")
        self._rows = {image_id: row for row, image_id in enumerate(ids.tolist())}
        problems = ProblemList(self.path, on_error)
        for image_id in ids.tolist() if verify_images else ():
            try:
                check_image(self.read(image_id))
            except ValueError as error:
                problems.add(f"image_id={image_id}", str(error))
                del self._rows[image_id]
        problems.finish(len(self._rows), "images")
        self.image_ids = np.fromiter(self._rows, np.int64, len(self._rows))
        self.num_skipped = problems.count

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, image_id: int) -> bool:
        return image_id in self._rows

    def __iter__(self) -> Iterator[ImageRecord]:
        return (ImageRecord(i, self.read(i)) for i in self._rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}

    def read(self, image_id: int) -> bytes:
        """The bytes of an image file.

        Raises:
          KeyError: if there is no such id.
          ValueError: if the record holds another image.
        """
        if image_id not in self._rows:
            raise KeyError(f"{self.path} has no image_id={image_id}")
        [record] = self._records().read([self._rows[image_id]])
        found = int.from_bytes(record[:_ID_BYTES], "little", signed=True)
        if found != image_id:
            raise ValueError(
                f"{self.path}: record {self._rows[image_id]} holds image_id={found}, its ids say "
                f"{image_id}; write both files again"
            )
        return record[_ID_BYTES:]

    def _records(self) -> Any:
        """The reader, opened in the process that uses it."""
        if self._reader is None:
            from array_record.python.array_record_module import ArrayRecordReader

            self._reader = ArrayRecordReader(str(self.path))
        return self._reader
