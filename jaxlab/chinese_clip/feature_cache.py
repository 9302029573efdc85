"""Features of a locked image tower, computed once, kept in array files, read memory-mapped.

In the first stage the image tower does not change: an image that is seen in many epochs need not go
through it every time. The cache holds the features of K augmented views of every image, of which a
step takes one. Per training pair a step then costs what the text tower costs: by the published
forward costs (forward of the image, forward and backward of the text, against the latter alone)
2.3x less for ViT-B/16, 7.0x for ViT-L/14, 15.3x for ViT-L/14 at 336 pixels, 4.5x for ViT-H/14; and
no picture is decoded. The price is K passes over the images, and 4 (or 2) bytes * K * width of the
embedding an image.

A folder holds `identity.json` and one `features_{i}.npy` of shape (images, views, dim) for every
few thousand images. A file appears when it is complete: a killed run goes on with the next one, and
several processes share the work file by file. What is in `identity.json` (the tower, the images,
the augmentation) is compared before a file is used.
"""

import hashlib
import itertools
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Float32, Int64, PyTree, UInt8

from jaxlab import parallel
from jaxlab.checkpoints.fingerprints import tree_sha256
from jaxlab.data.identity import check_identity, read_json, write_json
from jaxlab.data.pairs import PairSource
from jaxlab.data.pairs.records import OnError, ProblemList, replaced_file

logger = logging.getLogger(__name__)

IDENTITY = "identity.json"
SHARD_ROWS = 4096
SAY_EVERY_S = 10.0

Identity = Mapping[str, str | int]
LoadView = Callable[[int, np.random.Generator], UInt8[np.ndarray, "height width 3"]]
Encode = Callable[[np.ndarray], Any]


