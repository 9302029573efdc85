"""Which model a checkpoint of the original belongs to, told from the shapes of its tensors."""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from jaxlab.chinese_clip.model import MODELS, ChineseClipConfig
from jaxlab.chinese_clip.tables import VisionConfig
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.resnet import ModifiedResNetConfig
from jaxlab.layers.vit import VisionTransformerConfig

Shapes = Mapping[str, tuple[int, ...]]
_Tower = TypeVar("_Tower", VisionTransformerConfig, ModifiedResNetConfig, BertConfig)

_HEAD_WIDTH = 64
_HEADS_BY_VISION_WIDTH = {1280: 16}
"""Heads cannot be seen in shapes: 64 channels a head, except in ViT-H/14 (80)."""


def detect_config(shapes: Shapes, like: ChineseClipConfig | None = None) -> ChineseClipConfig:
    """The config of a state dict of the original, from names and shapes alone.

    Widths, patch, grid, layers, feed-forward widths, vocabulary, positions and the joint dimension
    are read off. Heads, activations, epsilons, dropout and the strides of a ResNet's stem cannot be
    seen: they take the original's values (64 channels a head, 80 at image width 1280).

    Args:
      shapes: original name (without prefix) -> shape.
      like: a config to take what cannot be seen from, where the kind of tower is the same.

    Returns:
      The config; one of `MODELS` for the published sizes.

    Raises:
      ValueError: if tensors that the sizes are read from are missing or of another rank (all are
        named), or the sizes fit no model.
    """
    read = _Reader(shapes)
    vision, text = _read_image_tower(read), _detect_text(read)
    _raise(read, "state dict of Chinese CLIP")
    with _own_config():
        vision_config = _build_image_tower(vision, like.vision if like else None)
        text_config = _build(BertConfig, text, like.text if like else None)
        length = (like or ChineseClipConfig).context_length
        return ChineseClipConfig(vision_config, text_config, min(length, text_config.max_positions))


def detect_image_tower(shapes: Shapes, like: VisionConfig | None = None) -> VisionConfig:
    """The config of an image tower from the names and shapes of its tensors, as `detect_config`.

    Args:
      shapes: original name (`visual....`) -> shape; others may stand beside them.
      like: see `detect_config`.

    Raises:
      ValueError: see `detect_config`.
    """
    read = _Reader(shapes)
    vision = _read_image_tower(read)
    _raise(read, "image tower of a CLIP")
    with _own_config():
        return _build_image_tower(vision, like)


def detect_text_tower(shapes: Shapes, like: BertConfig | None = None) -> BertConfig:
    """The config of a BERT body from the names and shapes of its tensors, as `detect_config`.

    Args:
      shapes: original name (`bert....`) -> shape; others may stand beside them.
      like: see `detect_config`.

    Raises:
      ValueError: see `detect_config`.
    """
    read = _Reader(shapes)
    text = _detect_text(read)
    _raise(read, "BERT")
    with _own_config():
        return _build(BertConfig, text, like)


def _read_image_tower(read: "_Reader") -> dict[str, Any]:
    if "visual.attnpool.positional_embedding" in read.shapes:
        return _detect_resnet(read)
    return _detect_vision_transformer(read)


def _build_image_tower(sizes: Mapping[str, Any], like: VisionConfig | None) -> VisionConfig:
    if "stages" in sizes:
        return _build(ModifiedResNetConfig, sizes, like)
    return _build(VisionTransformerConfig, sizes, like)


def _build(cls: type[_Tower], sizes: Mapping[str, Any], like: object) -> _Tower:
    if isinstance(like, cls):
        seen = {name: sizes[name] for name in _VISIBLE[cls]}
        # The heads of `like` may not divide the width that was found: then they are not these.
        with contextlib.suppress(ValueError):
            return dataclasses.replace(like, **seen)
    return cls(**sizes)


def _raise(read: "_Reader", what: str) -> None:
    if read.problems:
        raise ValueError(
            f"this is no {what}; the sizes of a model are read from tensors that do not fit:\n  "
            + "\n  ".join(read.problems)
        )


