"""The published results of Chinese CLIP, quoted, for comparison with one's own.

Sources: Yang et al. 2022, arXiv:2211.01335v3, tables 2 to 5 and the results page of
github.com/OFA-Sys/Chinese-CLIP, with the same numbers. MUGE image to text, zero-shot, is not in the
paper: it was measured on the released weights by the authors of QA-CLIP
(github.com/TencentARC-QQ/QA-CLIP). All in percent. Zero-shot on COCO-CN is not clean: translated
COCO is part of the pre-training data.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from jaxlab.chinese_clip import MODELS, ChineseClipConfig

KS = (1, 5, 10)
SIZES = ("RN50", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14")

Recalls = tuple[float, float, float]


class Direction(NamedTuple):
    """Recall at 1, 5 and 10 in one direction, by model.

    Attributes:
      zero_shot: with the released weights.
      fine_tuned: after training on the data set.
    """

    zero_shot: Mapping[str, Recalls]
    fine_tuned: Mapping[str, Recalls]


def _by_size(*recalls: Recalls) -> Mapping[str, Recalls]:
    return MappingProxyType(dict(zip(SIZES, recalls, strict=False)))


RETRIEVAL: Mapping[tuple[str, str], Mapping[str, Direction]] = MappingProxyType(
    {
        ("MUGE", "valid"): {
            "text_to_image": Direction(
                _by_size(
                    (42.6, 68.6, 77.9),
                    (52.1, 76.7, 84.4),
                    (56.3, 79.8, 86.2),
                    (59.0, 81.4, 87.8),
                    (63.0, 84.1, 89.2),
                ),
                _by_size(
                    (48.6, 75.1, 84.0),
                    (58.4, 83.6, 90.0),
                    (63.3, 85.6, 91.3),
                    (65.3, 86.7, 92.1),
                    (68.9, 88.7, 93.1),
                ),
            ),
            "image_to_text": Direction(
                _by_size(
                    (30.0, 56.2, 66.9), (38.7, 65.6, 75.1), (42.6, 69.8, 78.6), (46.2, 73.7, 82.1)
                ),
                _by_size(),
            ),
        },
        ("Flickr30k-CN", "test"): {
            "text_to_image": Direction(
                _by_size(
                    (48.8, 76.0, 84.6),
                    (62.7, 86.9, 92.8),
                    (68.0, 89.7, 94.4),
                    (69.0, 90.7, 95.4),
                    (71.2, 91.4, 95.5),
                ),
                _by_size(
                    (66.7, 89.4, 94.1),
                    (79.1, 94.8, 97.4),
                    (82.7, 96.7, 98.6),
                    (84.4, 97.1, 98.7),
                    (83.8, 96.9, 98.6),
                ),
            ),
            "image_to_text": Direction(
                _by_size(
                    (60.0, 85.9, 92.0),
                    (74.6, 93.5, 97.1),
                    (80.2, 96.6, 98.2),
                    (83.3, 97.2, 98.5),
                    (81.6, 97.5, 98.8),
                ),
                _by_size(
                    (84.2, 96.7, 98.0),
                    (93.5, 99.0, 99.5),
                    (96.1, 99.5, 99.9),
                    (96.6, 99.8, 100.0),
                    (95.3, 99.7, 100.0),
                ),
            ),
        },
        ("COCO-CN", "test"): {
            "text_to_image": Direction(
                _by_size(
                    (48.1, 81.3, 90.5),
                    (62.2, 86.6, 94.9),
                    (64.0, 89.2, 94.4),
                    (64.7, 89.6, 94.6),
                    (69.2, 89.9, 96.1),
                ),
                _by_size(
                    (66.8, 91.1, 97.0),
                    (77.0, 97.1, 99.0),
                    (78.9, 96.3, 99.0),
                    (80.1, 96.7, 99.2),
                    (81.5, 96.9, 99.1),
                ),
            ),
            "image_to_text": Direction(
                _by_size(
                    (51.6, 81.2, 90.5),
                    (57.0, 84.1, 93.6),
                    (60.4, 84.2, 92.9),
                    (63.4, 87.2, 94.4),
                    (63.0, 86.6, 92.9),
                ),
                _by_size(
                    (68.4, 93.3, 97.8),
                    (77.4, 96.2, 98.9),
                    (80.2, 96.7, 99.2),
                    (81.2, 97.2, 99.1),
                    (83.5, 97.3, 99.2),
                ),
            ),
        },
    }
)
"""Recalls by data set and split, then by direction."""

ZERO_SHOT: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "caltech-101": (77.3, 84.9, 88.5, 88.8, 90.6),
        "cifar-10": (72.7, 92.0, 94.9, 94.1, 96.0),
        "cifar-100": (40.6, 64.4, 75.1, 73.5, 79.7),
        "country211": (7.7, 15.2, 21.0, 25.4, 25.3),
        "dtd": (36.9, 43.6, 44.2, 43.8, 51.2),
        "eurosat_clip": (27.0, 46.9, 56.9, 50.7, 52.0),
        "fer-2013": (21.9, 47.2, 54.6, 55.1, 49.2),
        "fgvc-aircraft-2013b-variants102": (5.4, 12.8, 16.0, 17.1, 26.2),
        "food-101": (39.8, 62.4, 69.4, 73.9, 74.6),
        "gtsrb": (22.3, 28.4, 37.3, 35.5, 38.5),
        "hateful-memes": (50.3, 56.2, 53.4, 52.8, 54.7),
        "kitti-distance": (30.2, 33.5, 49.9, 49.8, 39.1),
        "mnist": (50.2, 67.6, 69.8, 65.0, 79.4),
        "oxford-flower-102": (30.7, 52.2, 62.5, 64.8, 68.4),
        "oxford-iiit-pets": (48.7, 73.0, 81.6, 83.1, 83.5),
        "patch-camelyon": (47.7, 54.0, 63.5, 62.9, 52.4),
        "rendered-sst2": (50.1, 52.3, 61.4, 62.9, 61.0),
        "resisc45_clip": (49.3, 58.7, 65.2, 65.8, 66.9),
        "stanford-cars": (27.3, 42.3, 49.8, 54.1, 71.8),
        "voc-2007-classification": (82.1, 83.3, 84.5, 84.9, 84.9),
        "imagenet": (33.5, 48.3, 54.7, 56.7, 59.6),
    }
)
"""The metric that counts on each data set, in the order of `SIZES`."""

ZERO_SHOT_AVERAGE = (40.9, 53.5, 60.0, 60.2, 62.3)
"""Average of the twenty data sets without ImageNet, in the order of `SIZES`."""


def model_name(config: ChineseClipConfig) -> str | None:
    """The published size that a config has, None if it has none of them.

    The length of texts does not matter.

    Args:
      config: sizes.
    """
    for name, published in MODELS.items():
        if (config.vision, config.text) == (published.vision, published.text):
            return name
    return None


def zero_shot_accuracy(dataset: str, model: str | None) -> float | None:
    """What was published for a data set, None if nothing was.

    Args:
      dataset: its key.
      model: name of the size.
    """
    if dataset not in ZERO_SHOT or model not in SIZES:
        return None
    return ZERO_SHOT[dataset][SIZES.index(model)]


def published_recalls(
    folder: str, split: str, model: str | None
) -> dict[str, dict[str, float]] | None:
    """The published recalls of a retrieval set, as columns beside one's own.

    Args:
      folder: name of the folder of the data set, such as `MUGE` or `Flickr30k-CN`; upper and lower
        case, `-` and `_` make no difference.
      split: its split.
      model: name of the size.

    Returns:
      "published zero-shot" and "published fine-tuned" -> metric names of
      `jaxlab.metrics.two_way_recalls` -> percent; None for another data set, split or size.
    """
    for (known, known_split), directions in RETRIEVAL.items():
        if _plain(known) == _plain(folder) and known_split == split and model in SIZES:
            columns = {
                f"published {kind.replace('_', '-')}": _columns(directions, kind, model)
                for kind in Direction._fields
            }
            return {heading: column for heading, column in columns.items() if column}
    return None


def _columns(directions: Mapping[str, Direction], kind: str, model: str) -> dict[str, float]:
    return {
        f"{name}_r{k}": value
        for name, direction in directions.items()
        for k, value in zip(KS, getattr(direction, kind).get(model, ()), strict=False)
    }


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
