"""Features of data sets: any batch and mesh, broken images, going on after a kill."""

import io
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image

from jaxlab.chinese_clip import Weights
from jaxlab.chinese_clip.evaluate import make_encoders
from jaxlab.chinese_clip.features import (
    FeatureExtractor,
    PictureFiles,
    StoredImages,
    fingerprint,
    open_images,
    write_all,
)
from jaxlab.chinese_clip.model import ChineseClip, ChineseClipConfig, abstract_variables
from jaxlab.data.images import image_transform
from jaxlab.data.pairs import (
    FeatureWriter,
    ImageRecord,
    read_features,
    write_images_tsv,
    write_lmdb,
)
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.vit import VisionTransformerConfig
from jaxlab.text import WordPieceTokenizer

CONFIG = ChineseClipConfig(
    VisionTransformerConfig(16, 8, 1, 32, 2, 32, 8),
    BertConfig(num_layers=1, width=16, num_heads=2, mlp_width=16, max_positions=8),
    context_length=8,
)
TEXTS = [f"第{i}张“图”片 ABC" for i in range(11)]


@pytest.fixture(scope="module")
def weights():
    rng = np.random.default_rng(0)
    return Weights(
        CONFIG,
        jax.tree.map(
            lambda leaf: rng.normal(size=leaf.shape, scale=0.5).astype(np.float32),
            abstract_variables(CONFIG),
        ),
    )


@pytest.fixture(scope="module")
def extractor(weights):
    """On 8 devices, so a batch of 3 becomes one of 8."""
    return FeatureExtractor(weights, batch_size=3, num_threads=2)


def png(seed, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 4), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels, "RGBA").convert(mode).save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Eleven images of a TSV file."""
    path = tmp_path_factory.mktemp("images") / "valid_imgs.tsv"
    write_images_tsv(path, (ImageRecord(100 - i, png(i)) for i in range(11)))
    return open_images(path)


def joined(rows):
    return np.concatenate([batch.features for batch in rows])


def test_features_over_eight_devices_are_those_of_the_encoders(weights, extractor, store):
    """11 rows in batches of 8: the last one is padded."""
    assert extractor.batch_size == 8
    encoders = make_encoders(ChineseClip(CONFIG))
    transform = image_transform(16)
    images = np.stack([transform(store.read(int(i))) for i in store.image_ids])
    ids = WordPieceTokenizer().tokenize(TEXTS, context_length=8, clean=True)
    expected = [encoders.image(weights.variables, images), encoders.text(weights.variables, ids)]
    source = StoredImages(store, store.image_ids)
    found = [joined(extractor.images(source)), joined(extractor.texts(TEXTS))]
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        assert np.std(want, axis=0).max() > 1e-3


def test_half_precision_stays_close_and_gives_float32(weights, extractor):
    half = joined(FeatureExtractor(weights, dtype="bfloat16", batch_size=16).texts(TEXTS))
    full = joined(extractor.texts(TEXTS))
    assert half.dtype == np.float32 and not np.array_equal(half, full)
    assert np.sum(half * full, axis=1).min() > 0.999


def test_nothing_to_encode_gives_no_rows(extractor):
    assert list(extractor.texts([])) == [] and list(extractor.texts(TEXTS, start=11)) == []


def test_a_killed_extraction_does_not_encode_its_rows_again(tmp_path, extractor, store):
    ids = store.image_ids

    class Counted(StoredImages):
        read = []

        def __getitem__(self, index, /):
            self.read.append(index)
            return super().__getitem__(index)

    source = Counted(store, ids)
    writer = FeatureWriter(tmp_path / "a.npy", ids, 8, "w")

    def killed(rows):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_all(writer, extractor.images(source), killed)
    del writer
    writer = FeatureWriter(tmp_path / "a.npy", ids, 8, "w")
    assert writer.rows_done == 8
    Counted.read.clear()
    told = []
    count = write_all(writer, extractor.images(source, start=8), told.append)
    assert count == 11 and told == [3]
    assert set(Counted.read) == {8, 9, 10}
    whole = joined(extractor.images(StoredImages(store, ids)))
    np.testing.assert_allclose(
        read_features(tmp_path / "a.npy", "image").features, whole, rtol=1e-5
    )


def test_a_broken_image_is_named_or_skipped(tmp_path, extractor):
    images = [ImageRecord(i, png(i) if i != 9 else b"no image") for i in range(11)]
    write_images_tsv(tmp_path / "a.tsv", images)
    store = open_images(tmp_path / "a.tsv")
    source = StoredImages(store, store.image_ids)
    with pytest.raises(ValueError, match="image_id=9"):
        list(extractor.images(source))
    rows = list(extractor.images(source, on_error="skip"))
    assert [batch.skipped.tolist() for batch in rows] == [[], [1]]
    writer = FeatureWriter(tmp_path / "a.npy", store.image_ids, 8, "w")
    assert write_all(writer, rows, lambda _: None) == 10
    assert 9 not in read_features(tmp_path / "a.npy", "image").ids


def test_every_published_form_of_images_opens(tmp_path, store):
    images = [ImageRecord(int(i), store.read(int(i))) for i in store.image_ids]
    write_lmdb(tmp_path / "valid", images, [])
    for path in (tmp_path / "valid", tmp_path / "valid" / "imgs"):
        opened = open_images(path)
        assert set(opened.image_ids) == set(store.image_ids)
        assert opened.read(95) == store.read(95)
    with pytest.raises(FileNotFoundError):
        open_images(tmp_path / "none.tsv")


def test_picture_files_and_transparency(tmp_path, weights, extractor):
    (tmp_path / "a.png").write_bytes(png(1, "RGBA"))
    source = PictureFiles([tmp_path / "a.png"])
    white = joined(extractor.images(source))
    original = joined(FeatureExtractor(weights, compat="original", batch_size=8).images(source))
    assert np.abs(white - original).max() > 1e-3
    (tmp_path / "b.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="b.png"):
        list(extractor.images(PictureFiles([tmp_path / "b.png"])))


def test_fingerprints_differ_with_values_and_sizes(weights):
    first = fingerprint(weights)
    assert first == fingerprint(Weights(CONFIG, jax.tree.map(np.copy, weights.variables)))
    changed = jax.tree.map(np.copy, weights.variables)
    changed["params"]["logit_scale"] += np.float32(1e-6)
    assert fingerprint(Weights(CONFIG, changed)) != first
    assert fingerprint(Weights(replace(CONFIG, context_length=7), weights.variables)) != first


def test_bad_options_are_named(weights):
    with pytest.raises(ValueError, match="batch_size=0"):
        FeatureExtractor(weights, batch_size=0)
    with pytest.raises(ValueError, match="compat='black'"):
        FeatureExtractor(weights, compat="black")
