import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab.distillation.progressive import (
    EMBEDDINGS,
    ProgressiveTransfer,
    scale_gradient,
    scale_layer_gradients,
    scale_layer_updates,
)

PLAN = ProgressiveTransfer(num_layers=3, transfer_share=0.6)
PARAMS = {
    "embeddings": jnp.ones(2),
    "encoder": {f"layer_{i}": {"kernel": jnp.full((2,), i + 1.0)} for i in range(3)},
}


@pytest.mark.parametrize("num_steps", [30, 100, 1000])
@pytest.mark.parametrize(("num_layers", "share"), [(3, 0.6), (10, 0.5), (24, 1.0)])
def test_every_layer_has_the_same_number_of_steps(num_steps, num_layers, share):
    plan = ProgressiveTransfer(num_layers, share)
    steps = jnp.arange(num_steps)
    found = np.asarray(jax.vmap(plan.current_layer)(steps / num_steps))
    wanted = [min(int(s * num_layers / (round(share * num_steps))), num_layers) for s in steps]
    np.testing.assert_array_equal(found, wanted)
    counts = np.bincount(found)[:num_layers]
    assert counts.max() - counts.min() <= 1


def test_layers_up_to_the_current_one_share_the_weight():
    layers = (EMBEDDINGS, 0, 0, 1, 1, 2, 2)
    for progress, num_active in ((0.0, 3), (0.19, 3), (0.21, 5), (0.41, 7), (0.59, 7)):
        found = np.asarray(PLAN.match_weights(jnp.float32(progress), layers))
        np.testing.assert_allclose(found[:num_active], 0.5 / num_active, rtol=1e-6)
        assert not found[num_active:].any()
        assert float(PLAN.loss_weight(jnp.float32(progress))) == 0.0
    for progress in (0.6, 0.8, 1.0):
        assert not np.asarray(PLAN.match_weights(jnp.float32(progress), layers)).any()
        assert float(PLAN.loss_weight(jnp.float32(progress))) == 1.0


def test_layers_that_had_their_turn_learn_by_a_tenth_until_all_had_theirs():
    steps = jnp.asarray([0.0, 0.25, 0.45, 0.6, 1.0])
    wanted = [[1, 1, 1], [0.1, 1, 1], [0.1, 0.1, 1], [1, 1, 1], [1, 1, 1]]
    np.testing.assert_allclose(jax.vmap(PLAN.layer_factors)(steps), wanted, rtol=1e-6)


def test_scaling_a_gradient_leaves_the_value_as_it_is():
    x = jnp.asarray([0.1, 0.7])
    value, gradient = jax.value_and_grad(
        lambda x: (scale_gradient(x, jnp.float32(0.1)) ** 2).sum()
    )(x)
    assert float(value) == float((x**2).sum())
    np.testing.assert_allclose(gradient, 0.2 * x, rtol=1e-6)


def test_gradients_of_layers_have_the_factors_of_the_moment():
    factors = PLAN.layer_factors(jnp.float32(0.45))

    def loss(params):
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(params))

    found = jax.grad(lambda p: loss(scale_layer_gradients(p, factors)))(PARAMS)
    for i, factor in enumerate((0.1, 0.1, 1.0)):
        wanted = 2 * (i + 1.0) * factor
        np.testing.assert_allclose(found["encoder"][f"layer_{i}"]["kernel"], wanted, rtol=1e-6)
    np.testing.assert_allclose(found["embeddings"], 0.2, rtol=1e-6)


def test_updates_of_adam_are_scaled_behind_it():
    tx = optax.chain(optax.adam(0.01), scale_layer_updates(PLAN, 10))
    plain = optax.adam(0.01)
    state, plain_state = tx.init(PARAMS), plain.init(PARAMS)
    for step in range(10):
        gradients = jax.tree.map(lambda leaf, s=step: leaf * (s - 4.5), PARAMS)
        found, state = tx.update(gradients, state, PARAMS)
        wanted, plain_state = plain.update(gradients, plain_state, PARAMS)
        factors = PLAN.layer_factors(jnp.float32(step / 10))
        for i in range(3):
            name = f"layer_{i}"
            np.testing.assert_allclose(
                found["encoder"][name]["kernel"],
                factors[i] * wanted["encoder"][name]["kernel"],
                rtol=1e-6,
            )
        np.testing.assert_allclose(
            found["embeddings"], factors[0] * wanted["embeddings"], rtol=1e-6
        )


def test_wrong_plans_are_told_at_once():
    with pytest.raises(ValueError, match="num_layers=0.*transfer_share=1.5.*lower_factor=-1.0"):
        ProgressiveTransfer(0, 1.5, lower_factor=-1.0)
    with pytest.raises(ValueError, match=r"matches of layers \[3\]; the student has 3"):
        PLAN.match_weights(jnp.float32(0.0), (0, 3))
    with pytest.raises(ValueError, match="num_steps=0"):
        scale_layer_updates(PLAN, 0)