@contextlib.contextmanager
def _own_config() -> Iterator[None]:
    """Tells what to do where the sizes are those of no model of the original."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f"the shapes of the tensors fit no Chinese CLIP of the original ({error}); if the "
            "model has other heads or strides, pass its config"
        ) from error


def model_name(config: ChineseClipConfig) -> str | None:
    """The published name of a config's sizes, `None` if it is another model.

    What shapes cannot show is not compared.
    """
    return next((name for name, known in MODELS.items() if not differences(config, known)), None)


def differences(config: ChineseClipConfig, other: ChineseClipConfig) -> dict[str, tuple[Any, Any]]:
    """Sizes that shapes show and in which two configs differ.

    Args:
      config: one config.
      other: the other.

    Returns:
      Field (`vision.width`) -> its value in both.
    """
    return _differing(_visible_sizes(config), _visible_sizes(other))


def tower_differences(
    tower: VisionConfig | BertConfig, other: VisionConfig | BertConfig
) -> dict[str, tuple[Any, Any]]:
    """Sizes that shapes show and in which two towers differ: field (`width`) -> value in both.

    Args:
      tower: sizes of one tower.
      other: sizes of the other; the kinds may differ too (field `kind`).
    """
    sizes = ({"kind": type(t).__name__} | _visible_tower(t) for t in (tower, other))
    return _differing(*sizes)


def describe_fit(
    config: ChineseClipConfig | None, shapes: Shapes, stored: ChineseClipConfig | None = None
) -> str:
    """Which model a file that does not fit `config` belongs to, in one sentence for an error.

    Args:
      config: the config that was wanted.
      shapes: original name (without prefix) -> shape, of the file.
      stored: the config that the file itself carries; `None` detects it.
    """
    try:
        fits = stored or detect_config(shapes, config)
    except ValueError as error:
        return str(error)
    changes = differences(config, fits) if config is not None else {}
    return _describe(model_name(fits) or "a config", changes)


def describe_tower_fit(tower: VisionConfig | BertConfig, fits: VisionConfig | BertConfig) -> str:
    """As `describe_fit`, for one tower.

    Args:
      tower: the sizes that were wanted.
      fits: those of the file.
    """
    return _describe(f"a {type(fits).__name__}", tower_differences(tower, fits))


def _describe(name: str, changes: Mapping[str, tuple[Any, Any]]) -> str:
    told = ", ".join(f"{field}={theirs} (not {ours})" for field, (ours, theirs) in changes.items())
    if not told:
        return "its sizes are those of the config: the file itself is incomplete or has more"
    return f"the file fits {name} with {told}"


def _differing(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        name: (ours.get(name), theirs.get(name))
        for name in dict.fromkeys((*ours, *theirs))
        if ours.get(name) != theirs.get(name)
    }


_VISIBLE = {
    VisionTransformerConfig: (
        *("image_size", "patch_size", "num_layers", "width", "mlp_width", "output_dim"),
    ),
    ModifiedResNetConfig: ("image_size", "stem_width", "stages", "expansion", "output_dim"),
    BertConfig: (
        *("vocab_size", "num_layers", "width", "mlp_width", "max_positions", "num_types"),
    ),
}


def _visible_sizes(config: ChineseClipConfig) -> dict[str, Any]:
    sizes: dict[str, Any] = {"vision": type(config.vision).__name__}
    for part, tower in (("vision", config.vision), ("text", config.text)):
        sizes |= {f"{part}.{name}": value for name, value in _visible_tower(tower).items()}
    return sizes


def _visible_tower(tower: VisionConfig | BertConfig) -> dict[str, Any]:
    return {name: getattr(tower, name) for name in _VISIBLE[type(tower)]}


class _Reader:
    """Reads sizes off shapes and collects the tensors that lack or have another rank."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        self.problems: list[str] = []

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        shape = self.shapes.get(name)
        if shape is None:
            self.problems.append(f"{name} is missing")
        elif len(shape) != rank:
            self.problems.append(f"{name} has shape {shape}; {rank} axes expected")
        else:
            return shape
        return (0,) * rank

    def count(self, pattern: str) -> int:
        """Number of layers: one more than the largest integer that `pattern` finds."""
        found = [int(m[1]) for name in self.shapes if (m := re.fullmatch(pattern, name))]
        return max(found, default=-1) + 1

    def grid(self, name: str) -> tuple[int, int]:
        """Side of the grid of a position table of 1 + grid * grid rows, and its width."""
        rows, width = self.shape(name, 2)
        grid = round(max(rows - 1, 0) ** 0.5)
        if rows and (not grid or grid * grid + 1 != rows):
            self.problems.append(f"{name} has {rows} rows; 1 + g*g expected, such as 50 or 197")
        return grid, width


def _detect_vision_transformer(read: _Reader) -> dict[str, Any]:
    width, _, patch, _ = read.shape("visual.conv1.weight", 4)
    grid, _ = read.grid("visual.positional_embedding")
    block = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    return {
        "image_size": grid * patch,
        "patch_size": patch,
        "num_layers": read.count(r"visual\.transformer\.resblocks\.(\d+)\.ln_1\.weight"),
        "width": width,
        "num_heads": _HEADS_BY_VISION_WIDTH.get(width, width // _HEAD_WIDTH),
        "mlp_width": read.shape(block, 2)[0],
        "output_dim": read.shape("visual.proj", 2)[1],
    }


def _detect_resnet(read: _Reader) -> dict[str, Any]:
    stem_width = read.shape("visual.conv3.weight", 4)[0]
    planes = read.shape("visual.layer1.0.conv1.weight", 4)[0]
    features = read.shape("visual.layer1.0.conv3.weight", 4)[0]
    grid, channels = read.grid("visual.attnpool.positional_embedding")
    num_stages = read.count(r"visual\.layer(\d+)\.0\.conv1\.weight") - 1
    blocks = (rf"visual\.layer{s + 1}\.(\d+)\.conv1\.weight" for s in range(num_stages))
    stages = tuple(read.count(pattern) for pattern in blocks)
    return {
        # The stem halves the size twice, every stage but the first once.
        "image_size": grid * 4 * 2 ** max(num_stages - 1, 0),
        "stem_width": stem_width,
        "stages": stages,
        "expansion": features // max(planes, 1),
        "num_heads": channels // _HEAD_WIDTH,
        "output_dim": read.shape("visual.attnpool.c_proj.weight", 2)[0],
    }


def _detect_text(read: _Reader) -> dict[str, Any]:
    vocab_size, width = read.shape("bert.embeddings.word_embeddings.weight", 2)
    block = "bert.encoder.layer.0.intermediate.dense.weight"
    return {
        "vocab_size": vocab_size,
        "num_layers": read.count(r"bert\.encoder\.layer\.(\d+)\.intermediate\.dense\.weight"),
        "width": width,
        "num_heads": width // _HEAD_WIDTH,
        "mlp_width": read.shape(block, 2)[0],
        "max_positions": read.shape("bert.embeddings.position_embeddings.weight", 2)[0],
        "num_types": read.shape("bert.embeddings.token_type_embeddings.weight", 2)[0],
    }
