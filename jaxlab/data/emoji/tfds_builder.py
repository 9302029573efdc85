"""TFDS builder of the emoji set: array_record files, no TensorFlow, no network."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jaxlab.data.emoji.loader import IMAGE_SIZE, STYLES, load_emoji
from jaxlab.data.emoji.source import SPLITS, emoji_records
from jaxlab.data.emoji.split import standard_split

CITATION = """\
@misc{unicode_cldr, title={Unicode Common Locale Data Repository 48.2}, author={Unicode, Inc.}}
"""
DESCRIPTION = """\
Emoji drawings of Google (Noto Emoji, Apache-2.0) and Twitter (Twemoji, CC-BY-4.0) with Chinese and
English short names and keywords of Unicode CLDR (Unicode-3.0), split into training drawings and
three levels of unseen ones.
"""


class EmojiBuilder(tfds.core.GeneratorBasedBuilder):
    """Builder of the emoji set; splits are those of `jaxlab.data.emoji.standard_split`.

    Example::

        builder = EmojiBuilder(data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
        source = builder.as_data_source(split="train")
    """

    name = "jaxlab_emoji"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "CLDR 48.2.0, emoji-datasource 16.0.0."}

    def _info(self) -> tfds.core.DatasetInfo:
        side = IMAGE_SIZE
        features = {
            # Lossless WebP goes in as it is; every decoder of TFDS recognises it.
            "image": tfds.features.Image(shape=(side, side, 4)),
            "example_id": tfds.features.Scalar(np.int64),
            "style": tfds.features.ClassLabel(names=STYLES),
            "index": tfds.features.Scalar(np.int64),
            "concept": tfds.features.Scalar(np.int64),
            "category": tfds.features.ClassLabel(names=load_emoji().category_names),
            "name_zh": tfds.features.Text(),
            "keywords_zh": tfds.features.Sequence(tfds.features.Text()),
            "name_en": tfds.features.Text(),
            "keywords_en": tfds.features.Sequence(tfds.features.Text()),
        }
        return self.dataset_info_from_configs(
            description=DESCRIPTION,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "name_zh"),
            homepage="https://cldr.unicode.org",
            license="Apache-2.0 AND CC-BY-4.0 AND Unicode-3.0 AND MIT",
            citation=CITATION,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # everything ships with the library
        emoji = load_emoji()
        split = standard_split(emoji)
        encoded = [emoji.encoded_images(style) for style in STYLES]
        return {
            name: self._generate_examples(emoji_records(emoji, split, name, encoded))
            for name in SPLITS
        }

    def _generate_examples(
        self, records: Iterable[dict[str, Any]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for position, record in enumerate(records):
            yield position, {**record, "image": io.BytesIO(record["image"])}


def prepare_emoji(data_dir: Path) -> EmojiBuilder:
    """The builder, with its files prepared.

    Processes that start together wait for the first to prepare them: the operating system's file
    lock goes with its holder, so that a killed process leaves none behind.

    Args:
      data_dir: root folder of prepared TFDS data sets; created when absent.
    """
    import fcntl

    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / f"{EmojiBuilder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        builder = EmojiBuilder(data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
    return builder
