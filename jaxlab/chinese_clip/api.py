"""A trained Chinese CLIP as one object: pictures and texts in, features and similarities out.

Use::

    from jaxlab import chinese_clip as clip

    model = clip.load("ViT-B-16")  # or a .pt file, or a folder of weights
    found = model.similarity(["pokemon.jpeg"], ["杰尼龟", "妙蛙种子", "小火龙", "皮卡丘"])
    found.probabilities  # (1, 4), rows sum to 1, as `get_similarity` of the original and a softmax

Inputs are what people have (paths, bytes, Pillow images, arrays, texts); outputs are NumPy arrays.
Batches are padded to powers of two, so that few programs compile, and are spread over the devices.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Float, PyTree, UInt8

from jaxlab.checkpoints.foreign.names import flatten
from jaxlab.chinese_clip.calibration import MatchCalibration
from jaxlab.chinese_clip.downloads import find_checkpoint
from jaxlab.chinese_clip.inputs import (
    TEXT_LENGTH_STEP,
    as_pictures,
    check_ids,
    check_transformed,
    chunks,
    open_picture,
    pad_rows,
    split_rows,
)
from jaxlab.chinese_clip.loading import MODEL_FOLDER, load_weights
from jaxlab.chinese_clip.model import ChineseClip, ChineseClipConfig, normalize
from jaxlab.chinese_clip.published import Weights, config_to_dict
from jaxlab.chinese_clip.texts import trim_padding
from jaxlab.data import images as pictures
from jaxlab.parallel import DATA_AXIS, make_mesh, place, shard_batch
from jaxlab.text import WordPieceTokenizer

TOWER_PARTS: Mapping[str, tuple[str, ...]] = {
    "both": ("visual", "bert", "text_projection", "logit_scale"),
    "image": ("visual", "logit_scale"),
    "text": ("bert", "text_projection", "logit_scale"),
}
CALIBRATION_FILE = "calibration.json"
_THREADS = 8
_NOT_IN_SHAPES = ("num_heads", "activation", "layer_norm_epsilon")


class Similarity(NamedTuple):
    """How alike every image and every text are.

    Attributes:
      cosines: of the normalised features.
      logits_per_image: cosines times the multiplier of the model, as the original gives them; the
        transpose is what it calls logits per text.
      probabilities: softmax of each image's logits over the texts: which text fits best, given that
        one of them does. Of a single text it is always 1; see `LoadedModel.match_probability`.
    """

    cosines: Float[np.ndarray, "images texts"]
    logits_per_image: Float[np.ndarray, "images texts"]
    probabilities: Float[np.ndarray, "images texts"]


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedModel:
    """A trained model with all that is needed to use it; made by `load`.

    Attributes:
      config: sizes and conventions.
      variables: its variables, on the devices of the mesh.
      name: what it was loaded from.
      mesh: the devices; every batch is spread over them.
      dtype: type of the computation; features are float32.
      batch_size: most pictures or texts in one step.
      compat: how pictures are made RGB, "white" or "original"; see `jaxlab.data.images`.
      apply_exif: whether pictures in files are turned by their EXIF orientation.
      calibration: from cosines to match probabilities; None if it was never fitted.
    """

    config: ChineseClipConfig
    variables: PyTree
    name: str
    mesh: Mesh
    dtype: DTypeLike = jnp.float32
    batch_size: int = 64
    compat: str = "white"
    apply_exif: bool = False
    calibration: MatchCalibration | None = None

    def __repr__(self) -> str:
        """One line, without the weights."""
        towers = ["image"] * self.has_image_tower + ["text"] * self.has_text_tower
        return (
            f"LoadedModel({self.name!r}, towers={'+'.join(towers)}, embed_dim={self.embed_dim}, "
            f"dtype={np.dtype(self.dtype).name}, devices={self.mesh.size}, "
            f"calibrated={self.calibration is not None})"
        )

    @property
    def has_image_tower(self) -> bool:
        """Whether pictures can be encoded."""
        return "visual" in self.variables["params"]

    @property
    def has_text_tower(self) -> bool:
        """Whether texts can be encoded."""
        return "bert" in self.variables["params"]

    @property
    def embed_dim(self) -> int:
        """Length of a feature."""
        return self.config.embed_dim

    @functools.cached_property
    def scale(self) -> float:
        """Multiplier of the cosines, `exp(logit_scale)`.

        Raises:
          ValueError: if the weights hold none, as those of an image tower alone.
        """
        if "logit_scale" not in self.variables["params"]:
            raise ValueError(
                f"{self.name} holds no logit_scale, so that cosines have no multiplier; load a "
                "whole model, or compare features by their inner products"
            )
        return float(np.exp(np.float32(self.variables["params"]["logit_scale"])))

    @functools.cached_property
    def tokenizer(self) -> WordPieceTokenizer:
        """The tokenizer of the text tower."""
        return WordPieceTokenizer()

    @functools.cached_property
    def fingerprints(self) -> Mapping[str, str]:
        """A checksum of each tower that is there, `image` and `text`: weights and sizes.

        Two models with the same checksum give the same features; an index remembers them.
        """
        values = config_to_dict(self.config)
        towers = {"image": ("visual",), "text": ("bert", "text_projection")}
        sizes = {"image": values["vision"], "text": values["text"]}
        params = self.variables["params"]
        return {
            tower: _fingerprint(self.variables, parts, sizes[tower])
            for tower, parts in towers.items()
            if parts[0] in params
        }

    def tokenize(
        self,
        texts: Any,
        context_length: int | None = None,
        *,
        clean: bool = False,
        return_truncated: bool = False,
    ) -> Any:
        """Rows of token ids, see `jaxlab.text.WordPieceTokenizer.tokenize`.

        Args:
          texts: one text, or several.
          context_length: length of a row; by default that of the model (52 in the released ones).
          clean: lower-case and straighten curly quotes first.
          return_truncated: also return which texts were too long.

        Returns:
          int32 (texts, context_length), with `return_truncated` a pair of it and a bool array.

        Raises:
          TypeError: if a text is neither str nor bytes; the message names its index.
          ValueError: if the length is out of range.
        """
        length = self.config.context_length if context_length is None else context_length
        if return_truncated:
            return self.tokenizer.tokenize(texts, length, clean, return_truncated=True)
        return self.tokenizer.tokenize(texts, length, clean)

    def image_transform(self, picture: Any) -> Float[np.ndarray, "size size 3"]:
        """A picture as the image tower takes it: squashed to its size, normalised, float32 HWC."""
        return pictures.normalize(self.squash(picture))

    def squash(self, picture: Any) -> UInt8[np.ndarray, "size size 3"]:
        """A picture as RGB, squashed to the size of the image tower.

        Args:
          picture: path, bytes of an image file, Pillow image, or uint8 array (height, width) gray,
            (height, width, 3) RGB or (height, width, 4) RGBA.

        Raises:
          FileNotFoundError: if a path is no file.
          ValueError: if the file is no picture, or the array none of these.
          TypeError: if it is something else.
        """
        image = open_picture(picture, self.compat, self.apply_exif)
        return pictures.squash_resize(image, self.config.vision.image_size)

    def encode_image(
        self, images: Any, *, normalized: bool = True
    ) -> Float[np.ndarray, "images dim"]:
        """Features of pictures.

        Args:
          images: one picture or any number, see `squash`; or a float array (images, size, size, 3)
            or (images, 3, size, size) that `image_transform` (ours or the original's) has made.
          normalized: of unit length; the original's `encode_image` leaves them as they are.

        Returns:
          float32, a row for each picture; (0, dim) for none.

        Raises:
          ValueError: if a picture cannot be read, or the model has no image tower.
          FileNotFoundError: if a path is no file.
          TypeError: if something is no picture; the message names its position.
        """
        self.check_tower("image")
        if isinstance(images, np.ndarray) and np.issubdtype(images.dtype, np.floating):
            blocks: Iterator[np.ndarray] = split_rows(
                check_transformed(images, self.config.vision.image_size), self.batch_size
            )
            return self._encode(blocks, "encode_image", normalized)
        several = as_pictures(images)
        with ThreadPoolExecutor(_THREADS) as pool:
            blocks = (
                np.stack(list(pool.map(self._squash_numbered, *zip(*block, strict=True))))
                for block in chunks(enumerate(several), self.batch_size)
            )
            return self._encode(blocks, "encode_image", normalized)

    def encode_pixels(
        self, pixels: UInt8[np.ndarray, "images size size 3"], *, normalized: bool = True
    ) -> Float[np.ndarray, "images dim"]:
        """Features of pictures that `squash` has made.

        Args:
          pixels: uint8 RGB of the size of the image tower.
          normalized: of unit length.
        """
        self.check_tower("image")
        return self._encode(split_rows(pixels, self.batch_size), "encode_image", normalized)

    def encode_text(
        self,
        texts: Any,
        *,
        clean: bool = True,
        normalized: bool = True,
    ) -> Float[np.ndarray, "texts dim"]:
        """Features of texts.

        Args:
          texts: one text, or several; or the ids that `tokenize` has made.
          clean: lower-case and straighten curly quotes first, as the texts of training were. (The
            original's `tokenize` does not: curly quotes become `[UNK]`.)
          normalized: of unit length; the original's `encode_text` leaves them as they are.

        Returns:
          float32, a row for each text; (0, dim) for none.

        Raises:
          TypeError: if a text is neither str nor bytes; the message names its index.
          ValueError: if the model has no text tower, or ids are no rows of integers.
        """
        self.check_tower("text")
        if isinstance(texts, np.ndarray):
            ids = check_ids(texts, self.config)
        else:
            ids = self.tokenize(texts, clean=clean)
        short = trim_padding(ids, TEXT_LENGTH_STEP) if len(ids) else ids
        return self._encode(split_rows(short, self.batch_size), "encode_text", normalized)

    def similarity(self, images: Any, texts: Any, *, clean: bool = True) -> Similarity:
        """Cosines, logits and probabilities of all images with all texts.

        Args:
          images: as `encode_image` takes them, or features, float (images, dim).
          texts: as `encode_text` takes them, or features, float (texts, dim).
          clean: see `encode_text`.

        Returns:
          Three (images, texts) arrays.

        Raises:
          ValueError: if something cannot be encoded.
          TypeError: if something is no picture or no text.
        """
        image = self._features(images, self.encode_image)
        text = self._features(texts, functools.partial(self.encode_text, clean=clean))
        cosines = image @ text.T
        logits = np.float32(self.scale) * cosines
        weights = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
        return Similarity(cosines, logits, weights / weights.sum(axis=1, keepdims=True))

    def match_probability(
        self, images: Any, texts: Any, *, clean: bool = True
    ) -> Float[np.ndarray, "images texts"]:
        """Probability that an image and a text belong together, for each pair by itself.

        Args:
          images: see `similarity`.
          texts: see `similarity`.
          clean: see `encode_text`.

        Returns:
          float32 in [0, 1].

        Raises:
          ValueError: if the model has no calibration.
        """
        if self.calibration is None:
            raise ValueError(
                f"{self.name} has no calibration: cosines of matching pairs lie near 0.3 to 0.6 "
                "and are no probabilities. Fit one on pairs of your own: "
                "model.with_calibration(fit_calibration(matching_cosines, other_cosines))"
            )
        cosines = self.similarity(images, texts, clean=clean).cosines
        return self.calibration.probability(cosines).astype(np.float32)

    def with_calibration(self, calibration: MatchCalibration) -> "LoadedModel":
        """The same model with match probabilities.

        Args:
          calibration: see `fit_calibration`.
        """
        return dataclasses.replace(self, calibration=calibration)

    def check_tower(self, tower: str) -> None:
        """Refuses work that needs a tower which was not loaded.

        Args:
          tower: "image" or "text".

        Raises:
          ValueError: if it is not there.
        """
        if not (self.has_image_tower if tower == "image" else self.has_text_tower):
            there = sorted(self.variables["params"])
            raise ValueError(
                f"{self.name} was loaded without its {tower} tower (it holds {there}); load it "
                f"with towers='both' or towers={tower!r}, from weights that have it"
            )

    def _squash_numbered(self, number: int, picture: Any) -> np.ndarray:
        try:
            return self.squash(picture)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"images[{number}]: {error}") from error

    def _features(self, inputs: Any, encode: Callable[[Any], np.ndarray]) -> np.ndarray:
        if isinstance(inputs, np.ndarray | jax.Array) and inputs.ndim == 2:
            array = np.asarray(inputs)
            if np.issubdtype(array.dtype, np.floating):
                if array.shape[1] != self.embed_dim:
                    raise ValueError(
                        f"features have shape {array.shape}; those of this model are "
                        f"{self.embed_dim} long"
                    )
                return np.asarray(normalize(jnp.asarray(array)))
        return encode(inputs)

    def _encode(
        self, blocks: Iterable[np.ndarray], method: str, normalized: bool
    ) -> Float[np.ndarray, "rows dim"]:
        """Features of blocks of at most `batch_size` rows, each padded to a power of two."""
        devices = self.mesh.shape[DATA_AXIS]
        apply = _compiled(self.config, jnp.dtype(self.dtype), method)
        variables = self._variables_of(method)
        features = []  # on the device: the next block is prepared while this one is computed
        for block in blocks:
            padded = pad_rows(block, devices)
            raw, unit = apply(variables, shard_batch(self.mesh, {"x": padded})["x"])
            features.append(((unit if normalized else raw), len(block)))
        rows = [np.asarray(array)[:count] for array, count in features]
        return np.concatenate([np.zeros((0, self.embed_dim), np.float32), *rows])

    def _variables_of(self, method: str) -> PyTree:
        """The variables of one tower, so that a program depends on no others."""
        parts = ("visual",) if method == "encode_image" else ("bert", "text_projection")
        params = {name: self.variables["params"][name] for name in parts}
        rest = {k: v for k, v in self.variables.items() if k != "params"}
        return {"params": params, **(rest if method == "encode_image" else {})}


def load(
    path_or_name: str | os.PathLike[str] | Weights = "ViT-B-16",
    *,
    towers: str = "both",
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
    batch_size: int = 64,
    compat: str = "white",
    apply_exif: bool = False,
    download_root: str | os.PathLike[str] | None = None,
    source: str = "huggingface",
) -> LoadedModel:
    """A trained model, ready for pictures and texts.

    Args:
      path_or_name: a file or folder of weights; or the name of a released model, `ViT-B-16`,
        `ViT-L-14`, `ViT-L-14-336`, `ViT-H-14` or `RN50` (or as the hub calls them,
        `OFA-Sys/chinese-clip-vit-base-patch16`), which is looked for on this machine and fetched if
        it is not there; or weights in memory.
      towers: "image" or "text" keeps one tower alone, half the memory and less.
      dtype: type of the computation, `jnp.bfloat16` on accelerators that have it.
      mesh: devices; by default all of this process. Batches are spread over its data axis.
      batch_size: most pictures or texts in one step.
      compat: how pictures are made RGB before they are resized: "white" composes transparency on
        white, "original" does as the original.
      apply_exif: turn pictures in files by their EXIF orientation; the original does not.
      download_root: folder to look for released models in, and to fetch them into.
      source: where to fetch from, `huggingface` or `modelscope`.

    Returns:
      The model, with the calibration that lies beside the weights, if there is one.

    Raises:
      FileNotFoundError: if there is no such path or name, or it is not here and JAXLAB_OFFLINE is
        set.
      ValueError: if the weights are damaged, or lack the tower; or an option is unknown.
      ConnectionError: if a released model cannot be fetched.
    """
    if towers not in TOWER_PARTS:
        raise ValueError(f"towers={towers!r} is unknown; use one of {', '.join(TOWER_PARTS)}")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is not positive")
    if compat not in ("white", "original"):
        raise ValueError(f"compat={compat!r} is not one of 'white', 'original'")
    calibration, name = None, "weights in memory"
    if isinstance(path_or_name, Weights):
        weights = path_or_name
    else:
        path = find_checkpoint(path_or_name, download_root=download_root, source=source)
        weights = load_weights(path)
        # A path is remembered as one that works from elsewhere, a name stays a name.
        name = str(path.absolute()) if Path(path_or_name).exists() else os.fspath(path_or_name)
        calibration = _calibration_beside(path)
    mesh = make_mesh(devices=jax.local_devices()) if mesh is None else mesh
    return LoadedModel(
        config=weights.config,
        variables=place(mesh, _select(weights.variables, towers, name)),
        name=name,
        mesh=mesh,
        dtype=dtype,
        batch_size=batch_size,
        compat=compat,
        apply_exif=apply_exif,
        calibration=calibration,
    )


def _calibration_beside(path: Path) -> MatchCalibration | None:
    """The calibration in the folder of the weights, which in that of a run is `model`."""
    folders = (path, path / MODEL_FOLDER) if path.is_dir() else (path.parent,)
    files = (folder / CALIBRATION_FILE for folder in folders)
    return next((MatchCalibration.load(file) for file in files if file.is_file()), None)


def _select(variables: PyTree, towers: str, name: str) -> PyTree:
    """The variables of the towers that are wanted and there."""
    params = variables["params"]
    parts = [part for part in TOWER_PARTS[towers] if part in params]
    if not {"visual", "bert"} & set(parts):
        raise ValueError(f"{name} holds {sorted(params)} and no tower for towers={towers!r}")
    chosen = {"params": {part: params[part] for part in parts}}
    if "visual" in parts and "batch_stats" in variables:
        chosen["batch_stats"] = variables["batch_stats"]
    return chosen


@functools.lru_cache(maxsize=16)
def _compiled(config: ChineseClipConfig, dtype: np.dtype, method: str) -> Callable[..., Any]:
    """One tower in evaluation mode: `(variables, inputs) -> (features, unit features)`."""
    model = ChineseClip(config, dtype=dtype)

    def apply(variables: PyTree, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        if inputs.dtype == jnp.uint8:
            inputs = pictures.normalize(inputs)
        features: Any = model.apply(variables, inputs, method=method)
        return features, normalize(features)

    return jax.jit(apply)


def _fingerprint(variables: PyTree, parts: Sequence[str], sizes: Mapping[str, Any]) -> str:
    unseen = {name: sizes.get(name) for name in _NOT_IN_SHAPES}
    digest = hashlib.sha256(json.dumps(unseen, sort_keys=True).encode())
    for path, leaf in sorted(flatten(variables).items()):
        if path.split("/")[1] in parts:
            array = np.ascontiguousarray(leaf)
            digest.update(f"{path} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes() if array.ndim == 0 else array.data)
    return digest.hexdigest()