class CachePlan(NamedTuple):
    """What a cache is to hold.

    Attributes:
      folder: where it lies, shared by all processes.
      image_ids: the images, distinct.
      num_views: K, augmented views of each.
      seed: of the augmentation.
      identity: what the features depend on beside these: tower, augmentation, files.
      dtype: `float32`, or `float16` for half the space (relative error 5e-4).
    """

    folder: Path
    image_ids: Int64[np.ndarray, " images"]
    num_views: int
    seed: int
    identity: Identity
    dtype: Literal["float32", "float16"] = "float32"

    @property
    def num_shards(self) -> int:
        """Number of array files."""
        return -(-len(self.image_ids) // SHARD_ROWS)

    def shard_ids(self, shard: int) -> Int64[np.ndarray, " images"]:
        """The images of an array file."""
        return self.image_ids[shard * SHARD_ROWS : (shard + 1) * SHARD_ROWS]

    def whole_identity(self) -> dict[str, str | int]:
        """All that the features depend on."""
        return {
            **self.identity,
            "images": hashlib.sha256(self.image_ids.tobytes()).hexdigest(),
            "num_images": len(self.image_ids),
            "num_views": self.num_views,
            "seed": self.seed,
            "dtype": self.dtype,
        }


class FeatureCache:
    """The features of a complete cache.

    Args:
      plan: what it holds.

    Attributes:
      num_views: views of every image.
      broken_ids: images that could not be decoded and have no features.

    Raises:
      FileNotFoundError: if an array file is missing.
      ValueError: if one has another shape than the plan says.
    """

    def __init__(self, plan: CachePlan) -> None:
        self.num_views = plan.num_views
        self._rows = {image_id: row for row, image_id in enumerate(plan.image_ids.tolist())}
        self._shards = [self._map(plan, shard) for shard in range(plan.num_shards)]
        self.broken_ids = frozenset(
            image_id
            for shard in range(plan.num_shards)
            for image_id in read_json(_broken_file(plan, shard), [])
        )

    def __contains__(self, image_id: int) -> bool:
        return image_id in self._rows and image_id not in self.broken_ids

    def read(self, image_id: int, view: int) -> Float32[np.ndarray, " dim"]:
        """The normalised features of one view of an image.

        Raises:
          KeyError: if the cache has none of that image.
        """
        if image_id not in self:
            raise KeyError(f"the feature cache has no image_id={image_id}")
        shard, row = divmod(self._rows[image_id], SHARD_ROWS)
        return self._shards[shard][row, view].astype(np.float32)

    @staticmethod
    def _map(plan: CachePlan, shard: int) -> np.ndarray:
        path = _shard_file(plan, shard)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        wanted = (len(plan.shard_ids(shard)), plan.num_views)
        if array.shape[:2] != wanted or array.dtype != plan.dtype:
            raise ValueError(
                f"{path} holds {array.dtype}{list(array.shape)}, wanted {plan.dtype} of "
                f"{wanted[0]} images and {wanted[1]} views; remove the folder to compute it again"
            )
        return array


class CachedPairs:
    """The pairs of a source whose images have features; pictures are not read.

    Args:
      source: the pairs.
      cache: the features.
    """

    def __init__(self, source: PairSource, cache: FeatureCache) -> None:
        self._source = source
        self._kept = source.kept
        if cache.broken_ids:
            chosen = (i for i in source.kept if source.pairs[int(i)].image_id in cache)
            self._kept = np.fromiter(chosen, np.int64)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        pair_index = int(self._kept[index])
        pair = self._source.pairs[pair_index]
        return {
            "example_id": np.int64(pair_index),
            "image_id": np.int64(pair.image_id),
            "text_id": np.int64(pair.text_id),
            "text": pair.text,
        }


def tower_fingerprint(variables: PyTree) -> str:
    """SHA-256 of the image tower of a model, its projection and batch statistics.

    Args:
      variables: variables of the model.
    """
    return tree_sha256(variables, lambda path: path.split("/")[1] == "visual")


def file_size(path: Path) -> int:
    """Bytes of a file, or of the database in a folder: a cheap part of the identity of data."""
    return (path / "data.mdb" if path.is_dir() else path).stat().st_size


def compute_features(
    plan: CachePlan,
    load_view: LoadView,
    encode: Encode,
    *,
    image_size: int,
    batch_size: int = 256,
    num_threads: int = 4,
    on_error: OnError = "error",
) -> FeatureCache:
    """The cache of a plan, after whatever of it was missing has been computed.

    View v of an image draws from `default_rng((seed, image_id, v))`: the features depend neither on
    the number of processes nor on interruptions. In a run of several processes all of them call
    this.

    Args:
      plan: what to compute.
      load_view: `(image_id, generator) -> pixels` of one augmented view; may raise ValueError for a
        picture that is broken. Called from several threads.
      encode: from exactly `batch_size` views to their normalised features, (batch_size, dim).
      image_size: height and width of the views, in pixels.
      batch_size: views that are encoded at a time.
      num_threads: threads that decode and augment.
      on_error: `error` stops at a broken picture, `skip` leaves it out and counts it.

    Returns:
      The cache.

    Raises:
      ValueError: if the folder holds features of something else (every difference is named), or a
        picture is broken.
      OSError: if the disk is full.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    _check_identity(plan)
    missing = [i for i in range(plan.num_shards) if not _shard_file(plan, i).exists()]
    parallel.barrier("feature cache: what is missing")
    mine = missing[jax.process_index() :: jax.process_count()]
    said = time.monotonic()
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        for done, shard in enumerate(mine):
            loader = _ViewLoader(plan.seed, load_view, image_size)
            features = _encode_shard(plan, shard, loader, encode, batch_size, pool)
            _note_broken(plan, shard, loader.broken, on_error)
            with replaced_file(_shard_file(plan, shard)) as file:
                np.save(file, features)
            if time.monotonic() - said > SAY_EVERY_S:
                said = time.monotonic()
                logger.info("%s: %d of %d files", plan.folder, done + 1, len(mine))
    parallel.barrier("feature cache: complete")
    return FeatureCache(plan)


class _ViewLoader:
    """The pixels of a view; of a broken picture black ones, and what is wrong with it."""

    def __init__(self, seed: int, load_view: LoadView, image_size: int) -> None:
        self.broken: dict[int, str] = {}
        self._seed = seed
        self._load_view = load_view
        self._size = image_size

    def __call__(self, view: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
        image_id, number = view
        rng = np.random.default_rng((self._seed, image_id % 2**64, number))
        try:
            return self._load_view(image_id, rng)
        except ValueError as error:
            self.broken[image_id] = str(error)
            return np.zeros((self._size, self._size, 3), np.uint8)


def _encode_shard(
    plan: CachePlan,
    shard: int,
    loader: _ViewLoader,
    encode: Encode,
    batch_size: int,
    pool: ThreadPoolExecutor,
) -> Float[np.ndarray, "images views dim"]:
    """Features of the images of one file, zero where a picture is broken."""
    image_ids = plan.shard_ids(shard).tolist()
    views = list(itertools.product(image_ids, range(plan.num_views)))
    blocks: list[np.ndarray] = []
    running: tuple[Any, int] | None = None
    for start in range(0, len(views), batch_size):
        pixels = list(pool.map(loader, views[start : start + batch_size]))
        filled = np.stack(pixels + pixels[-1:] * (batch_size - len(pixels)))
        # The device works on this batch while the one before is fetched and the next is decoded.
        started = encode(filled)
        if running is not None:
            blocks.append(np.asarray(running[0])[: running[1]])
        running = (started, len(pixels))
    assert running is not None, "a file has at least one image"
    blocks.append(np.asarray(running[0])[: running[1]])
    features = np.concatenate(blocks).reshape(len(image_ids), plan.num_views, -1)
    features[[i in loader.broken for i in image_ids]] = 0.0
    return features.astype(plan.dtype)


def _note_broken(plan: CachePlan, shard: int, broken: Mapping[int, str], on_error: OnError) -> None:
    """Keeps the list of broken pictures beside the features, or stops."""
    problems = ProblemList(plan.folder, on_error)
    for image_id, problem in broken.items():
        problems.add(f"image_id={image_id}", problem)
    problems.finish(max(1, len(plan.shard_ids(shard)) - len(broken)), "images")
    if broken:
        write_json(_broken_file(plan, shard), sorted(broken))


def _check_identity(plan: CachePlan) -> None:
    """Compares the identity in the folder, or writes it where there is none."""
    path, wanted = plan.folder / IDENTITY, plan.whole_identity()
    if parallel.is_main_process() and not path.exists():
        write_json(path, wanted)
    parallel.barrier("feature cache: identity")
    found = read_json(path, {})
    check_identity(found, wanted, plan.folder, "features")


def _shard_file(plan: CachePlan, shard: int) -> Path:
    return plan.folder / f"features_{shard:05d}.npy"


def _broken_file(plan: CachePlan, shard: int) -> Path:
    return plan.folder / f"broken_{shard:05d}.json"
