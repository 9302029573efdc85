"""Features and gradients beside the original itself (`pytest -m parity`, the parity extra)."""

import functools
import math
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.checkpoints.foreign.names import unflatten
from jaxlab.chinese_clip.model import MODELS, ChineseClip, ChineseClipConfig, normalize
from jaxlab.chinese_clip.published import variable_shapes
from jaxlab.chinese_clip.weights import original_table
from jaxlab.layers.resnet import ModifiedResNetConfig

pytestmark = [pytest.mark.parity, pytest.mark.timeout(600)]

# Whole ViT-B-16 and RN50; the larger ones with fewer layers.
SIZES = {
    "ViT-B-16": None,
    "RN50": None,
    "ViT-L-14": (2, 1),
    "ViT-L-14-336": (1, 1),
    "ViT-H-14": (2, 2),
}


def sizes(name: str) -> ChineseClipConfig:
    from dataclasses import replace

    config, depth = MODELS[name], SIZES[name]
    if depth is None:
        return config
    vision, text = (
        replace(tower, num_layers=layers)
        for tower, layers in zip((config.vision, config.text), depth, strict=True)
    )
    return replace(config, vision=vision, text=text)


def original(config: ChineseClipConfig):
    """The original with random weights: its own start, no parameter left at exactly 0 or 1."""
    import torch

    stand_ins = {name: mock.MagicMock() for name in ("torchvision", "torchvision.transforms")}
    sys.modules.update(stand_ins)
    from cn_clip.clip.model import CLIP

    for name in stand_ins:  # others ask whether it is installed
        del sys.modules[name]

    vision, text = config.vision, config.text
    if isinstance(vision, ModifiedResNetConfig):
        tower = {"vision_layers": vision.stages, "vision_width": 64, "vision_patch_size": None}
    else:
        tower = {
            "vision_layers": vision.num_layers,
            "vision_width": vision.width,
            "vision_patch_size": vision.patch_size,
            "vision_head_width": vision.width // vision.num_heads,
        }
    torch.manual_seed(0)
    model = CLIP(
        embed_dim=config.embed_dim,
        image_resolution=vision.image_size,
        vocab_size=text.vocab_size,
        text_attention_probs_dropout_prob=0.0,
        text_hidden_act="gelu",
        text_hidden_dropout_prob=0.0,
        text_hidden_size=text.width,
        text_initializer_range=0.02,
        text_intermediate_size=text.mlp_width,
        text_max_position_embeddings=text.max_positions,
        text_num_attention_heads=text.num_heads,
        text_num_hidden_layers=text.num_layers,
        text_type_vocab_size=text.num_types,
        **tower,
    )
    state = model.float().eval().state_dict()
    for tensor in state.values():
        if tensor.ndim == 1 and tensor.is_floating_point():
            tensor += 0.1 * torch.rand_like(tensor)
    model.load_state_dict(state)
    return model


@functools.cache
def both(name):
    """Our model and variables, the original, images (NHWC) and token ids."""
    config = sizes(name)
    model = original(config)
    state = {n: t.numpy() for n, t in model.state_dict().items() if "num_batches" not in n}
    flat = original_table(config).load(state, variable_shapes(config))
    rng = np.random.default_rng(0)
    size = config.vision.image_size
    images = rng.standard_normal((2, size, size, 3), dtype=np.float32)
    ids = rng.integers(1, config.text.vocab_size, (2, config.context_length))
    ids[:, 0], ids[1, 9:] = 101, 0
    return config, jax.tree.map(jnp.asarray, unflatten(flat)), model, images, ids


def theirs(model, images, ids):
    from torch import from_numpy

    return model(from_numpy(images.transpose(0, 3, 1, 2)), from_numpy(ids))


@pytest.mark.parametrize("name", sorted(SIZES))
def test_features_equal_the_originals(name):
    import torch

    config, variables, model, images, ids = both(name)
    with torch.no_grad():
        expected = [x.numpy() for x in theirs(model, images, ids)[:2]]
    apply = jax.jit(ChineseClip(config).apply)
    features = apply(variables, jnp.asarray(images), jnp.asarray(ids))
    half = jax.jit(ChineseClip(config, dtype=jnp.bfloat16).apply)
    rounded = half(variables, jnp.asarray(images), jnp.asarray(ids))
    for got, low, want in zip(features[:2], rounded[:2], expected, strict=True):
        assert np.abs(got - want).max() <= 2e-5
        assert np.sum(np.asarray(got) * want, axis=1).min() >= 0.99999
        assert np.sum(np.asarray(low) * want, axis=1).min() >= 0.999


@pytest.mark.parametrize("name", ["ViT-L-14", "ViT-H-14"])
def test_gradients_equal_the_originals(name):
    """Relative to the largest entry of each tensor; key biases have a gradient of zero.

    The function is a random projection of the features: the features of random towers are so close
    to each other that differences between them, as a contrastive loss takes, magnify the rounding.
    """
    import torch

    config, variables, model, images, ids = both(name)
    weights = np.random.default_rng(1).standard_normal((2, 2, config.embed_dim), dtype=np.float32)
    image, text, _ = theirs(model, images, ids)
    (image * torch.from_numpy(weights[0]) + text * torch.from_numpy(weights[1])).sum().backward()

    @jax.jit
    @jax.grad
    def step(params):
        features = ChineseClip(config).apply(
            variables | {"params": params}, jnp.asarray(images), jnp.asarray(ids)
        )
        return jnp.sum(features.image * weights[0] + features.text * weights[1])

    gradient = step(variables["params"])
    named = original_table(config).save(
        {
            "/".join(["params", *(part.key for part in path)]): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
        }
    )
    compared = 0
    for tensor, parameter in model.named_parameters():
        if tensor.endswith("key.bias") or parameter.grad is None:
            continue
        want, got = parameter.grad.numpy(), named[tensor]
        if tensor.endswith("in_proj_bias"):
            third = len(want) // 3
            want, got = (np.concatenate([x[:third], x[2 * third :]]) for x in (want, got))
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max(), tensor
        compared += 1
    assert compared > 30


def test_normalising_equals_torch():
    import torch

    x = np.random.default_rng(1).standard_normal((4, 7), dtype=np.float32)
    expected = torch.nn.functional.normalize(torch.from_numpy(x), dim=1).numpy()
    np.testing.assert_allclose(normalize(jnp.asarray(x)), expected, rtol=1e-6)
    assert math.isclose(float(np.linalg.norm(expected[0])), 1.0, rel_tol=1e-6)
