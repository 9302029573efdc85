"""The Chinese prompt templates of the published zero-shot results, and the ImageNet class names.

The texts are data of the package cn_clip 1.6.0 (MIT License); the names of the lists are ours.

References:
  `cn_clip/eval/cvinw_zeroshot_templates.py`, `imagenet_zeroshot_templates.py` and
  `zeroshot_evaluation.py` of Chinese-CLIP 1.6.0.
"""

import difflib
import functools
import json
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import Any

GENERAL = "general"

TEMPLATES_OF_DATASET: Mapping[str, str] = MappingProxyType(
    {
        "fgvc-aircraft-2013b-variants102": "aircraft",
        "food-101": "food",
        "oxford-flower-102": "flowers",
        "eurosat_clip": "satellite",
        "resisc45_clip": "satellite",
        "country211": "country",
    }
)
"""Data sets that the original gives templates of their own; all others take `general`."""


def template_names() -> tuple[str, ...]:
    """The names that `load_templates` takes."""
    return tuple(_content()["templates"])


def load_templates(name: str = GENERAL) -> tuple[str, ...]:
    """A list of templates, `{}` where the name of the class goes.

    Args:
      name: one of `template_names()`. `general` has 183 templates for pictures of anything, four of
        which occur twice: the mean over them is weighted so in the original.

    Raises:
      ValueError: if there is no such list.

    Example:
      >>> load_templates("country")[0]
      '一张在{}拍的照片'
    """
    lists = _content()["templates"]
    if name not in lists:
        close = difflib.get_close_matches(name, lists, n=1)
        nearest = f"; the nearest is {close[0]!r}" if close else ""
        raise ValueError(
            f"templates {name!r} do not exist{nearest}; there are {', '.join(map(repr, lists))}"
        )
    return tuple(lists[name])


def templates_of_dataset(dataset: str) -> tuple[str, ...]:
    """The templates that the original takes for a data set.

    Args:
      dataset: its key, such as `food-101`; an unknown one takes the general list.
    """
    return load_templates(TEMPLATES_OF_DATASET.get(dataset, GENERAL))


def imagenet_class_names() -> tuple[str, ...]:
    """The 1,000 Chinese class names of ImageNet, in the order of its classes."""
    return tuple(_content()["imagenet_class_names"])


@functools.cache
def _content() -> dict[str, Any]:
    file = resources.files("jaxlab.chinese_clip") / "assets" / "templates.json"
    return json.loads(file.read_text("utf-8"))
