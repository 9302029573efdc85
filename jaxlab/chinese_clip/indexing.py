"""An index that follows a folder of pictures: built, interrupted, continued, brought up to date.

A picture is known by its path below the folder, its size and the time of its last change: what is
the same since the last update keeps its vector, what is new or changed is encoded, what is gone
leaves. Features are written to a journal every few hundred pictures, from which the next call goes
on after a kill.
"""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxlab.checkpoints.foreign import files
from jaxlab.chinese_clip.api import LoadedModel
from jaxlab.chinese_clip.calibration import MatchCalibration
from jaxlab.chinese_clip.index import IndexInfo, Item, PictureIndex, background_of, make_index
from jaxlab.chinese_clip.index_files import (
    INDEX_FILE,
    JOURNAL,
    is_index,
    load_index,
    read_items,
    save_index,
    write_items,
)
from jaxlab.data.images import decode_image, squash_resize
from jaxlab.training.workdir import lock_workdir

logger = logging.getLogger(__name__)

PART_SIZE = 512
"""Pictures between two writes of the journal: what a kill costs at most."""
REFUSED_FORMATS = frozenset({"EPS", "PDF", "MPEG", "BUFR", "GRIB", "HDF5", "WMF"})
"""Not read: pages and vector graphics that start other programs, and data without a picture."""
_THREADS = 8


class Skipped(NamedTuple):
    """A file that looks like a picture and could not be read.

    Attributes:
      path: below the folder.
      reason: what is wrong with it.
    """

    path: str
    reason: str


@dataclasses.dataclass(frozen=True)
class UpdateReport:
    """What an update did.

    Attributes:
      added: pictures that were new.
      changed: pictures that were encoded again.
      removed: pictures that are gone (or cannot be read any more).
      unchanged: pictures that kept their vectors.
      continued: of those added and changed, how many an interrupted update had done already.
      other_files: files that are no pictures.
      skipped: pictures that could not be read.
    """

    added: int
    changed: int
    removed: int
    unchanged: int
    continued: int
    other_files: int
    skipped: tuple[Skipped, ...]


class Listed(NamedTuple):
    """A file of a folder: path below it, size and time of the last change."""

    path: str
    num_bytes: int
    mtime_ns: int


class Decoded(NamedTuple):
    """A picture ready for the image tower."""

    item: Item
    pixels: np.ndarray


