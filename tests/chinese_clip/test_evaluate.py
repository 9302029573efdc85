"""Encoders in evaluation mode, and features a batch at a time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.chinese_clip.evaluate import encode_all, make_encoders
from jaxlab.chinese_clip.model import ChineseClip, ChineseClipConfig, abstract_variables
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.resnet import ModifiedResNetConfig

CONFIG = ChineseClipConfig(
    ModifiedResNetConfig(8, 16, (1,), expansion=2, num_heads=2, output_dim=16, stem_pool=1),
    BertConfig(
        vocab_size=30, num_layers=1, width=32, num_heads=2, mlp_width=32, max_positions=6,
        hidden_dropout=0.5,
    ),
    context_length=6,
)  # fmt: skip


@pytest.mark.parametrize("rows", [1, 5, 8, 17])
def test_every_row_once_in_order_in_batches_of_one_shape(rows):
    shapes = []

    def encode(batch):
        shapes.append(batch.shape)
        return jnp.asarray(batch, jnp.float32) * 2

    inputs = np.arange(rows * 3).reshape(rows, 3)
    features = encode_all(encode, inputs, batch_size=8)
    np.testing.assert_array_equal(features, inputs.astype(np.float32) * 2, strict=True)
    assert shapes == [(8, 3)] * -(-rows // 8)


def test_nothing_to_encode_is_an_error():
    with pytest.raises(ValueError, match="no rows to encode; wanted at least one image or text"):
        encode_all(jnp.asarray, np.zeros((0, 3), np.float32))


def test_features_do_not_depend_on_the_batch_and_compile_once():
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape, scale=0.5).astype(np.float32),
        abstract_variables(CONFIG),
    )
    variables["batch_stats"] = jax.tree.map(lambda a: 1 + np.abs(a), variables["batch_stats"])
    encoders = make_encoders(ChineseClip(CONFIG), lambda images: images / 32.0 - 4.0)
    images = rng.integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)
    ids = rng.integers(1, 30, (5, 6)).astype(np.int32)
    for encode, inputs in ((encoders.image, images), (encoders.text, ids)):
        together = encode_all(lambda batch, e=encode: e(variables, batch), inputs, 3)
        # No dropout, no statistics of the batch: the same row beside others.
        turned = encode_all(lambda batch, e=encode: e(variables, batch), inputs[::-1], 3)
        np.testing.assert_allclose(together, turned[::-1], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, rtol=1e-5)
        assert together.shape == (5, 16) and together.std(axis=0).max() > 0.01
        assert encode._cache_size() == 1
    # `prepare` runs before the tower.
    bare = make_encoders(ChineseClip(CONFIG)).image(
        variables, images[:3].astype(np.float32) / 32.0 - 4.0
    )
    features = encoders.image(variables, images[:3])
    np.testing.assert_allclose(features, bare, rtol=1e-5, atol=1e-6)


def test_the_type_of_the_computation_leaves_features_in_float32():
    model = ChineseClip(dataclasses.replace(CONFIG), dtype=jnp.bfloat16)
    encoders = make_encoders(model)
    shapes = abstract_variables(CONFIG)
    ids = jax.ShapeDtypeStruct((2, 6), jnp.int32)
    assert jax.eval_shape(encoders.text, shapes, ids).dtype == jnp.float32
