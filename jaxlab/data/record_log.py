"""Records of bytes by 64-bit id: written in any order, continued after a kill, read where they lie.

`records.bin` has the records one after the other, `index.bin` a row for each: id, place, size and
checksum. A row is written after its record, so that what a killed writer leaves is a whole index
and perhaps a record too much, which the next writer cuts off. A file that was cut short (a full
disk, a copy that broke) loses its tail to the next writer, and a reader says so.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import Int64, UInt8

from jaxlab.data.pairs.records import require_file

RECORDS, INDEX = "records.bin", "index.bin"

ROW = np.dtype([("id", "<i8"), ("start", "<i8"), ("size", "<i8"), ("crc32", "<u4")])
"""A row of the index."""


class RecordWriter:
    """Appends records to a folder. One process writes at a time.

    Args:
      folder: where they lie; made if it does not exist.

    Attributes:
      num_cut: records of a cut tail that were given up when the folder was opened.

    Raises:
      ValueError: if the records before the tail are damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in (RECORDS, INDEX):
            (self._folder / name).touch()
        rows = _whole_rows(self._folder)
        kept = _without_tail(self._folder, rows)
        self.num_cut = len(rows) - len(kept)
        self._end = int(kept["start"][-1] + kept["size"][-1]) if len(kept) else 0
        self._ids = set(kept["id"].tolist())
        self._records = (self._folder / RECORDS).open("r+b")
        self._index = (self._folder / INDEX).open("r+b")
        self._records.truncate(self._end)
        self._index.truncate(len(kept) * ROW.itemsize)
        for file in (self._records, self._index):
            file.seek(0, 2)

    def __contains__(self, record_id: int) -> bool:
        return record_id in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def append(self, ids: Sequence[int], records: Sequence[bytes]) -> None:
        """Writes records; when it returns they outlast a kill of this process.

        Args:
          ids: one a record, new ones.
          records: their bytes.

        Raises:
          ValueError: if an id is there already, or twice among these; nothing is written then.
          OSError: if the disk is full; the next writer goes on before these records.
        """
        known = sorted({i for i in ids if i in self._ids or list(ids).count(i) > 1})
        if known or len(ids) != len(records):
            raise ValueError(
                f"{self._folder}: {len(ids)} ids for {len(records)} records, of which {known} "
                "have one already; give new ids, one a record"
            )
        rows = np.zeros(len(ids), ROW)
        for row, record_id, record in zip(rows, ids, records, strict=True):
            row["id"], row["start"], row["size"] = record_id, self._end, len(record)
            row["crc32"] = zlib.crc32(record)
            self._end += len(record)
        self._records.write(b"".join(records))
        self._records.flush()
        self._index.write(rows.tobytes())
        self._index.flush()
        self._ids.update(ids)

    def close(self) -> None:
        """Closes the files."""
        self._records.close()
        self._index.close()


class RecordReader:
    """Records by id, mapped into memory.

    Args:
      folder: where they lie.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if the files were cut short or a writer was killed, saying how much is there.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        path = require_file(self._folder / RECORDS, "records")
        index = require_file(self._folder / INDEX, "the index of records")
        rows = _whole_rows(self._folder)
        size, end = path.stat().st_size, int((rows["start"] + rows["size"]).max(initial=0))
        if index.stat().st_size != rows.nbytes or size != end:
            held = int((rows["start"] + rows["size"] <= size).sum())
            raise ValueError(
                f"{self._folder} is cut short or unfinished: {held} records are whole, the index "
                f"has {index.stat().st_size} bytes for {len(rows)} rows, and {RECORDS} {size} of "
                f"{end} bytes. Run the command that writes it again: it goes on behind the last "
                "whole record"
            )
        order = np.argsort(rows["id"], kind="stable")
        self._rows = rows[order]
        self._ids = np.ascontiguousarray(self._rows["id"])
        self._bytes = np.memmap(path, np.uint8, "r") if size else np.zeros(0, np.uint8)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, record_id: int) -> bool:
        return self._find(record_id) is not None

    @property
    def ids(self) -> Int64[np.ndarray, " records"]:
        """All ids, in order of size."""
        return self._ids.astype(np.int64)

    def read(self, record_id: int) -> UInt8[np.ndarray, " size"]:
        """The bytes of a record.

        Raises:
          KeyError: if there is none.
          ValueError: if it is damaged.
        """
        row = self._find(record_id)
        if row is None:
            raise KeyError(f"{self._folder} has no record of id {record_id}")
        found = self._bytes[row["start"] : row["start"] + row["size"]]
        if zlib.crc32(found.data) != row["crc32"]:
            raise ValueError(
                f"{self._folder}: the record of id {record_id} is damaged (its checksum is wrong); "
                "remove the folder to write it again"
            )
        return found

    def _find(self, record_id: int) -> np.void | None:
        place = int(np.searchsorted(self._ids, record_id))
        if place < len(self._ids) and self._ids[place] == record_id:
            return self._rows[place]
        return None


def _whole_rows(folder: Path) -> np.ndarray:
    """The rows of the index, without a last one that is incomplete."""
    data = (folder / INDEX).read_bytes()
    return np.frombuffer(data[: len(data) // ROW.itemsize * ROW.itemsize], ROW)


def _without_tail(folder: Path, rows: np.ndarray) -> np.ndarray:
    """The rows up to the last whole record."""
    size, kept = (folder / RECORDS).stat().st_size, len(rows)
    with (folder / RECORDS).open("rb") as file:
        while kept:
            row = rows[kept - 1]
            if row["start"] + row["size"] <= size:
                file.seek(int(row["start"]))
                if zlib.crc32(file.read(int(row["size"]))) == row["crc32"]:
                    break
            kept -= 1
    if len(rows) and not kept:
        raise ValueError(
            f"{folder}: none of {len(rows)} records is whole; {RECORDS} and {INDEX} do not belong "
            "together. Remove the folder to write them again"
        )
    return rows[:kept]