def update_index(
    directory: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    model: LoadedModel,
    *,
    int8: bool = False,
    calibration: MatchCalibration | None = None,
    part_size: int = PART_SIZE,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[PictureIndex, UpdateReport]:
    """Builds the index of a folder, or brings it up to date.

    Args:
      directory: where the index lies or will lie.
      folder: pictures in it and its subfolders, in any format that Pillow reads (of animated ones
        the first frame); hidden files and folders, and links that lead out of it, are left out.
      model: at least its image tower; with a text tower the background of cosines is measured too.
      int8: keep 8-bit vectors beside the float32 ones and search in those.
      calibration: for match probabilities; by default that of the model.
      part_size: pictures between two writes of the journal.
      on_progress: called with the number of files done since the last call; by default a progress
        bar is shown on a terminal.

    Returns:
      The index, as saved, and what was done.

    Raises:
      NotADirectoryError: if the folder does not exist.
      ValueError: if it holds no picture, the directory holds other things, or an index of another
        model.
      BlockingIOError: if another process is updating the same index.
    """
    model.check_tower("image")
    directory, folder = (Path(path).expanduser().absolute() for path in (directory, folder))
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder; give one that holds pictures")
    if part_size < 1:
        raise ValueError(f"part_size={part_size} is not positive")
    if directory.is_dir() and any(directory.iterdir()) and not is_index(directory):
        raise ValueError(
            f"{directory} holds other things and no index; give an empty or a new folder"
        )
    (directory / JOURNAL).mkdir(parents=True, exist_ok=True)
    with lock_workdir(directory / JOURNAL):
        updated = _update(directory, folder, model, int8, calibration, part_size, on_progress)
        shutil.rmtree(directory / JOURNAL)
    return updated


class _Encoded(NamedTuple):
    """What came of some files: path -> item and vector, files left out, number of other files."""

    found: dict[str, tuple[Item, np.ndarray]]
    skipped: list[Skipped]
    other_files: int


def _update(
    directory: Path,
    folder: Path,
    model: LoadedModel,
    int8: bool,
    calibration: MatchCalibration | None,
    part_size: int,
    on_progress: Callable[[int], None] | None,
) -> tuple[PictureIndex, UpdateReport]:
    old = _old_index(directory, folder, model)
    journal = _Journal(directory / JOURNAL, folder, model)
    listed = {e.path: e for e in list_files(folder) if not _is_below(folder, e, directory)}
    before = {} if old is None else dict(zip((i.path for i in old.items), old.items, strict=True))
    kept = {} if old is None else _still_same(zip(old.items, old.vectors, strict=True), listed)
    done = _still_same(journal.read(), {p: e for p, e in listed.items() if p not in kept})
    todo = [entry for path, entry in listed.items() if path not in kept and path not in done]
    encoded = _encode_files(folder, todo, model, journal, part_size, on_progress)
    fresh = done | encoded.found
    rows = [(kept.get(path) or fresh[path]) for path in listed if path in kept or path in fresh]
    if not rows:
        raise ValueError(
            f"{folder} holds no picture that can be read ({encoded.other_files} other files, "
            f"{len(encoded.skipped)} damaged pictures); give a folder of pictures"
        )
    vectors = np.stack([vector for _, vector in rows])
    info = IndexInfo(
        folder=str(folder),
        model=model.name,
        fingerprints=dict(model.fingerprints),
        compat=model.compat,
        apply_exif=model.apply_exif,
        calibration=calibration or model.calibration or (old.info.calibration if old else None),
        background=background_of(model, vectors) or (old.info.background if old else ()),
    )
    save_index(make_index(info, [item for item, _ in rows], vectors, int8=int8), directory)
    report = UpdateReport(
        added=sum(path not in before for path in fresh),
        changed=sum(path in before for path in fresh),
        removed=len(set(before) - set(kept) - set(fresh)),
        unchanged=len(kept),
        continued=len(done),
        other_files=encoded.other_files,
        skipped=tuple(encoded.skipped),
    )
    return load_index(directory), report


def _encode_files(
    folder: Path,
    entries: Sequence[Listed],
    model: LoadedModel,
    journal: "_Journal",
    part_size: int,
    on_progress: Callable[[int], None] | None,
) -> _Encoded:
    """Reads and encodes files, a part at a time."""
    result = _Encoded({}, [], 0)
    with _progress(len(entries), on_progress) as advance:
        for start in range(0, len(entries), part_size):
            part = entries[start : start + part_size]
            decoded, skipped, other_files = _decode_part(folder, part, model)
            if decoded:
                vectors = model.encode_pixels(np.stack([one.pixels for one in decoded]))
                items = [one.item for one in decoded]
                journal.write(items, vectors)
                result.found.update((i.path, (i, v)) for i, v in zip(items, vectors, strict=True))
            for one in skipped:
                logger.warning("left out %s: %s", one.path, one.reason)
            result = _Encoded(
                result.found, result.skipped + skipped, result.other_files + other_files
            )
            advance(len(part))
    return result


def _still_same(
    known: Iterable[tuple[Item, np.ndarray]], listed: Mapping[str, Listed]
) -> dict[str, tuple[Item, np.ndarray]]:
    """Of known pictures those whose files have not changed, by path."""
    return {
        item.path: (item, vector)
        for item, vector in known
        if (entry := listed.get(item.path)) is not None
        and (item.num_bytes, item.mtime_ns) == (entry.num_bytes, entry.mtime_ns)
    }


def list_files(folder: Path) -> list[Listed]:
    """The files below a folder in the order of their paths, hidden ones left out.

    Args:
      folder: links to folders in it are not followed, links to files only within it.
    """
    root, found = folder.resolve(), []
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(where, name)
            if name.startswith(".") or not path.is_file():
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                continue
            status = path.stat()
            relative = path.relative_to(folder).as_posix()
            found.append(Listed(relative, status.st_size, status.st_mtime_ns))
    return sorted(found)


def picture_suffixes() -> frozenset[str]:
    """Endings of file names, in lower case, of the formats that are read."""
    Image.init()
    return frozenset(
        suffix
        for suffix, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in REFUSED_FORMATS
    )


def open_formats() -> tuple[str, ...]:
    """The formats of Pillow that are read."""
    Image.init()
    return tuple(kind for kind in Image.OPEN if kind not in REFUSED_FORMATS)


def _decode_part(
    folder: Path, part: Sequence[Listed], model: LoadedModel
) -> tuple[list[Decoded], list[Skipped], int]:
    """The pictures among some files, what was wrong with others, and how many are no pictures."""
    suffixes, formats = picture_suffixes(), open_formats()

    def decode(entry: Listed) -> Decoded | Skipped | None:
        path = folder / entry.path
        looks_like_one = path.suffix.lower() in suffixes
        try:
            return _decode_one(path, entry, model, formats)
        except Image.UnidentifiedImageError:
            return Skipped(entry.path, "no picture, whatever its name") if looks_like_one else None
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            reason = str(error).replace(f"{path}", "it")
            return Skipped(entry.path, reason)

    with ThreadPoolExecutor(_THREADS) as pool:
        results = list(pool.map(decode, part))
    decoded = [one for one in results if isinstance(one, Decoded)]
    return decoded, [r for r in results if isinstance(r, Skipped)], sum(r is None for r in results)


def _decode_one(path: Path, entry: Listed, model: LoadedModel, formats: tuple[str, ...]) -> Decoded:
    Image.open(path, formats=formats).close()  # the header alone: no picture, or a refused format
    image = decode_image(
        path.read_bytes(), example_id=path, compat=model.compat, apply_exif=model.apply_exif
    )
    pixels = squash_resize(image, model.config.vision.image_size)
    return Decoded(Item(*entry, image.width, image.height), pixels)


def _old_index(directory: Path, folder: Path, model: LoadedModel) -> PictureIndex | None:
    """The index that is there, if it is one of this folder, model and way of reading."""
    if not (directory / INDEX_FILE).is_file():
        return None
    index = load_index(directory)
    index.check_model(model)
    if Path(index.info.folder) != folder:
        raise ValueError(
            f"{directory} is the index of {index.info.folder}, not of {folder}; give another "
            "directory for the index, or remove this one"
        )
    info = index.info
    if (info.compat, info.apply_exif) != (model.compat, model.apply_exif):
        raise ValueError(
            f"{directory} was made with compat={info.compat!r}, apply_exif={info.apply_exif}, and "
            f"the model reads pictures with {model.compat!r}, {model.apply_exif}; load it in the "
            "same way, or build another index"
        )
    return index


class _Journal:
    """Parts of an update: `part-<n>.npy` with vectors, then `part-<n>.jsonl` with their items.

    The second file makes a part count. `made_by.json` says for what the parts hold; parts made for
    something else are removed.
    """

    def __init__(self, where: Path, folder: Path, model: LoadedModel) -> None:
        self._where = where
        made_by = {
            "folder": str(folder),
            "fingerprint": model.fingerprints["image"],
            "compat": model.compat,
            "apply_exif": model.apply_exif,
        }
        header = where / "made_by.json"
        text = json.dumps(made_by, sort_keys=True)
        if not header.is_file() or header.read_text("utf-8") != text:
            for path in where.glob("part-*"):
                path.unlink()
            with files.replacing(header) as file:
                file.write(text.encode("utf-8"))
        numbers = (int(path.stem.split("-")[1]) for path in where.glob("part-*.npy"))
        self._next = 1 + max(numbers, default=0)

    def read(self) -> Iterator[tuple[Item, np.ndarray]]:
        """Items and vectors of everything that was done."""
        for path in sorted(self._where.glob("part-*.jsonl")):
            vectors = np.load(path.with_suffix(".npy"), allow_pickle=False)
            yield from zip(read_items(path), vectors, strict=True)

    def write(self, items: Sequence[Item], vectors: np.ndarray) -> None:
        """Keeps a part."""
        path = self._where / f"part-{self._next:06d}.npy"
        with files.replacing(path) as file:
            np.save(file, vectors, allow_pickle=False)
        write_items(path.with_suffix(".jsonl"), items)
        self._next += 1


@contextlib.contextmanager
def _progress(
    total: int, on_progress: Callable[[int], None] | None
) -> Iterator[Callable[[int], object]]:
    """The caller's function, or a bar on a terminal."""
    if on_progress is not None:
        yield on_progress
        return
    from tqdm import tqdm

    with tqdm(total=total, unit="file", disable=None) as bar:
        yield bar.update


def _is_below(folder: Path, entry: Listed, directory: Path) -> bool:
    """Whether a file belongs to an index that lies within its own folder."""
    return (folder / entry.path).is_relative_to(directory)
