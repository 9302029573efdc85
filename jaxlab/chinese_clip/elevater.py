"""The twenty image classification data sets of ELEVATER: what is measured on each, and submissions.

References:
  Li et al. 2022, "ELEVATER: A Benchmark and Toolkit for Evaluating Language-Augmented Visual
  Models", arXiv:2204.08790; Yang et al. 2022, arXiv:2211.01335, section 4.2;
  `cn_clip/eval/zeroshot_evaluation.py` of Chinese-CLIP 1.6.0.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, PyTree

from jaxlab.metrics import (
    accuracy,
    eleven_point_average_precision,
    mean_per_class_accuracy,
    roc_auc,
)

Metric = Literal["accuracy", "mean_per_class", "eleven_point_map", "roc_auc"]
DECIMALS = 6


class Dataset(NamedTuple):
    """One data set of the benchmark.

    Attributes:
      title: the name in tables.
      num_classes: number of classes.
      num_images: size of the test split.
      metric: what the benchmark counts.
    """

    title: str
    num_classes: int
    num_images: int
    metric: Metric


DATASETS: Mapping[str, Dataset] = MappingProxyType(
    {
        "caltech-101": Dataset("Caltech-101", 101, 6084, "mean_per_class"),
        "cifar-10": Dataset("CIFAR-10", 10, 10000, "accuracy"),
        "cifar-100": Dataset("CIFAR-100", 100, 10000, "accuracy"),
        "country211": Dataset("Country-211", 211, 21100, "accuracy"),
        "dtd": Dataset("DTD", 47, 1880, "accuracy"),
        "eurosat_clip": Dataset("EuroSAT", 10, 5000, "accuracy"),
        "fer-2013": Dataset("FER-2013", 7, 3589, "accuracy"),
        "fgvc-aircraft-2013b-variants102": Dataset("FGVC-Aircraft", 100, 3333, "mean_per_class"),
        "food-101": Dataset("Food-101", 101, 25250, "accuracy"),
        "gtsrb": Dataset("GTSRB", 43, 12630, "accuracy"),
        "hateful-memes": Dataset("Hateful-Memes", 2, 500, "roc_auc"),
        "kitti-distance": Dataset("KITTI-Distance", 4, 711, "accuracy"),
        "mnist": Dataset("MNIST", 10, 10000, "accuracy"),
        "oxford-flower-102": Dataset("Flowers-102", 102, 6149, "mean_per_class"),
        "oxford-iiit-pets": Dataset("Oxford-IIIT Pets", 37, 3669, "mean_per_class"),
        "patch-camelyon": Dataset("PatchCamelyon", 2, 32768, "accuracy"),
        "rendered-sst2": Dataset("Rendered-SST2", 2, 1821, "accuracy"),
        "resisc45_clip": Dataset("RESISC-45", 45, 25200, "accuracy"),
        "stanford-cars": Dataset("Stanford-Cars", 196, 8041, "accuracy"),
        "voc-2007-classification": Dataset("VOC-2007", 20, 4952, "eleven_point_map"),
    }
)
"""The data sets by the keys of the benchmark's toolkit, which name their folders."""


def metric_of(dataset: str, *, multi_label: bool = False) -> Metric:
    """What counts on a data set.

    Args:
      dataset: its key; of one that the benchmark does not have, the accuracy counts.
      multi_label: whether pictures have several classes: then the average precision counts.
    """
    if multi_label:
        return "eleven_point_map"
    return DATASETS[dataset].metric if dataset in DATASETS else "accuracy"


