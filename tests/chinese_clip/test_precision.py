"""Computation in bfloat16: every loss stays finite, in float32, and near that of float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.chinese_clip.distillation import DistillationConfig, Taught
from jaxlab.chinese_clip.model import (
    ChineseClip,
    ChineseClipConfig,
    abstract_variables,
    normalize,
)
from jaxlab.chinese_clip.objective import LossConfig, make_objective
from jaxlab.chinese_clip.train import make_step_parts, split_variables
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.vit import VisionTransformerConfig

ROWS = 8
MODEL = ChineseClipConfig(
    VisionTransformerConfig(8, 2, 1, 32, 2, 64, 16),
    BertConfig(vocab_size=20, num_layers=1, width=32, num_heads=2, mlp_width=64, max_positions=6),
    6,
)
ALL = DistillationConfig(image_weight=0.5, similarity_weight=0.5, image_map="linear")
LOSSES = {
    "dense": (LossConfig(equal_texts_match=True, label_smoothing=0.1), None),
    "chunked": (LossConfig(kind="chunked", chunk_size=3, tower_grad_scale=0.5), None),
    "local": (LossConfig(kind="local"), None),
    "sigmoid": (LossConfig(kind="sigmoid", chunk_size=3), ALL),
}


def draw():
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape, scale=0.2).astype(np.float32),
        abstract_variables(MODEL),
    )
    variables["params"]["logit_scale"] = np.float32(4.6)
    own = {"bias": np.float32(-10.0), "image_map": rng.normal(size=(16, 9)).astype(np.float32)}
    return {**variables, "objective": own}


@functools.cache
def losses_and_gradient(dtype):
    """Of all losses on the same features; dropout, patch masking and checkpointed blocks are on."""
    rng = np.random.default_rng(2)
    batch = {
        "image": jnp.asarray(rng.normal(size=(ROWS, 8, 8, 3)), jnp.float32),
        "ids": jnp.asarray(rng.integers(1, 20, (ROWS, 6)), jnp.int32),
    }
    taught = Taught(
        *(normalize(jnp.asarray(x, jnp.float32)) for x in rng.normal(size=(2, ROWS, 9)))
    )
    frozen = {"teacher": {"params": {"logit_scale": jnp.float32(3.0)}}}
    model = ChineseClip(MODEL, remat=True, dtype=dtype)
    towers = make_step_parts(model, None, LossConfig(), image_locked=False, mask_ratio=0.25)

    def loss_of(params):
        features, _ = towers.encode(params, {}, {}, batch, jax.random.key(0))
        found = {
            name: make_objective(config, None, distillation)(
                params, frozen, features, taught, batch
            )[0]
            for name, (config, distillation) in LOSSES.items()
        }
        return sum(found.values()), (found, features)

    params = split_variables(draw(), image_locked=False).params
    (_, (found, features)), grads = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(params)
    return jax.device_get((found, features, grads))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_in_bfloat16_are_near_those_in_float32(name):
    low, high = losses_and_gradient(jnp.bfloat16)[0], losses_and_gradient(jnp.float32)[0]
    assert low[name].dtype == np.float32
    assert low[name] == pytest.approx(high[name], rel=0.03)


def test_features_and_gradients_of_bfloat16_are_float32_and_point_the_same_way():
    _, features, grads = losses_and_gradient(jnp.bfloat16)
    _, wanted_features, wanted = losses_and_gradient(jnp.float32)
    for got, want in zip(features, wanted_features, strict=True):
        assert got.dtype == np.float32
        assert (got * want).sum(1).min() >= 0.999
    flat = [np.concatenate([np.ravel(g) for g in jax.tree.leaves(t)]) for t in (grads, wanted)]
    assert all(g.dtype == np.float32 and np.isfinite(g).all() for g in flat)
    assert flat[0] @ flat[1] >= 0.99 * np.linalg.norm(flat[0]) * np.linalg.norm(flat[1])
