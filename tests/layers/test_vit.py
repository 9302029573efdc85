import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from jaxlab.layers.convolution import average_pool
from jaxlab.layers.vit import (
    VisionTransformer,
    VisionTransformerConfig,
    drop_patches,
    num_kept_patches,
)

CONFIG = VisionTransformerConfig(
    12, 4, num_layers=1, width=8, num_heads=2, mlp_width=16, output_dim=5
)
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, 12, 3)), jnp.float32)
VARIABLES = VisionTransformer(CONFIG).init(jax.random.key(0), IMAGES)
TOKENS = jnp.broadcast_to(jnp.arange(17.0)[None, :, None], (3, 17, 2))


def encode(**options):
    return VisionTransformer(CONFIG).apply(VARIABLES, IMAGES, **options)


def test_patches_are_embedded_as_by_a_strided_convolution():
    params = VARIABLES["params"]
    grid = jax.lax.conv_general_dilated(
        IMAGES,
        params["patch_embedding"],
        (4, 4),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    tokens = jnp.concatenate([jnp.zeros((2, 1, 8)), grid.reshape(2, 9, 8)], axis=1)
    tokens = tokens.at[:, :1].add(params["class_embedding"][None, None])
    tokens = tokens + params["positional_embedding"][None]
    centred = tokens - tokens.mean(-1, keepdims=True)
    expected = centred / jnp.sqrt(tokens.var(-1, keepdims=True) + 1e-5)
    _, taps = encode(return_taps=True)
    np.testing.assert_allclose(taps.hidden[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("patches", "ratio", "kept"), [(196, 0.5, 98), (196, 0.75, 49), (16, 0.3, 11), (9, 0.0, 9)]
)
def test_masking_keeps_the_stated_number(patches, ratio, kept):
    assert num_kept_patches(patches, ratio) == kept
    tokens = jnp.zeros((1, patches + 1, 1))
    assert drop_patches(tokens, ratio, jax.random.key(0)).shape == (1, kept + 1, 1)


def test_masking_keeps_the_class_token_and_different_patches():
    kept = np.asarray(drop_patches(TOKENS, 0.5, jax.random.key(4)))[:, :, 0]
    assert (kept[:, 0] == 0).all()
    for row in kept[:, 1:]:
        assert len(set(row)) == 8
        assert min(row) >= 1
    assert not (kept[0] == kept[1]).all()


def test_every_patch_is_kept_equally_often():
    """A correct program fails once in 1,000 seeds (the seed is fixed)."""
    draws = 2000
    tokens = jnp.broadcast_to(jnp.arange(17.0)[None, :, None], (draws, 17, 1))
    kept = np.asarray(drop_patches(tokens, 0.5, jax.random.key(5)))[:, 1:, 0].astype(int)
    # Drawn without replacement: counts vary less than multinomial ones by 1 - 8/16 of the patches.
    counts = np.bincount(kept.ravel(), minlength=17)[1:]
    expected = draws * 8 / 16
    statistic = chisquare(counts, np.full(16, expected)).statistic
    variance_ratio = (1 - 8 / 16) * 16 / 15
    assert chisquare(counts).pvalue > 1e-3
    assert statistic / variance_ratio < 37.7  # the 0.999 quantile of chi-squared with 15 degrees


def test_no_masking_is_bit_identical_and_needs_no_key():
    expected, _ = encode()
    np.testing.assert_array_equal(encode(train=True, mask_ratio=0.0)[0], expected)
    assert drop_patches(TOKENS, 0.0, jax.random.key(0)) is TOKENS


def test_masking_works_while_training_only():
    rngs = {"mask": jax.random.key(1)}
    np.testing.assert_array_equal(encode(mask_ratio=0.5, rngs=rngs)[0], encode()[0])
    masked, taps = encode(mask_ratio=0.5, train=True, return_taps=True, rngs=rngs)
    assert taps.hidden[0].shape == (2, 1 + 4, 8)
    assert np.abs(masked - encode()[0]).max() > 1e-3


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5])
def test_a_ratio_outside_its_range_is_refused(ratio):
    with pytest.raises(ValueError, match=rf"mask_ratio={ratio} .*\[0, 1\)"):
        encode(mask_ratio=ratio)


@pytest.mark.parametrize("images", [average_pool(IMAGES, 2), IMAGES.transpose(0, 3, 1, 2)])
def test_images_of_another_shape_are_refused(images):
    with pytest.raises(ValueError, match=r"\(batch, 12, 12, 3\) wanted.*channels last"):
        VisionTransformer(CONFIG).apply(VARIABLES, images)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("image_size", 14, "image_size=14 .*patch_size=4.*12 and 16"),
        ("num_heads", 3, "width=8 is not divisible by num_heads=3"),
        ("output_dim", 0, "output_dim=0 must be at least 1"),
        ("activation", "elu", "'elu' is unknown"),
    ],
)
def test_impossible_configs_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **{field: value})
