"""Chinese CLIP on the emoji set: what a training example is, and the three levels of unseen.

A training example is a concept: of it a drawing that may be trained on and one of its texts are
drawn. A batch within one epoch (`PipelineConfig(remainder="drop")`) holds a concept at most once.
The evaluation is the protocol of `jaxlab.data.emoji.standard_split`: ties count against the model.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Array, Float, Int32, Key, UInt8

from jaxlab.data.device_augment import DrawingAugmentConfig, augment_drawings, compose_drawings
from jaxlab.data.emoji.loader import EmojiSet
from jaxlab.data.emoji.split import EmojiSplit
from jaxlab.data.images import normalize
from jaxlab.metrics import (
    accuracy,
    mean_per_class_accuracy,
    ranks_blockwise,
    recall_at_k,
)

Tokenize = Callable[[Sequence[str]], Int32[np.ndarray, "texts time"]]

RECALL_KS = (1, 5, 10)

CATEGORY_PROMPTS: Mapping[str, tuple[str, ...]] = {
    "Smileys & Emotion": ("表情", "脸", "笑脸", "微笑", "情感", "心", "猫脸"),
    "People & Body": ("人物", "人", "男人", "女人", "男孩", "女孩", "手", "家庭", "身体"),
    "Component": ("肤色", "发型"),
    "Animals & Nature": ("动物", "植物", "鸟", "花", "昆虫", "宠物", "树"),
    "Food & Drink": ("食物", "饮料", "水果", "蔬菜", "甜点", "面包", "酒"),
    "Travel & Places": ("旅行", "建筑", "汽车", "火车", "天气", "时钟", "月亮", "交通工具"),
    "Activities": ("活动", "运动", "游戏", "球", "庆祝", "奖牌"),
    "Objects": ("物品", "工具", "乐器", "电脑", "书", "衣服", "钱", "文件"),
    "Symbols": ("符号", "按键", "箭头", "标识", "方形", "星座"),
    "Flags": ("旗", "旗帜", "国旗"),
}
"""Chinese words for what each of the ten categories holds, an ensemble of prompts."""

EMOJI_AUGMENT = DrawingAugmentConfig(
    rotation=0.2,
    scale=0.2,
    stretch=0.08,
    translation=0.06,
    hue=0.3,
    brightness=0.25,
    contrast=0.2,
    saturation=0.6,
    blur_sigma=0.8,
    background_probability=0.5,
    cutout_size=0.3,
)
"""Strong: thousands of steps over 5,542 drawings remember those that are changed less."""


@dataclasses.dataclass(frozen=True)
class EmojiDataConfig:
    """How training examples are drawn from the emoji set.

    Attributes:
      language: of the texts, `zh` or `en`.
      base_probability: how often the base drawing of a concept with skin-tone variations is taken
        instead of one of them.
      keyword_probability: how often the text is one of the keywords instead of the name.
      augment: augmentation of the drawings, on the device.
    """

    language: Literal["zh", "en"] = "zh"
    base_probability: float = 0.5
    keyword_probability: float = 0.2
    augment: DrawingAugmentConfig = EMOJI_AUGMENT

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
          ValueError: if the language is unknown or a probability is outside [0, 1].
        """
        if self.language not in ("zh", "en"):
            raise ValueError(f"language={self.language!r} is not one of 'zh', 'en'")
        for name in ("base_probability", "keyword_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is a probability; use 0 to 1")


