"""What the deployment formats share: two graphs, their names, and what a consumer must know.

A model leaves the library as one graph a tower, under the names of the original's deployment files:
`image` (N, 3, R, R) float32 -> `unnorm_image_features` (N, dim) float32, and `text` (N, L) ->
`unnorm_text_features` (N, dim) float32. N is free. The features are not normalised: divide them by
their norm, and multiply the cosines by `exp(logit_scale)`.

References:
  Chinese-CLIP 1.6.0 (MIT), cn_clip/deploy/pytorch_to_onnx.py.
"""

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import PyTree

from jaxlab import __version__
from jaxlab.checkpoints.foreign.names import NameTable, Rule, flatten
from jaxlab.chinese_clip.detection import model_name
from jaxlab.chinese_clip.model import ChineseClipConfig, abstract_variables
from jaxlab.chinese_clip.published import config_to_dict
from jaxlab.data.images import IMAGE_MEAN, IMAGE_STD

TowerName = Literal["image", "text"]

_SAME_NAMES = NameTable((Rule("{path:.+}", "{path:.+}"),))


class Tower(NamedTuple):
    """The outside of one tower's graph.

    Attributes:
      output: name of the features; the input has the tower's name.
      short: how file names abbreviate the tower.
      parts: the parts of the variables that the graph holds.
    """

    output: str
    short: str
    parts: tuple[str, ...]


TOWERS: Mapping[TowerName, Tower] = MappingProxyType(
    {
        "image": Tower("unnorm_image_features", "img", ("visual",)),
        "text": Tower("unnorm_text_features", "txt", ("bert", "text_projection")),
    }
)
"""The two graphs by the names of their inputs."""


def complete_towers(variables: PyTree) -> tuple[TowerName, ...]:
    """The towers that the variables hold as a whole.

    Args:
      variables: the variables of a model or of parts of it.

    Returns:
      Names of `TOWERS`.

    Raises:
      ValueError: if there is none, or a tower is there in part.
    """
    parts = set(variables["params"])
    for name, tower in TOWERS.items():
        if missing := sorted(set(tower.parts) - parts) if parts & set(tower.parts) else []:
            raise ValueError(
                f"the {name} tower lacks {missing}: its graph needs {', '.join(tower.parts)}, and "
                f"the variables hold {sorted(parts)}"
            )
    towers = tuple(name for name, tower in TOWERS.items() if parts.issuperset(tower.parts))
    if not towers:
        raise ValueError(
            f"the variables hold {sorted(parts)} and no tower; give 'visual' for an image graph, "
            "'bert' and 'text_projection' for a text graph"
        )
    return towers


def tower_weights(
    variables: PyTree, config: ChineseClipConfig, tower: TowerName
) -> dict[str, np.ndarray]:
    """The arrays that one tower's graph reads, by their paths in the variable tree.

    Args:
      variables: variables that hold the tower.
      config: the model's config.
      tower: which.

    Returns:
      Path (`params/visual/...`) -> array, in the model's order; nothing is copied on a CPU.

    Raises:
      NameMismatchError: (a ValueError) if the variables are not those of the config.
    """
    parts = TOWERS[tower].parts
    wanted = flatten(abstract_variables(config))
    shapes = {p: tuple(a.shape) for p, a in wanted.items() if p.split("/")[1] in parts}
    arrays = {p: np.asarray(a) for p, a in flatten(variables).items() if p.split("/")[1] in parts}
    return _SAME_NAMES.load(arrays, shapes)


def describe(variables: PyTree, config: ChineseClipConfig, precision: str) -> dict[str, Any]:
    """What a consumer of the graphs must know, as plain values that JSON can hold.

    Args:
      variables: the variables of the graphs; `logit_scale` is told if it is among them.
      config: the model's config.
      precision: name of the arithmetic.

    Returns:
      `model` (published name or ""), `precision`, `image_size`, `image_mean` and `image_std` (of
      pixels in [0, 1], red first), `context_length`, `embed_dim`, `logit_scale` (the logarithm of
      the cosines' multiplier), `config` (all sizes) and `jaxlab_version`.
    """
    scale = variables["params"].get("logit_scale")
    return {
        "model": model_name(config) or "",
        "precision": precision,
        "image_size": config.vision.image_size,
        "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD),
        "context_length": config.context_length,
        "embed_dim": config.embed_dim,
        **({} if scale is None else {"logit_scale": float(scale)}),
        "config": config_to_dict(config),
        "jaxlab_version": __version__,
    }


def as_text(values: Mapping[str, Any]) -> dict[str, str]:
    """The same values as text: strings as they are, others as JSON."""
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Refuse a value that is not among the allowed ones.

    Args:
      name: what the value is for.
      value: what was given.
      allowed: the choices.

    Raises:
      ValueError: naming all three.
    """
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown; use one of {', '.join(allowed)}")
