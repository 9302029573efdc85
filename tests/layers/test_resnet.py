import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.layers.resnet import ModifiedResNet, ModifiedResNetConfig

SMALL = ModifiedResNetConfig(
    image_size=16, stem_width=8, stages=(1, 1), expansion=2, num_heads=2, output_dim=6
)
TINY = ModifiedResNetConfig(
    image_size=32, stem_width=32, stages=(1, 1, 1), expansion=2, num_heads=4, output_dim=128
)
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(4, 16, 16, 3)), jnp.float32)


@functools.cache
def variables():
    """Variables whose residual branches are awake (their last scales start at zero)."""
    drawn = jax.jit(ModifiedResNet(SMALL).init)(jax.random.key(0), IMAGES)
    for stage in range(2):
        drawn["params"][f"stage_{stage}_block_0"]["bn_3"]["scale"] = jnp.ones(16 * 2**stage)
    return drawn


@functools.cache
def train(**changes):
    model = ModifiedResNet(dataclasses.replace(SMALL, **changes))

    def loss(params):
        state = {"params": params, "batch_stats": variables()["batch_stats"]}
        (features, _), updated = model.apply(state, IMAGES, train=True, mutable=["batch_stats"])
        return jnp.sin(features).sum(), (features, updated)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, (features, updated)), gradients = step(variables()["params"])
    return features, updated, gradients


def shapes(config):
    images = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    return jax.eval_shape(ModifiedResNet(config).init, jax.random.key(0), images)


def test_training_moves_the_statistics_and_evaluation_does_not():
    _, updated, _ = train()
    before = jax.tree.leaves(variables()["batch_stats"])
    assert all(
        np.abs(a - b).max() > 1e-6
        for a, b in zip(jax.tree.leaves(updated["batch_stats"]), before, strict=True)
    )
    _, kept = ModifiedResNet(SMALL).apply(variables(), IMAGES, mutable=["batch_stats"])
    for a, b in zip(jax.tree.leaves(kept["batch_stats"]), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_statistics_of_devices_differ_from_those_of_the_batch():
    whole, _, _ = train()
    apart, _, _ = train(norm_groups=2)
    assert np.abs(whole - apart).max() > 1e-4


def test_residual_branches_start_as_nothing():
    params = jax.jit(ModifiedResNet(SMALL).init)(jax.random.key(0), IMAGES)["params"]
    for name, value in params.items():
        if name.startswith("stage"):
            np.testing.assert_array_equal(value["bn_3"]["scale"], 0.0)
            np.testing.assert_array_equal(value["shortcut_norm"]["scale"], 1.0)


def test_taps_are_the_stem_and_the_stages():
    _, taps = ModifiedResNet(SMALL).apply(variables(), IMAGES, return_taps=True)
    assert [h.shape for h in taps.hidden] == [(4, 16, 8), (4, 16, 16), (4, 4, 32)]
    assert taps.scores == ()


def test_group_norm_keeps_no_statistics_and_no_batch():
    config = dataclasses.replace(SMALL, stem_width=16, norm="group")
    model = ModifiedResNet(config)
    drawn = model.init(jax.random.key(0), IMAGES)
    assert set(drawn) == {"params"}
    whole, _ = model.apply(drawn, IMAGES, train=True)
    alone, _ = model.apply(drawn, IMAGES[:1], train=True)
    np.testing.assert_allclose(whole[:1], alone, rtol=1e-4, atol=1e-5)


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
        ({"norm": "instance"}, r"norm='instance' is unknown; use one of \('batch', 'group'\)"),
        ({"norm": "group"}, "stem_width=8 must be a multiple of 16"),
        ({"stem_pool": 0}, "stem_pool=0 must be at least 1"),
    ],
)
def test_impossible_configs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)
