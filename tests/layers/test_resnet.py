import copy
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.layers.resnet import Bottleneck, ModifiedResNet, ModifiedResNetConfig

SMALL = ModifiedResNetConfig(
    image_size=16, stem_width=8, stages=(1, 1), expansion=2, num_heads=2, output_dim=6
)
TINY = ModifiedResNetConfig(
    image_size=32, stem_width=32, stages=(1, 1, 1), expansion=2, num_heads=4, output_dim=128
)
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(4, 16, 16, 3)), jnp.float32)


def shapes(config):
    images = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    return jax.eval_shape(ModifiedResNet(config).init, jax.random.key(0), images)


def draw(config):
    """Variables drawn by NumPy, which compiles nothing; statistics as at the start."""
    rng = np.random.default_rng(1)
    drawn = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape, scale=0.3), leaf.dtype), shapes(config)
    )
    if "batch_stats" in drawn:
        drawn["batch_stats"] = jax.tree.map(jnp.ones_like, drawn["batch_stats"])
    return drawn


VARIABLES = draw(SMALL)


@functools.cache
def train(norm_groups):
    """Features, and the statistics after a step."""
    model = ModifiedResNet(dataclasses.replace(SMALL, norm_groups=norm_groups))
    step = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    (features, _), updated = step(VARIABLES, IMAGES)
    return features, updated["batch_stats"]


def test_training_moves_every_statistic_and_evaluation_none():
    before = jax.tree.leaves(VARIABLES["batch_stats"])
    for a, b in zip(jax.tree.leaves(train(1)[1]), before, strict=True):
        assert np.abs(a - b).max() > 1e-6
    evaluate = jax.jit(functools.partial(ModifiedResNet(SMALL).apply, mutable=["batch_stats"]))
    for a, b in zip(jax.tree.leaves(evaluate(VARIABLES, IMAGES)[1]), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_statistics_of_devices_differ_from_those_of_the_batch():
    assert np.abs(train(1)[0] - train(2)[0]).max() > 1e-4


def test_a_residual_branch_starts_as_nothing():
    x = jnp.zeros((1, 2, 2, 8))
    params = jax.jit(Bottleneck(SMALL, planes=8).init)(jax.random.key(0), x)["params"]
    np.testing.assert_array_equal(params["bn_3"]["scale"], 0.0)
    np.testing.assert_array_equal(params["bn_2"]["scale"], 1.0)
    np.testing.assert_array_equal(params["shortcut_norm"]["scale"], 1.0)


def test_taps_are_the_stem_and_the_stages():
    apply = functools.partial(ModifiedResNet(SMALL).apply, return_taps=True)
    _, taps = jax.eval_shape(apply, VARIABLES, IMAGES)
    assert [h.shape for h in taps.hidden] == [(4, 16, 8), (4, 16, 16), (4, 4, 32)]
    assert taps.scores == ()


def test_group_norm_keeps_no_statistics_and_no_batch():
    config = dataclasses.replace(SMALL, stem_width=16, stages=(1,), norm="group")
    drawn = draw(config)
    assert set(drawn) == {"params"}
    encode = jax.jit(functools.partial(ModifiedResNet(config).apply, train=True))
    # The other images of the batch are replaced, the first one stays.
    others = IMAGES.at[1:].set(IMAGES[:1] * 3.0 + 1.0)
    whole, changed = encode(drawn, IMAGES)[0], encode(drawn, others)[0]
    np.testing.assert_allclose(whole[0], changed[0], rtol=1e-5, atol=1e-6)
    assert np.abs(whole[1] - changed[1]).max() > 1e-2


def test_the_small_tower_has_about_half_a_million_parameters():
    params = shapes(TINY)["params"]
    assert 0.5e6 < sum(leaf.size for leaf in jax.tree.leaves(params)) < 1.0e6
    assert params["attention_pool"]["positional_embedding"].shape == (1 + 2 * 2, 256)


@pytest.mark.parametrize(
    ("changes", "grid"),
    [
        ({}, 2),
        ({"stem_pool": 1}, 4),
        ({"stem_stride": 1}, 4),
        ({"stem_stride": 1, "stem_pool": 1}, 8),
    ],
)
def test_the_stem_decides_the_size_of_the_map(changes, grid):
    config = dataclasses.replace(SMALL, **changes)
    assert config.grid_size == grid
    positions = shapes(config)["params"]["attention_pool"]["positional_embedding"]
    assert positions.shape == (1 + grid**2, 32)


def test_an_odd_map_is_cut_as_by_torch():
    config = dataclasses.replace(SMALL, image_size=22)
    assert config.grid_size == 2  # 22 -> 11 -> 5 -> 2
    assert shapes(config)["params"]["attention_pool"]["positional_embedding"].shape[0] == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": ()}, r"stages=\(\) needs"),
        ({"stem_width": 7}, "stem_width=7 must be even"),
        ({"image_size": 4}, "image_size=4 is smaller than the network's stride 8"),
        ({"num_heads": 5}, "width=32 is not divisible by num_heads=5"),
        ({"norm": "group"}, "stem_width=8 must be a multiple of 16"),
        ({"stem_pool": 0}, "stem_pool=0 must be at least 1"),
    ],
)
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_an_unknown_norm_is_refused_by_name():
    # The type checker of the tests would refuse it first: what users see is the check itself.
    config = copy.copy(SMALL)
    object.__setattr__(config, "norm", "instance")
    with pytest.raises(
        ValueError, match=r"norm='instance' is unknown; use one of \('batch', 'group'\)"
    ):
        config.__post_init__()
