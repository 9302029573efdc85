"""Zero-shot classification: prompts of every class become one vector, images go to the nearest.

Section 3.3 of Yang et al. 2022, arXiv:2211.01335. The multiplier of the cosines is a fixed 100, not
the trained one, and the mean over prompts is normalised again. The published prompts are in
`jaxlab.chinese_clip.templates`, the data sets and their metrics in `jaxlab.chinese_clip.elevater`.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from jaxlab.text import clean_text

MULTIPLIER = 100.0
"""Multiplier of the cosines; the ranking does not depend on it, the probabilities do."""

GENERAL_TEMPLATES = (
    "{}",
    "{}的照片",
    "一张{}的照片",
    "{}的图片",
    "一张关于{}的图片",
    "一幅{}的画",
    "{}的图标",
    "画着{}的卡通图",
)
"""A short list of our own for photographs and drawings of anything: 8 texts a class, where the
published list (`load_templates("general")`) has 183. `{}` takes the name of the class."""


def fill_templates(
    class_names: Sequence[str], templates: Sequence[str], *, clean: bool = True
) -> tuple[tuple[str, ...], ...]:
    """The prompts of every class.

    Args:
      class_names: one name a class.
      templates: texts with one `{}` for the name.
      clean: lower-case and straighten curly quotes, as the original does before tokenising.

    Returns:
      One tuple of `len(templates)` texts a class; equal templates are kept.

    Raises:
      ValueError: if there are no templates, or some have no `{}` or more than one; all are named.

    Example:
      >>> fill_templates(["猫", "狗"], ["{}的照片", "一只{}"])
      (('猫的照片', '一只猫'), ('狗的照片', '一只狗'))
    """
    wrong = [t for t in templates if t.count("{}") != 1]
    if wrong or not templates:
        raise ValueError(
            f"got the templates {wrong or list(templates)}; wanted at least one, each with exactly "
            "one '{}' where the class name goes"
        )
    prompts = tuple(tuple(t.replace("{}", name) for t in templates) for name in class_names)
    if not clean:
        return prompts
    return tuple(tuple(clean_text(text) for text in texts) for texts in prompts)


def make_classifier(
    prompts: Sequence[Sequence[str]],
    encode: Callable[[list[str]], Float[np.ndarray, "texts dim"]],
) -> Float[np.ndarray, "classes dim"]:
    """One vector a class: the normalised mean of its prompts' normalised features.

    Args:
      prompts: the texts of every class; classes may have different numbers of them.
      encode: text features of a list of texts, called once with all prompts; need not be
        normalised.

    Returns:
      float32 unit vectors. (The original keeps the transpose.)

    Raises:
      ValueError: if there are no classes, or a class has no prompts; their positions are named.

    Example:
      >>> features = {"a": [3.0, 0.0], "b": [0.0, 1.0], "c": [0.0, -2.0]}
      >>> encode = lambda texts: np.array([features[t] for t in texts], np.float32)
      >>> np.round(make_classifier([["a", "b"], ["c"]], encode), 4)
      array([[ 0.7071,  0.7071],
             [ 0.    , -1.    ]], dtype=float32)
    """
    empty = [i for i, texts in enumerate(prompts) if not texts]
    if empty or not prompts:
        raise ValueError(
            f"classes {empty} of {len(prompts)} have no prompts; each class needs at least one text"
        )
    features = _unit(encode([text for texts in prompts for text in texts]))
    ends = np.cumsum([len(texts) for texts in prompts])
    means = [part.mean(axis=0) for part in np.split(features, ends[:-1])]
    return _unit(np.stack(means))


def zero_shot_logits(
    image_features: Float[np.ndarray, "images dim"], classifier: Float[np.ndarray, "classes dim"]
) -> Float[np.ndarray, "images classes"]:
    """Logits of every class, `100 f g^T`.

    Args:
      image_features: need not be normalised.
      classifier: see `make_classifier`.

    Returns:
      float32; their softmax are the class probabilities.
    """
    return np.float32(MULTIPLIER) * (_unit(image_features) @ classifier.T)


def zero_shot_probabilities(
    image_features: Float[np.ndarray, "images dim"], classifier: Float[np.ndarray, "classes dim"]
) -> Float[np.ndarray, "images classes"]:
    """Class probabilities, the softmax of `zero_shot_logits`.

    Args:
      image_features: need not be normalised.
      classifier: see `make_classifier`.

    Returns:
      float32 rows that sum to 1.
    """
    logits = zero_shot_logits(image_features, classifier)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _unit(x: np.ndarray) -> np.ndarray:
    """Divide rows by their L2 norm, float32; a zero row stays zero."""
    x = np.asarray(x, np.float32)
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    return x / np.where(norm > 1e-12, norm, 1.0)
