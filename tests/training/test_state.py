import jax
import jax.numpy as jnp
import pytest

from jaxlab.training import (
    OptimizerConfig,
    TrainState,
    make_optimizer,
    merge_params,
    split_params,
)

PARAMS = {
    "image": {"layer_0": {"kernel": jnp.ones((5, 7))}, "norm": {"scale": jnp.ones(7)}},
    "text": {"kernel": jnp.ones((3, 2)), "image_gate": jnp.ones(3)},
}


def test_split_and_merge_are_inverse():
    trained, frozen = split_params(PARAMS, "^image/")
    assert list(trained) == ["text"] and list(frozen) == ["image"]
    merged = merge_params(trained, frozen)
    assert jax.tree.structure(merged) == jax.tree.structure(PARAMS)
    assert split_params(PARAMS, "") == (PARAMS, {})


def test_frozen_leaves_own_no_optimizer_state():
    trained, frozen = split_params(PARAMS, "^image/")
    tx = make_optimizer(OptimizerConfig(ema_decay=0.9, weight_decay=0.1), 10)
    state = TrainState.create(trained, tx, jax.random.key(0))
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(state.opt_state))
    # Two moments and an average of each trained leaf, two counts and the rate.
    assert shapes == sorted([(3, 2), (3,)] * 3 + [()] * 3)
    assert frozen["image"]["norm"]["scale"].shape == (7,)


@pytest.mark.parametrize("pattern, share", [("^picture/", "none"), (".", "all")])
def test_pattern_that_freezes_nothing_or_everything_is_refused(pattern, share):
    with pytest.raises(ValueError, match=rf"freezes {share} of 4 .*\['image', 'text'\]"):
        split_params(PARAMS, pattern)


def test_merge_refuses_a_leaf_that_is_in_both():
    with pytest.raises(ValueError, match="both trained and frozen: text/kernel"):
        merge_params(PARAMS, {"text": {"kernel": jnp.ones(1)}})
