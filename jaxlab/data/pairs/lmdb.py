"""LMDB folders of Chinese-CLIP: `imgs` and `pairs` databases of one split.

`imgs`: key = decimal id, value = base64 of the image file; `num_images` = count as text.
`pairs`: key = running index, value = pickled (image_id, text_id, text); `num_samples` = count.
The pickles are read by an unpickler that admits tuples, integers and strings and nothing else.
"""

import base64
import io
import os
import pickle
import shutil
import threading
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from jaxlab.data.pairs.records import (
    ImageRecord,
    OnError,
    Pair,
    ProblemList,
    TextRecord,
    flatten_pairs,
    parse_decimal,
    parse_id,
    require_file,
)
from jaxlab.data.pairs.tsv import check_image, decode_base64

NUM_IMAGES, NUM_SAMPLES = b"num_images", b"num_samples"
INITIAL_MAP_BYTES = 16 * 2**20
ENTRIES_PER_TRANSACTION = 1000


class _PairUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(
            f"it names {module_name}.{global_name}; pairs are tuples of integers and strings"
        )

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it has a persistent id; pairs have none")


def unpickle_pair(value: bytes) -> Pair:
    """The pair of a pickled (image_id, text_id, text). Runs no code that the pickle names.

    Raises:
      ValueError: for anything else than two integers and a string.
    """
    try:
        content = _PairUnpickler(io.BytesIO(value)).load()
    except Exception as error:  # broken pickles raise anything
        raise ValueError(f"not a pickled pair ({type(error).__name__}: {error})") from error
    if type(content) is not tuple or len(content) != 3 or type(content[2]) is not str:
        raise ValueError(
            f"a pickled {type(content).__name__} {str(content)[:64]!r}, expected the tuple "
            "(image_id, text_id, text)"
        )
    return Pair(parse_id(content[0], "image_id"), parse_id(content[1], "text_id"), content[2])


def write_lmdb(
    folder: str | Path, images: Iterable[ImageRecord], texts: Iterable[TextRecord]
) -> tuple[int, int]:
    """Writes a split as `folder/imgs` and `folder/pairs`, replacing what is there.

    The map grows as needed, so that no space is reserved. The two databases take their names only
    when they are complete.

    Args:
      folder: the folder of the split, such as `lmdb/train`.
      images: records with distinct ids.
      texts: texts of the split; each pair of an image and a text becomes one entry.

    Returns:
      Numbers of images and of pairs.

    Raises:
      ValueError: for an image id that repeats or is no 64-bit integer.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    num_images = _write_database(folder / "imgs", _image_entries(images), NUM_IMAGES)
    pairs = (
        (b"%d" % index, pickle.dumps(tuple(pair)))
        for index, pair in enumerate(flatten_pairs(texts))
    )
    return num_images, _write_database(folder / "pairs", pairs, NUM_SAMPLES)


def _image_entries(images: Iterable[ImageRecord]) -> Iterator[tuple[bytes, bytes]]:
    seen = set()
    for image_id, image in images:
        parse_id(image_id, "image_id")
        if image_id in seen:
            raise ValueError(f"image_id={image_id} repeats; ids of a split must be distinct")
        seen.add(image_id)
        yield b"%d" % image_id, base64.b64encode(image)


def _write_database(path: Path, entries: Iterable[tuple[bytes, bytes]], count_key: bytes) -> int:
    import lmdb

    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    count, chunk = 0, []
    try:
        with lmdb.open(str(part), map_size=INITIAL_MAP_BYTES) as environment:
            for entry in entries:
                chunk.append(entry)
                count += 1
                if len(chunk) == ENTRIES_PER_TRANSACTION:
                    _put_all(environment, chunk)
                    chunk = []
            _put_all(environment, [*chunk, (count_key, b"%d" % count)])
        shutil.rmtree(path, ignore_errors=True)
        os.replace(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return count


def _put_all(environment: Any, entries: list[tuple[bytes, bytes]]) -> None:
    """Puts entries in one transaction, doubling the map until they fit."""
    import lmdb

    while True:
        try:
            with environment.begin(write=True) as transaction:
                for key, value in entries:
                    transaction.put(key, value)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(2 * environment.info()["map_size"])


# LMDB refuses to open a database twice in a process: sources of one split share the handle.
_open_environments: weakref.WeakValueDictionary[tuple[int, Path], Any] = (
    weakref.WeakValueDictionary()
)
_open_lock = threading.Lock()


class LmdbDatabase:
    """A read-only LMDB database that may be pickled and used after a fork.

    Args:
      path: the database's folder.
      count_key: key that holds the number of entries.

    Raises:
      FileNotFoundError: if there is no database.
      ValueError: if it has no count or cannot be opened.
    """

    def __init__(self, path: str | Path, count_key: bytes) -> None:
        self.path = require_file(Path(path) / "data.mdb", "an LMDB database").parent.resolve()
        self._handle: tuple[int, Any] | None = None
        count = self.get(count_key)
        if count is None:
            raise ValueError(
                f"{self.path}: no key {count_key.decode()!r}; expected the count of its entries. "
                "The database was not written completely, or is of another kind"
            )
        try:
            self.count = parse_decimal(count, count_key.decode())
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, None where there is none."""
        with self._environment().begin() as transaction:
            return transaction.get(key)

    def keys(self) -> Iterator[bytes]:
        """All keys, in the order of their bytes."""
        with self._environment().begin() as transaction:
            yield from transaction.cursor().iternext(keys=True, values=False)

    def _environment(self) -> Any:
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = (os.getpid(), _open_environment(self.path))
        return self._handle[1]


