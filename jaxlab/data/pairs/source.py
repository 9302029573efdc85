"""A random-access source of image-text pairs, whichever files they lie in."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from jaxlab.data.pairs.array_records import RecordImages
from jaxlab.data.pairs.jsonl import read_texts
from jaxlab.data.pairs.lmdb import LmdbImages, LmdbPairs
from jaxlab.data.pairs.records import OnError, Pair, ProblemList, flatten_pairs, require_file
from jaxlab.data.pairs.tsv import TsvImages


@runtime_checkable
class ImageStore(Protocol):
    """Images by id: `TsvImages`, `LmdbImages` or `RecordImages`."""

    path: Path

    def __len__(self) -> int:
        """Number of images."""
        ...

    def __contains__(self, image_id: int) -> bool:
        """Whether there is an image of that id."""
        ...

    def read(self, image_id: int) -> bytes:
        """The bytes of an image file."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class PairSource:
    """One record per pair of an image and a text, for `jaxlab.data.pipeline` or grain.

    A record has `example_id` (int64: the pair's index in the files), `image_id`, `text_id` (int64),
    `image` (bytes of the image file) and `text`. Reading is safe from several threads.

    Attributes:
      images: the images.
      pairs: the pairs.
      kept: index into `pairs` of each record, int64; broken ones are absent.
      num_skipped: broken lines, entries and pairs left out under the policy "skip".
    """

    images: ImageStore
    pairs: Sequence[Pair] | LmdbPairs
    kept: Int64[np.ndarray, " records"]
    num_skipped: int

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        pair_index = int(self.kept[index])
        pair = self.pairs[pair_index]
        return {
            "example_id": np.int64(pair_index),
            "image_id": np.int64(pair.image_id),
            "text_id": np.int64(pair.text_id),
            "image": self.images.read(pair.image_id),
            "text": pair.text,
        }


def open_tsv_pairs(
    images_path: str | Path,
    texts_path: str | Path,
    *,
    on_error: OnError = "error",
    verify_images: bool = False,
) -> PairSource:
    """Pairs of an images TSV and a texts JSONL file.

    Args:
      images_path: `{split}_imgs.tsv`.
      texts_path: `{split}_texts.jsonl`.
      on_error: "error" raises all broken records at once; "skip" leaves them out, counts them in
        `num_skipped` and logs a warning.
      verify_images: decode every picture when opening.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: listing broken records with file and line; texts whose image is missing; or if no
        pair is left.
    """
    images = TsvImages(images_path, on_error=on_error, verify_images=verify_images)
    texts = read_texts(texts_path, on_error=on_error)
    pairs = flatten_pairs(texts.records)
    kept, num_broken = _check_pairs(pairs, images, Path(texts_path), on_error)
    return PairSource(images, pairs, kept, images.num_skipped + texts.num_skipped + num_broken)


def open_lmdb_pairs(
    folder: str | Path, *, on_error: OnError = "error", verify_images: bool = False
) -> PairSource:
    """Pairs of the LMDB folder of a split.

    Args:
      folder: the folder that holds `imgs` and `pairs`, such as `lmdb/train`.
      on_error: as in `open_tsv_pairs`.
      verify_images: as in `open_tsv_pairs`.

    Raises:
      FileNotFoundError: if a database is missing.
      ValueError: listing broken entries; or if no pair is left.
    """
    images = LmdbImages(Path(folder) / "imgs", on_error=on_error, verify_images=verify_images)
    pairs = LmdbPairs(Path(folder) / "pairs")
    kept, num_broken = _check_pairs(pairs, images, pairs.path, on_error)
    return PairSource(images, pairs, kept, images.num_skipped + num_broken)


def open_record_pairs(
    folder: str | Path,
    texts_path: str | Path,
    *,
    on_error: OnError = "error",
    verify_images: bool = False,
) -> PairSource:
    """Pairs of an ArrayRecord file of images and a texts JSONL file.

    Args:
      folder: the folder of the split, such as `records/train`.
      texts_path: `{split}_texts.jsonl`.
      on_error: as in `open_tsv_pairs`.
      verify_images: as in `open_tsv_pairs`.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: as `open_tsv_pairs`.
    """
    images = RecordImages(folder, on_error=on_error, verify_images=verify_images)
    texts = read_texts(texts_path, on_error=on_error)
    pairs = flatten_pairs(texts.records)
    kept, num_broken = _check_pairs(pairs, images, Path(texts_path), on_error)
    return PairSource(images, pairs, kept, images.num_skipped + texts.num_skipped + num_broken)


def open_pairs(
    folder: str | Path, split: str, *, on_error: OnError = "error", verify_images: bool = False
) -> PairSource:
    """Pairs of a split in a Chinese-CLIP data folder, in the first form there of the three.

    Args:
      folder: holds `lmdb/{split}`, or `{split}_texts.jsonl` and `records/{split}` or
        `{split}_imgs.tsv`.
      split: such as "train", "valid" or "test".
      on_error: as in `open_tsv_pairs`.
      verify_images: as in `open_tsv_pairs`.

    Raises:
      FileNotFoundError: if the folder or the split is missing.
      ValueError: listing broken records; or if no pair is left.
    """
    folder = require_file(folder, "a folder with {split}_imgs.tsv and {split}_texts.jsonl, or lmdb")
    if (folder / "lmdb" / split).is_dir():
        return open_lmdb_pairs(
            folder / "lmdb" / split, on_error=on_error, verify_images=verify_images
        )
    texts_path = folder / f"{split}_texts.jsonl"
    if (folder / "records" / split).is_dir():
        return open_record_pairs(
            folder / "records" / split, texts_path, on_error=on_error, verify_images=verify_images
        )
    return open_tsv_pairs(
        folder / f"{split}_imgs.tsv",
        texts_path,
        on_error=on_error,
        verify_images=verify_images,
    )


def _check_pairs(
    pairs: Sequence[Pair] | LmdbPairs, images: ImageStore, path: Path, on_error: OnError
) -> tuple[Int64[np.ndarray, " records"], int]:
    problems = ProblemList(path, on_error)
    kept = []
    for index in range(len(pairs)):
        place = f"pair {index}"
        try:
            pair = pairs[index]
        except ValueError as error:
            problems.add(place, str(error))
            continue
        if pair.image_id not in images:
            problems.add(
                place,
                f"text_id={pair.text_id} names image_id={pair.image_id}, which {images.path} lacks",
            )
            continue
        kept.append(index)
    problems.finish(len(kept), "pairs")
    return np.asarray(kept, np.int64), problems.count