class EmojiConcepts:
    """The concepts that are trained on, as a source of examples `{"example_id", "concept"}`.

    Attributes:
      drawings: concept -> its training drawings, rows (style, item), base items first.
      num_base: concept -> how many of these rows are of the base item.
    """

    def __init__(self, emoji: EmojiSet, split: EmojiSplit) -> None:
        """Group the training drawings of a split by concept.

        Args:
          emoji: the set.
          split: its split.
        """
        rows = split.train
        concepts = emoji.concepts[rows[:, 1]]
        order = np.lexsort((~emoji.is_base[rows[:, 1]], concepts))
        rows, concepts = rows[order], concepts[order]
        present, starts = np.unique(concepts, return_index=True)
        self._present = present
        self.drawings = dict(zip(present.tolist(), np.split(rows, starts[1:]), strict=True))
        self.num_base = {c: int(emoji.is_base[r[:, 1]].sum()) for c, r in self.drawings.items()}

    def __len__(self) -> int:
        """Number of concepts."""
        return len(self._present)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The concept at a position."""
        concept = int(self._present[index])
        return {"example_id": concept, "concept": concept}


def make_emoji_sampler(
    emoji: EmojiSet,
    concepts: EmojiConcepts,
    config: EmojiDataConfig,
    tokenize: Tokenize,
    image_of: Mapping[str, Any],
) -> Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]:
    """From a concept to a training example, for `jaxlab.data.pipeline.make_train_batches`.

    Args:
      emoji: the set.
      concepts: its training concepts.
      config: how to draw.
      tokenize: texts to ids of one length; called once, on all texts.
      image_of: one entry: under `image` an array (style, item, ...) that the example's image is
        taken from, or under `image_features` an array (view, style, item, dim) of cached features
        of which a random view is taken.

    Returns:
      `(example, generator) -> {"ids", "image" or "image_features"}`.
    """
    texts = [emoji.texts(i, config.language) for i in range(emoji.num_emoji)]
    distinct = sorted({text for each in texts for text in each})
    row = {text: i for i, text in enumerate(distinct)}
    ids = tokenize(distinct)
    rows = [[row[text] for text in each] for each in texts]
    ((name, table),) = image_of.items()

    def sample(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        concept = int(example["concept"])
        drawings, num_base = concepts.drawings[concept], concepts.num_base[concept]
        base = num_base == len(drawings) or rng.random() < config.base_probability
        low, high = (0, num_base) if base else (num_base, len(drawings))
        style, item = drawings[rng.integers(low, high)]
        own = rows[item]
        keyword = len(own) > 1 and rng.random() < config.keyword_probability
        text = own[rng.integers(1, len(own))] if keyword else own[0]
        if name == "image_features":
            image = table[rng.integers(len(table)), style, item]
        else:
            image = table[style, item]
        return {"ids": ids[text], name: image}

    return sample


def make_prepare(
    augment: DrawingAugmentConfig, image_size: int
) -> Callable[[Key[Array, ""], UInt8[Array, "batch height width 4"]], Float[Array, "..."]]:
    """From RGBA drawings to augmented, normalised inputs of the image tower; jittable.

    Args:
      augment: the augmentation.
      image_size: height and width of the result, in pixels.
    """

    def prepare(
        key: Key[Array, ""], drawings: UInt8[Array, "batch height width 4"]
    ) -> Float[Array, "..."]:
        return normalize(augment_drawings(key, drawings, augment, image_size))

    return prepare


def compose_inputs(
    drawings: UInt8[Array, "batch height width 4"], image_size: int
) -> Float[Array, "batch image_size image_size 3"]:
    """RGBA drawings on white, resized and normalised as inputs of the image tower."""
    return normalize(compose_drawings(drawings, image_size))


def category_prompts(emoji: EmojiSet, language: str) -> tuple[tuple[str, ...], ...]:
    """The prompts of every category, for a zero-shot classifier.

    Args:
      emoji: the set.
      language: `zh` (`CATEGORY_PROMPTS`) or `en` (the category's name, taken apart at "&").

    Returns:
      One tuple of texts a category.
    """
    if language == "zh":
        return tuple(CATEGORY_PROMPTS[name] for name in emoji.category_names)
    return tuple(tuple(name.lower().split(" & ")) for name in emoji.category_names)


def evaluate_emoji(
    emoji: EmojiSet,
    split: EmojiSplit,
    image_features: Float[np.ndarray, "style emoji dim"],
    name_features: Float[np.ndarray, "emoji dim"],
    classifier: Float[np.ndarray, "categories dim"],
) -> dict[str, float]:
    """Recall at 1, 5 and 10 of the three levels, both ways, and the category of unseen concepts.

    Args:
      emoji: the set.
      split: its split.
      image_features: normalised features of every drawing.
      name_features: normalised features of every name.
      classifier: one normalised vector a category.

    Returns:
      `{level}/image_to_text_r{1,5,10}`, `{level}/text_to_image_r{1,5,10}`,
      `unseen_concept/category_mean_per_class` (over the categories that have unseen concepts) and
      `unseen_concept/category_plain`, all in percent.
    """
    results = {}
    for level, asked in split.levels.items():
        drawings = image_features[asked.image_queries[:, 0], asked.image_queries[:, 1]]
        gallery = image_features[asked.image_gallery[:, 0], asked.image_gallery[:, 1]]
        names, wanted = name_features[asked.text_gallery], name_features[asked.text_queries]
        for direction, queries, items, targets in (
            ("image_to_text", drawings, names, asked.image_targets),
            ("text_to_image", wanted, gallery, asked.text_targets),
        ):
            ranks = ranks_blockwise(queries, items, targets[:, None].tolist(), ties="against")
            for k in RECALL_KS:
                results[f"{level}/{direction}_r{k}"] = recall_at_k(ranks, k)
    asked = split.levels["unseen_concept"].image_queries
    scores = image_features[asked[:, 0], asked[:, 1]] @ classifier.T
    labels = emoji.categories[asked[:, 1]]
    results["unseen_concept/category_mean_per_class"] = 100 * mean_per_class_accuracy(
        scores, labels
    )
    results["unseen_concept/category_plain"] = 100 * accuracy(scores, labels)
    return results