def _open_environment(path: Path) -> Any:
    import lmdb

    key = (os.getpid(), path)
    with _open_lock:
        environment = _open_environments.get(key)
        if environment is None:
            try:
                environment = lmdb.open(
                    str(path), readonly=True, lock=False, readahead=False, max_readers=1024
                )
            except lmdb.Error as error:
                raise ValueError(
                    f"{path}: not a readable LMDB database ({error}); write it again with "
                    "write_lmdb"
                ) from error
            _open_environments[key] = environment
        return environment


class LmdbImages:
    """Images of an `imgs` database by id; the images stay on disk.

    Args:
      path: the database's folder, such as `lmdb/train/imgs`.
      on_error: what to do with broken entries: raise them all, or skip and count them.
      verify_images: read every entry and decode its picture. Without it only keys and their number
        are checked when opening.

    Attributes:
      image_ids: ids in the database's order, int64.
      num_skipped: entries left out under the policy "skip".

    Raises:
      FileNotFoundError: if the database is missing.
      ValueError: listing broken entries; or if none is left.
    """

    image_ids: Int64[np.ndarray, " images"]

    def __init__(
        self, path: str | Path, *, on_error: OnError = "error", verify_images: bool = False
    ) -> None:
        self._database = LmdbDatabase(path, NUM_IMAGES)
        self.path = self._database.path
        problems = ProblemList(self.path, on_error)
        ids = []
        for key in self._database.keys():
            if key == NUM_IMAGES:
                continue
            try:
                image_id = parse_decimal(key, "image_id")
                if b"%d" % image_id != key:
                    raise ValueError(f"expected the decimal id without padding, '{image_id}'")
                if verify_images:
                    check_image(self._decode(image_id, self._database.get(key)))
            except ValueError as error:
                problems.add(f"key {key[:32].decode('utf-8', 'replace')!r}", str(error))
                continue
            ids.append(image_id)
        missing = self._database.count - len(ids) - problems.count
        if missing:
            problems.add(
                f"key {NUM_IMAGES.decode()!r}",
                f"{self._database.count} images announced, {len(ids) + problems.count} present",
            )
        problems.finish(len(ids), "images")
        self.image_ids = np.asarray(ids, np.int64)
        self._known = frozenset(ids)
        self.num_skipped = problems.count

    def __len__(self) -> int:
        return len(self.image_ids)

    def __contains__(self, image_id: int) -> bool:
        return image_id in self._known

    def __iter__(self) -> Iterator[ImageRecord]:
        return (ImageRecord(i, self.read(i)) for i in self.image_ids.tolist())

    def read(self, image_id: int) -> bytes:
        """The bytes of an image file.

        Raises:
          KeyError: if there is no such id.
          ValueError: if the entry is not base64.
        """
        if image_id not in self._known:
            raise KeyError(f"{self.path} has no image_id={image_id}")
        try:
            return self._decode(image_id, self._database.get(b"%d" % image_id))
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error

    def _decode(self, image_id: int, value: bytes | None) -> bytes:
        try:
            return decode_base64(value or b"")
        except ValueError as error:
            raise ValueError(f"image_id={image_id}: {error}") from error


class LmdbPairs:
    """Pairs of a `pairs` database by running index; they stay on disk.

    Args:
      path: the database's folder, such as `lmdb/train/pairs`.

    Raises:
      FileNotFoundError: if the database is missing.
      ValueError: if it is empty.
    """

    def __init__(self, path: str | Path) -> None:
        self._database = LmdbDatabase(path, NUM_SAMPLES)
        self.path = self._database.path
        if not self._database.count:
            raise ValueError(
                f"{self.path}: the split is empty, expected at least one pair; check that its "
                "texts have image_ids"
            )

    def __len__(self) -> int:
        return self._database.count

    def __getitem__(self, index: int) -> Pair:
        """The pair of a running index.

        Raises:
          IndexError: past the end.
          ValueError: if the entry is missing or broken.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index={index} is outside the {len(self)} pairs of {self.path}")
        value = self._database.get(b"%d" % index)
        if value is None:
            raise ValueError(
                f"{self.path}: key '{index}' is missing although num_samples={len(self)}; the "
                "database was not written completely"
            )
        try:
            return unpickle_pair(value)
        except ValueError as error:
            raise ValueError(f"{self.path}: key '{index}': {error}") from error
