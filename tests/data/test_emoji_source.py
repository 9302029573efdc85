import io
import sys

import numpy as np
import pytest
from PIL import Image

from jaxlab.data.emoji import emoji_source, load_emoji, standard_split
from jaxlab.data.emoji import source as source_module

needs_array_record = pytest.mark.skipif(
    not source_module.has_array_record(), reason="array_record ships for Linux only"
)


@pytest.fixture(scope="module")
def emoji():
    return load_emoji()


@pytest.fixture
def without_array_record(monkeypatch):
    monkeypatch.setattr(source_module, "has_array_record", lambda: False)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


def test_records_of_the_memory_path(without_array_record, emoji):
    source = emoji_source(split="unseen_concept")
    level = standard_split(emoji).levels["unseen_concept"]
    assert len(source) == 382
    for position in (0, 381):
        record = source[position]
        style, index = level.image_queries[position].tolist()
        assert (record["style"], record["index"]) == (style, index)
        assert record["example_id"] == style * 3786 + index
        assert record["name_zh"].decode() == emoji.names_zh[index]
        assert tuple(word.decode() for word in record["keywords_zh"]) == emoji.keywords_zh[index]
        assert record["image"].shape == (64, 64, 4)


def test_encoded_drawings_are_webp_files(without_array_record):
    encoded = emoji_source(split="unseen_drawing", decode=False)[3]["image"]
    pixels = emoji_source(split="unseen_drawing")[3]["image"]
    with Image.open(io.BytesIO(encoded)) as image:
        assert image.format == "WEBP"
        np.testing.assert_array_equal(np.asarray(image), pixels)


@needs_array_record
def test_prepared_files_hold_the_records_of_memory(data_dir, monkeypatch):
    names = ("train", "unseen_drawing", "unseen_combination", "unseen_concept")
    prepared = {name: emoji_source(split=name, data_dir=data_dir) for name in names}
    assert {name: len(source) for name, source in prepared.items()} == {
        "train": 5542,
        "unseen_drawing": 382,
        "unseen_combination": 682,
        "unseen_concept": 382,
    }
    monkeypatch.setattr(source_module, "has_array_record", lambda: False)
    for name in ("train", "unseen_combination"):
        memory = emoji_source(split=name)
        assert len(memory) == len(prepared[name])
        for position in (0, 1, len(memory) // 2, len(memory) - 1):
            left, right = prepared[name][position], memory[position]
            np.testing.assert_array_equal(left.pop("image"), right.pop("image"))
            assert left == right
    assert "tensorflow" not in sys.modules


@needs_array_record
def test_the_second_call_reads_the_prepared_files(data_dir, monkeypatch):
    emoji_source(split="train", data_dir=data_dir)

    def refuse(*args, **kwargs):
        raise AssertionError("prepared again")

    monkeypatch.setattr("jaxlab.data.emoji.tfds_builder.emoji_records", refuse)
    encoded = emoji_source(split="unseen_concept", data_dir=data_dir, decode=False)
    assert encoded[0]["image"][:4] == b"RIFF"


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match=r"split='test' is not one of 'train', 'unseen_drawing'"):
        emoji_source(split="test")
