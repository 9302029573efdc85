"""Image-text pairs as training examples and as a set to retrieve from."""

import dataclasses
import io

import jax
import numpy as np
import pytest
from PIL import Image

from jaxlab.chinese_clip.data import (
    PairDataConfig,
    RetrievalSet,
    make_pair_transform,
    prepare_pixels,
)
from jaxlab.data.augment import AugmentConfig
from jaxlab.data.emoji import composite, load_emoji
from jaxlab.data.images import image_transform, normalize
from jaxlab.data.pairs import ImageRecord, TextRecord, open_pairs, write_images_tsv, write_texts
from jaxlab.text import WordPieceTokenizer

SIZE, LENGTH = 16, 12
NUM_IMAGES = 5


@pytest.fixture(scope="module")
def pictures():
    """Emoji as PNG files with an alpha channel."""
    pictures = []
    for encoded in load_emoji().encoded_images("google")[:NUM_IMAGES]:
        buffer = io.BytesIO()
        with Image.open(io.BytesIO(encoded)) as image:
            image.convert("RGBA").save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    return pictures


TEXTS = [
    TextRecord(70, "笑脸“Big”Eyes", (3,)),
    TextRecord(71, "两个", (1, 0)),
    TextRecord(72, "一个", (1,)),
    TextRecord(73, "两个", (4,)),
]


@pytest.fixture
def folder(tmp_path, pictures):
    write_images_tsv(
        tmp_path / "train_imgs.tsv", [ImageRecord(i, p) for i, p in enumerate(pictures)]
    )
    write_texts(tmp_path / "train_texts.jsonl", TEXTS)
    return tmp_path


def transform(**fields):
    tokenizer = WordPieceTokenizer()
    return make_pair_transform(PairDataConfig(**fields), tokenizer, SIZE, LENGTH)


def test_example_without_augmentation_is_the_evaluation_transform(folder, pictures):
    record = open_pairs(folder, "train")[0]
    example = transform(augment=False)(record, np.random.default_rng(0))
    assert example.keys() == {"image", "ids"}
    assert example["image"].shape == (SIZE, SIZE, 3) and example["image"].dtype == np.uint8
    prepared = jax.jit(prepare_pixels)(jax.random.key(0), example["image"][None])
    np.testing.assert_allclose(prepared[0], image_transform(SIZE)(pictures[3]), atol=1e-6)


def test_text_is_cleaned_as_the_original_cleans_data_sets(folder):
    record = open_pairs(folder, "train")[0]
    ids = transform(augment=False)(record, np.random.default_rng(0))["ids"]
    tokenizer = WordPieceTokenizer()
    cleaned = tokenizer.tokenize(['笑脸"big"eyes'], context_length=LENGTH)[0]
    np.testing.assert_array_equal(ids, cleaned, strict=True)
    raw = tokenizer.tokenize([record["text"]], context_length=LENGTH)[0]
    assert ids.dtype == np.int32 and not np.array_equal(ids, raw)


def test_augmentation_follows_the_generator(folder):
    record = open_pairs(folder, "train")[0]
    augmenting = transform(augmentation=AugmentConfig(crop_scale=(0.3, 0.6)))
    found = [augmenting(record, np.random.default_rng(seed))["image"] for seed in (0, 0, 1)]
    plain = transform(augment=False)(record, np.random.default_rng(0))["image"]
    np.testing.assert_array_equal(found[0], found[1])
    assert found[0].shape == plain.shape and found[0].dtype == np.uint8
    for one, other in ((found[0], found[2]), (found[0], plain)):
        assert np.abs(one.astype(int) - other).mean() > 1


def test_broken_picture_is_named_by_its_pair_and_its_image(folder):
    record = open_pairs(folder, "train")[3] | {"image": b"no picture"}
    with pytest.raises(ValueError, match=r"image of example 3 \(image_id 1\): 10 bytes"):
        transform()(record, np.random.default_rng(0))


def test_retrieval_set_has_every_image_and_text_once(folder, pictures):
    retrieval = RetrievalSet(open_pairs(folder, "train"))
    # First seen first; image 2 belongs to no text. Equal texts of different ids stay apart.
    np.testing.assert_array_equal(retrieval.image_ids, np.array([3, 1, 0, 4]), strict=True)
    np.testing.assert_array_equal(retrieval.text_ids, np.array([70, 71, 72, 73]), strict=True)
    assert retrieval.texts == [record.text for record in TEXTS]
    assert retrieval.images_of_text == [[0], [1, 2], [1], [3]]
    assert len(retrieval) == 4

    pixels = retrieval.read_images(1, 3, SIZE)
    assert pixels.shape == (2, SIZE, SIZE, 3) and pixels.dtype == np.uint8
    for one, image_id in zip(pixels, (1, 0), strict=True):
        np.testing.assert_allclose(
            normalize(one), image_transform(SIZE)(pictures[image_id]), atol=1e-6
        )


def test_retrieval_set_reads_past_its_end_and_on_white(folder):
    retrieval = RetrievalSet(open_pairs(folder, "train"))
    pixels = retrieval.read_images(2, 100, 64)
    assert len(pixels) == 2
    drawings = load_emoji().images("google")[[0, 4]]
    np.testing.assert_array_equal(pixels, composite(drawings))


def test_retrieval_set_names_a_picture_that_cannot_be_decoded(folder, pictures):
    images = [ImageRecord(i, p) for i, p in enumerate(pictures)]
    images[1] = ImageRecord(1, pictures[1][:40])
    write_images_tsv(folder / "train_imgs.tsv", images)
    retrieval = RetrievalSet(open_pairs(folder, "train"))
    with pytest.raises(ValueError, match="image of example 1: 40 bytes"):
        retrieval.read_images(0, 4, SIZE)
    # What the experiments do before training: look at every picture.
    with pytest.raises(ValueError, match="train_imgs.tsv"):
        open_pairs(folder, "train", verify_images=True)
    kept = RetrievalSet(open_pairs(folder, "train", on_error="skip", verify_images=True))
    assert kept.image_ids.tolist() == [3, 0, 4]
    assert kept.texts == ["笑脸“Big”Eyes", "两个", "两个"]
    assert kept.images_of_text == [[0], [1], [2]]
    assert len(kept.read_images(0, 3, SIZE)) == 3


def test_settings_are_hashable_and_frozen():
    config = PairDataConfig(folder="here")
    assert hash(config) == hash(dataclasses.replace(config))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.folder = "there"