def measure(
    probabilities: Float[np.ndarray, "images classes"],
    labels: Int[np.ndarray, " labels"] | Bool[np.ndarray, "labels label_classes"],
) -> dict[str, float]:
    """The metrics of the benchmark that are defined for the labels, as fractions of 1.

    `eleven_point_map` is the mean over the classes that have a picture. `roc_auc` needs two
    classes, and ranks by the probability of the second one. A picture of several classes has no
    `accuracy`.

    Args:
      probabilities: of every class, from the softmax.
      labels: the class of every picture, or whether it is of each class.

    Returns:
      By the names of `Metric`.

    Raises:
      ValueError: if shapes differ, there are no pictures, a label is out of range or a probability
        is NaN.
    """
    num_classes = probabilities.shape[1]
    one_hot = labels if labels.ndim == 2 else labels[:, None] == np.arange(num_classes)[None]
    present = one_hot.any(axis=0)
    metrics: dict[str, float] = {}
    if labels.ndim == 1:
        metrics["accuracy"] = accuracy(probabilities, labels)
        metrics["mean_per_class"] = mean_per_class_accuracy(probabilities, labels)
        if num_classes == 2 and present.all():
            metrics["roc_auc"] = roc_auc(probabilities[:, 1], labels)
    if one_hot.shape != probabilities.shape or not present.any():
        raise ValueError(
            f"labels have shape {labels.shape} and probabilities {probabilities.shape}; wanted "
            "one row a picture, one column a class, and at least one picture with a class"
        )
    metrics["eleven_point_map"] = eleven_point_average_precision(
        probabilities[:, present], one_hot[:, present]
    )
    return metrics


def make_submission(
    model_name: str,
    dataset: str,
    params: PyTree,
    probabilities: Float[np.ndarray, "images classes"],
    index: Sequence[int] | None = None,
) -> dict[str, Any]:
    """The content of a submission file of the benchmark, as the original writes it.

    Args:
      model_name: name of the published size, such as `ViT-B-16`.
      dataset: key of the data set.
      params: the parameters of the whole model (or their shapes), to count them.
      probabilities: of every picture in the order of the sorted folders.
      index: row of the picture that comes at each place, where the benchmark has another order.

    Returns:
      Plain values; probabilities are rounded to 6 decimals.

    Raises:
      ValueError: if `index` is no permutation of the pictures.
    """
    if index is not None:
        check_permutation(index, len(probabilities))
        probabilities = probabilities[np.asarray(index, np.int64)]
    num_params = _count(params)
    return {
        "model_name": f"CN-CLIP-{model_name}",
        "dataset_name": dataset,
        "num_trainable_params": 0,
        "num_params": num_params,
        "num_visual_params": _count(params["visual"]),
        "num_backbone_params": num_params,
        "n_shot": 0,
        "rnd_seeds": [123],
        "predictions": [[[round(p, DECIMALS) for p in row] for row in probabilities.tolist()]],
    }


def read_index(path: str | Path, num_images: int) -> list[int]:
    """The order of the pictures in a submission, from an `index.json`.

    Args:
      path: a JSON list of row numbers.
      num_images: how many pictures there are.

    Raises:
      FileNotFoundError: if the file is missing.
      ValueError: if it is no JSON, or no permutation of the pictures.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a JSON list of row numbers")
    try:
        index = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: malformed JSON ({error}); expected a list of rows") from error
    try:
        check_permutation(index, num_images)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return index


def check_permutation(index: Any, length: int) -> None:
    """Refuse what is no permutation.

    Args:
      index: should hold each of 0 ... length - 1 once.
      length: how many rows there are.

    Raises:
      ValueError: saying what it holds instead.
    """
    if not isinstance(index, Sequence) or isinstance(index, str):
        raise ValueError(f"the index is a {type(index).__name__}, expected a list of rows")
    wrong = [i for i in index if type(i) is not int or not 0 <= i < length]
    if wrong or len(set(index)) != len(index) or len(index) != length:
        held = f"{wrong[0]!r}" if wrong else f"{len(set(index))} different rows in {len(index)}"
        raise ValueError(
            f"the index is no permutation: it holds {held}; expected each of 0 to {length - 1} "
            "once. Check that it belongs to this data set and that no picture is missing"
        )


def _count(params: PyTree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
