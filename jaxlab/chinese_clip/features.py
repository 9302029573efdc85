"""Features of whole data sets: read, decode and tokenise in threads, encode over the mesh.

Batches are split over the `data` axis; the last one is padded. While the devices encode a batch the
next one is loaded and the one before is fetched.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int64, PyTree

from jaxlab.chinese_clip.evaluate import make_encoders
from jaxlab.chinese_clip.model import ChineseClip
from jaxlab.chinese_clip.published import Weights
from jaxlab.data.images import decode_image, normalize, squash_resize
from jaxlab.data.pairs import FeatureWriter, ImageStore, LmdbImages, TsvImages
from jaxlab.data.pairs.records import OnError
from jaxlab.data.pipeline import Batch, PipelineConfig, Source, make_eval_batches
from jaxlab.parallel import DATA_AXIS, make_mesh, place, shard_batch, to_host
from jaxlab.text import WordPieceTokenizer


class FeatureRows(NamedTuple):
    """Features of consecutive examples.

    Attributes:
      features: normalised, float32.
      skipped: positions among them of broken examples, whose features mean nothing.
    """

    features: Float[np.ndarray, "rows dim"]
    skipped: Int64[np.ndarray, " skipped"]


class FeatureExtractor:
    """Both towers of a model over a mesh, with what comes before them."""

    def __init__(
        self,
        weights: Weights,
        *,
        mesh: Mesh | None = None,
        dtype: DTypeLike = np.float32,
        batch_size: int = 128,
        num_threads: int = 4,
        compat: str = "white",
    ) -> None:
        """Places the model on the devices.

        Args:
          weights: a model, or one tower of it.
          mesh: the devices; None takes all.
          dtype: type of the computation.
          batch_size: rows of a batch over all devices; rounded up to a multiple of them.
          num_threads: threads that read, decode and tokenise.
          compat: how images become RGB, see `decode_image`.

        Raises:
          ValueError: if the batch is not positive or `compat` is unknown.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} is not positive")
        if compat not in ("white", "original"):
            raise ValueError(f"compat={compat!r} is not one of 'white', 'original'")
        self.config = weights.config
        self.mesh = make_mesh() if mesh is None else mesh
        num_devices = self.mesh.shape[DATA_AXIS]
        self.batch_size = -(-batch_size // num_devices) * num_devices
        self._num_threads, self._compat = num_threads, compat
        self._variables = place(self.mesh, weights.variables)
        self._encoders = make_encoders(ChineseClip(weights.config, dtype=dtype), normalize)
        self._tokenizer = WordPieceTokenizer()

    def images(
        self, images: Source, *, start: int = 0, on_error: OnError = "error"
    ) -> Iterator[FeatureRows]:
        """Features of images, a batch at a time.

        Args:
          images: `StoredImages` or `PictureFiles`, or another source of `image` and `name`.
          start: how many of the first to leave out.
          on_error: whether an image that cannot be decoded stops the run or is skipped.

        Raises:
          ValueError: naming an image that cannot be decoded.
        """
        size = self.config.vision.image_size

        def transform(example: dict[str, Any]) -> dict[str, Any]:
            image = decode_image(example["image"], example_id=example["name"], compat=self._compat)
            return {"inputs": squash_resize(image, size)}

        yield from self._encode(self._encoders.image, images, transform, start, on_error)

    def texts(self, texts: Sequence[str], *, start: int = 0) -> Iterator[FeatureRows]:
        """Features of texts, a batch at a time; cleaned as the original does with data sets.

        Args:
          texts: the texts.
          start: how many of the first to leave out.
        """
        length = self.config.context_length

        def transform(example: dict[str, Any]) -> dict[str, Any]:
            ids = self._tokenizer.tokenize(example["text"], context_length=length, clean=True)
            return {"inputs": ids[0]}

        source = _Texts(texts)
        yield from self._encode(self._encoders.text, source, transform, start, "error")

    def encode_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        """Features of texts, all at once."""
        return np.concatenate([rows.features for rows in self.texts(texts)])

    def _encode(
        self,
        encode: Callable[[PyTree, Any], Array],
        source: Source,
        transform: Callable[[dict[str, Any]], dict[str, Any]],
        start: int,
        on_error: OnError,
    ) -> Iterator[FeatureRows]:
        rest = _Rest(source, start)
        if not len(rest):
            return
        batches = make_eval_batches(
            rest,
            self.batch_size,
            transform=transform,
            config=PipelineConfig(
                num_threads=self._num_threads, corrupt=on_error, max_corrupt=len(rest)
            ),
        )
        done = 0
        for features, mask in self._encode_ahead(encode, batches):
            rows = min(len(features), len(rest) - done)
            yield FeatureRows(features[:rows], np.flatnonzero(~mask[:rows]).astype(np.int64))
            done += rows

    def _encode_ahead(
        self, encode: Callable[[PyTree, Any], Array], batches: Iterable[Batch]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Features and mask of every batch, fetched when the next one is under way."""
        pending: tuple[Array, Array] | None = None
        for batch in batches:
            placed = shard_batch(
                self.mesh, {"inputs": batch["inputs"], "mask": np.asarray(batch["mask"])}
            )
            started = encode(self._variables, placed["inputs"]), placed["mask"]
            if pending is not None:
                yield to_host(pending)
            pending = started
        if pending is not None:
            yield to_host(pending)


class StoredImages:
    """The images of a TSV or LMDB file, as a source."""

    def __init__(self, store: ImageStore, image_ids: Int64[np.ndarray, " images"]) -> None:
        """Looks at a store.

        Args:
          store: the open file.
          image_ids: the images that are wanted, in order.
        """
        self._store, self._ids = store, image_ids

    def __len__(self) -> int:
        """Number of images."""
        return len(self._ids)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """The bytes of an image file, and its name for errors."""
        image_id = int(self._ids[index])
        return {"image": self._store.read(image_id), "name": f"image_id={image_id}"}


class PictureFiles:
    """Picture files, as a source."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Looks at files.

        Args:
          paths: the files.
        """
        self._paths = paths

    def __len__(self) -> int:
        """Number of files."""
        return len(self._paths)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """The bytes of a file, and its path for errors."""
        path = self._paths[index]
        return {"image": path.read_bytes(), "name": str(path)}


def open_images(path: str | Path, *, on_error: OnError = "error") -> TsvImages | LmdbImages:
    """The images of a split, in either of the published forms.

    Args:
      path: a `{split}_imgs.tsv` file, or an LMDB folder `imgs`, or the folder that holds it.
      on_error: what to do with broken lines or entries.

    Raises:
      FileNotFoundError: if there is neither.
      ValueError: listing broken lines; or if no image is left.
    """
    path = Path(path)
    if not path.is_dir():
        return TsvImages(path, on_error=on_error)
    return LmdbImages(path / "imgs" if (path / "imgs").is_dir() else path, on_error=on_error)


def write_all(
    writer: FeatureWriter, rows: Iterable[FeatureRows], on_rows: Callable[[int], object]
) -> int:
    """Writes features as they come and finishes the files.

    Args:
      writer: where; a run that was killed is continued if the rows start at its `rows_done`.
      rows: features of the examples that are missing there, in order.
      on_rows: told the number of rows after every batch, for a progress bar.

    Returns:
      The number of examples that have features.
    """
    for features, skipped in rows:
        writer.write(features, skipped)
        on_rows(len(features))
    return writer.finish()


def fingerprint(weights: Weights) -> str:
    """A short text that differs for different weights: a checksum of sizes and values.

    Args:
      weights: a model, or one tower of it.
    """
    checksum = zlib.crc32(repr(weights.config).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights.variables):
        checksum = zlib.crc32(jax.tree_util.keystr(path).encode(), checksum)
        values = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
        checksum = zlib.crc32(values.tobytes(), checksum)
    return f"{checksum:08x}"


class _Texts:
    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        return {"text": self._texts[index]}


class _Rest:
    """A source without its first examples."""

    def __init__(self, source: Source, start: int) -> None:
        self._source, self._start = source, start

    def __len__(self) -> int:
        return max(len(self._source) - self._start, 0)

    def __getitem__(self, index: int, /) -> Any:
        return self._source[self._start + index]
