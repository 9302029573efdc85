import logging
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.parallel import make_mesh, replicated, shard_batch, split_host_fields
from jaxlab.training import OptimizerConfig, TrainState, make_optimizer, make_train_step
from jaxlab.training.step import join_microbatches, split_microbatches

TOY = runpy.run_path(str(Path(__file__).with_name("toy.py")))
SGD = OptimizerConfig(name="sgd", b1=0.0, learning_rate=0.1, schedule="constant")


def plain_loss(params, frozen, extra, batch, key):
    """Mean over rows, without randomness; counts its calls in `extra`."""
    hidden = jnp.tanh(batch["x"] @ params["up"]["kernel"] + params["up"]["bias"][None])
    error = hidden @ params["down"]["kernel"] - batch["y"]
    return jnp.mean(error**2), ({"calls": extra["calls"] + 1}, {"error": jnp.abs(error).mean()})


def fresh(tx):
    params = TOY["init_params"](jax.random.key(0))
    return TrainState.create(params, tx, jax.random.key(1), {"calls": jnp.zeros((), int)})


def batch():
    return split_host_fields(TOY["batch_at"](0))[0]


@pytest.mark.parametrize("parts", [2, 4, 16])
def test_accumulated_step_equals_that_of_the_whole_batch(parts):
    tx = make_optimizer(SGD, 10)
    whole_step = jax.jit(make_train_step(plain_loss, tx))
    whole, whole_metrics = whole_step(fresh(tx), {}, batch(), jax.random.key(2))
    step = jax.jit(make_train_step(plain_loss, tx, num_microbatches=parts))
    got, metrics = step(fresh(tx), {}, batch(), jax.random.key(2))
    assert int(got.extra["calls"]) == parts and int(whole.extra["calls"]) == 1
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        got.params,
        whole.params,
    )
    assert metrics.keys() == {"loss", "error", "grad_norm", "learning_rate"}
    for name, value in metrics.items():
        assert value.dtype == jnp.float32 and value.shape == ()
        np.testing.assert_allclose(value, whole_metrics[name], rtol=1e-5)


def test_joined_parts_are_the_batch_in_its_order():
    rows = {"x": np.arange(24).reshape(12, 2), "y": np.arange(12)}
    for parts in (1, 3, 12):
        joined = join_microbatches(split_microbatches(rows, parts))
        jax.tree.map(np.testing.assert_array_equal, joined, rows)


def test_gradients_of_parts_add_up_in_float32():
    # 256 parts with gradients 1, 1/256, 1/256, ...: a bfloat16 sum would stay at 1.
    rows = np.full((256, 1), 1 / 256, np.float32)
    rows[0] = 1

    def loss(params, frozen, extra, batch, key):
        return (params["w"] * batch["x"].astype(jnp.bfloat16)[0, 0]).astype(jnp.float32), (
            extra,
            {},
        )

    tx = make_optimizer(SGD, 10)
    state = TrainState.create({"w": jnp.bfloat16(0)}, tx, jax.random.key(0))
    step = make_train_step(loss, tx, num_microbatches=256)
    _, metrics = step(state, {}, {"x": rows}, jax.random.key(1))
    assert float(metrics["grad_norm"]) == pytest.approx((1 + 255 / 256) / 256, rel=1e-6)


def test_microbatches_of_a_sharded_batch_equal_one_device_and_move_no_rows():
    tx = make_optimizer(SGD, 10)
    step = make_train_step(plain_loss, tx, num_microbatches=2)
    expected, _ = jax.jit(step)(fresh(tx), {}, batch(), jax.random.key(2))
    mesh = make_mesh()
    arguments = jax.device_put((fresh(tx), {}, jax.random.key(2)), replicated(mesh))
    state, frozen, key = arguments
    compiled = jax.jit(step).lower(state, frozen, shard_batch(mesh, batch()), key).compile()
    text = compiled.as_text()
    assert "all-reduce" in text  # of the gradients
    assert "all-to-all" not in text and "collective-permute" not in text
    assert "all-gather" not in text
    got, _ = compiled(state, frozen, shard_batch(mesh, batch()), key)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
        got.params,
        expected.params,
    )


def test_parts_have_keys_of_their_own_and_strided_rows():
    def loss(params, frozen, extra, batch, key):
        seen = jnp.stack([jax.random.uniform(key), batch["x"][0, 0]])
        return params["w"].sum(), ({"seen": jnp.roll(extra["seen"], 1, 0).at[0].set(seen)}, {})

    tx = make_optimizer(SGD, 10)
    state = TrainState.create(
        {"w": jnp.ones(1)}, tx, jax.random.key(0), {"seen": jnp.zeros((3, 2))}
    )
    rows = {"x": jnp.arange(6.0).reshape(6, 1)}
    step = jax.jit(make_train_step(loss, tx, num_microbatches=3))
    got, _ = step(state, {}, rows, jax.random.key(5))
    draws, first_rows = np.asarray(got.extra["seen"]).T
    assert len(set(draws)) == 3
    assert list(first_rows) == [2, 1, 0]


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_memory_not_numbers(remat):
    tx = make_optimizer(SGD, 10)
    whole_step = jax.jit(make_train_step(plain_loss, tx))
    expected, _ = whole_step(fresh(tx), {}, batch(), jax.random.key(2))
    step = jax.jit(make_train_step(plain_loss, tx, remat=remat))
    got, _ = step(fresh(tx), {}, batch(), jax.random.key(2))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got.params, expected.params
    )
    arguments = (fresh(tx), {}, batch(), jax.random.key(2))
    text = str(jax.make_jaxpr(step)(*arguments))
    assert "checkpoint" in text or "remat" in text


def test_post_update_acts_on_the_updated_parameters():
    tx = make_optimizer(SGD, 10)
    step = make_train_step(
        plain_loss, tx, post_update=lambda p: jax.tree.map(lambda x: jnp.clip(x, -0.01, 0.01), p)
    )
    got, _ = jax.jit(step)(fresh(tx), {}, batch(), jax.random.key(2))
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(got.params)) <= 0.01


def test_frozen_tree_gets_no_gradient_and_step_compiles_once(caplog):
    def loss(params, frozen, extra, batch, key):
        return jnp.mean((batch["x"] @ frozen["w"] * params["scale"]) ** 2), (extra, {})

    tx = make_optimizer(SGD, 10)
    state = TrainState.create({"scale": jnp.ones(())}, tx, jax.random.key(0))
    step = jax.jit(make_train_step(loss, tx), donate_argnums=0)
    frozen = {"w": jnp.ones((4, 2))}
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        for position in range(3):
            arrays = split_host_fields(TOY["batch_at"](position))[0]
            state, metrics = step(state, frozen, arrays, jax.random.key(3))
    assert sum("Finished XLA compilation of jit(step)" in m for m in caplog.messages) == 1
    assert int(state.step) == 3
    assert jax.tree.leaves(state.params)[0].shape == ()


def test_arguments_are_checked():
    tx = make_optimizer(SGD, 10)
    with pytest.raises(ValueError, match="num_microbatches=0"):
        make_train_step(plain_loss, tx, num_microbatches=0)
    with pytest.raises(ValueError, match="remat='some' is not one of none, dots, full"):
        make_train_step(plain_loss, tx, remat="some")
    with pytest.raises(ValueError, match="7 rows does not divide into 2.*such as 6"):
        split_microbatches({"x": jnp.ones((7, 2))}, 2)
