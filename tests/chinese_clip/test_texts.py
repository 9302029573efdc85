"""Texts are encoded without their padding, to the same features."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.chinese_clip.evaluate import encode_all, make_encoders
from jaxlab.chinese_clip.model import ChineseClip, ChineseClipConfig, initialize
from jaxlab.chinese_clip.texts import encode_texts, trim_padding
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.vit import VisionTransformerConfig

TEXT = BertConfig(
    vocab_size=40, num_layers=2, width=32, num_heads=2, mlp_width=64, max_positions=20, init_std=0.2
)
CONFIG = ChineseClipConfig(VisionTransformerConfig(8, 4, 1, 32, 2, 32, 16), TEXT, 20)


@functools.cache
def encoder():
    variables = initialize(CONFIG, jax.random.key(0), image_tower=False)
    encode = make_encoders(ChineseClip(CONFIG)).text
    return lambda ids: encode(variables, jnp.asarray(ids))


def texts(lengths):
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 40, (len(lengths), 20), dtype=np.int32)
    ids[np.arange(20)[None] >= np.array(lengths)[:, None]] = 0
    return ids


def test_trimmed_texts_have_the_features_of_padded_ones_in_the_given_order():
    """One row is full, one has no token at all: that one sees all its padding."""
    ids = texts([3, 20, 2, 0, 7, 8, 9, 5, 2])
    shapes = set()

    def encode(batch):
        shapes.add(batch.shape)
        return encoder()(batch)

    got = encode_texts(encode, ids, batch_size=3)
    np.testing.assert_allclose(got, encode_all(encoder(), ids, 9), rtol=0, atol=1e-6)
    assert shapes == {(3, 8), (3, 20)}
    # A text without tokens does depend on its padding.
    alone = encoder()(np.zeros((3, 8), np.int32))
    assert np.abs(np.asarray(alone)[0] - got[3]).max() > 1e-3


@pytest.mark.parametrize(
    ("lengths", "multiple", "width"),
    [([3, 5], 8, 8), ([3, 9], 8, 16), ([17], 8, 20), ([4], 4, 4), ([5, 0], 4, 20), ([3], 1, 3)],
)
def test_trimming_cuts_after_the_longest_text(lengths, multiple, width):
    ids = texts(lengths)
    trimmed = trim_padding(ids, multiple)
    assert trimmed.shape == (len(lengths), width)
    np.testing.assert_array_equal(trimmed, ids[:, :width])


def test_padding_inside_a_text_stays():
    ids = np.array([[5, 0, 0, 7, 0, 0]])
    assert trim_padding(ids, 2).tolist() == [[5, 0, 0, 7]]


def test_nothing_to_encode_is_told():
    none = np.zeros((0, 4), np.int32)
    for call in (trim_padding, lambda ids: encode_texts(encoder(), ids)):
        with pytest.raises(ValueError, match="at least one row"):
            call(none)
    with pytest.raises(ValueError, match="multiple=0"):
        trim_padding(texts([3]), 0)
    with pytest.raises(ValueError, match="batch_size=0"):
        encode_texts(encoder(), texts([3]), 0)
