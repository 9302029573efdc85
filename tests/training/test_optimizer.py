import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab.training import (
    OptimizerConfig,
    TrainState,
    at_step,
    decays,
    ema_params,
    evaluation_params,
    learning_rate,
    make_optimizer,
    make_schedule,
)


@pytest.mark.parametrize(
    "step, expected",
    [(0, 5e-7), (99, 5e-5), (100, 5e-5), (417, 2.506184e-5), (734, 3.059567e-10)],
)
def test_cosine_schedule_has_the_published_rates(step, expected):
    schedule = make_schedule(OptimizerConfig(learning_rate=5e-5, warmup_steps=100), 735)
    assert float(schedule(step)) == pytest.approx(expected, rel=1e-5)
    assert float(jax.jit(schedule)(step)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("warmup, final", [(0, 0.0), (7, 0.0), (7, 0.02)])
def test_schedules_follow_their_formulas(warmup, final):
    steps, peak = 40, 0.3
    t = np.arange(steps + 5, dtype=np.float64)
    x = np.clip((t - warmup) / (steps - warmup), 0, 1)
    shapes = {"cosine": (1 + np.cos(np.pi * x)) / 2, "linear": 1 - x, "constant": 1 + 0 * x}
    for name, shape in shapes.items():
        config = OptimizerConfig(
            learning_rate=peak, warmup_steps=warmup, schedule=name, final_learning_rate=final
        )
        expected = np.where(
            t < warmup, peak * (t + 1) / max(warmup, 1), final + (peak - final) * shape
        )
        got = jax.vmap(make_schedule(config, steps))(jnp.arange(steps + 5))
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-8)


def test_warmup_must_end_before_the_run_does():
    with pytest.raises(ValueError, match="warmup_steps=10 does not fit.*num_steps=10.*at most 9"):
        make_optimizer(OptimizerConfig(warmup_steps=10), 10)


def adamw(params, grads, config, rates, mask):
    """Adam with decoupled decay and clipping in float64."""
    moments = {name: (0.0, 0.0) for name in params}
    params = {name: value.astype(np.float64) for name, value in params.items()}
    for t, (step_grads, rate) in enumerate(zip(grads, rates, strict=True), 1):
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in step_grads.values()))
        for name, g in step_grads.items():
            g = g.astype(np.float64) * min(1.0, config.clip_norm / norm)
            m, v = moments[name]
            m = config.b1 * m + (1 - config.b1) * g
            v = config.b2 * v + (1 - config.b2) * g**2
            moments[name] = (m, v)
            step = m / (1 - config.b1**t) / (np.sqrt(v / (1 - config.b2**t)) + config.eps)
            step += config.weight_decay * mask[name] * params[name]
            if config.name == "lamb" and mask[name]:
                step *= np.linalg.norm(params[name]) / np.linalg.norm(step)
            params[name] -= rate * step
    return params


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_adamw_and_lamb_equal_their_float64_form_with_decay_and_clipping(name):
    config = OptimizerConfig(
        name=name, learning_rate=0.1, warmup_steps=2, b2=0.98, eps=1e-6, weight_decay=0.2,
        clip_norm=1.0,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 4), "bias": (4,)}
    params = {name: rng.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    grads = [
        {name: rng.normal(size=s).astype(np.float32) * size for name, s in shapes.items()}
        for size in (0.1, 5.0, 1.0, 0.2)
    ]
    tx = make_optimizer(config, 4)
    got, state = params, tx.init(params)
    rates = []
    for step_grads in grads:
        updates, state = tx.update(step_grads, state, got)
        got = optax.apply_updates(got, updates)
        rates.append(float(learning_rate(state)))
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.05])
    expected = adamw(params, grads, config, rates, {"kernel": 1, "bias": 0})
    for name in shapes:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-5, atol=1e-6)


def test_lamb_leaves_parameters_without_gradients_as_they_are():
    config = OptimizerConfig(
        name="lamb", learning_rate=0.1, schedule="constant", weight_decay=0.01, clip_norm=1.0
    )
    tx = make_optimizer(config, 10)
    params = {"idle": jnp.ones((2, 2)), "used": jnp.ones((2, 2)), "zero": jnp.zeros((2, 2))}
    state = tx.init(params)
    got = params
    for _ in range(3):
        grads = {name: jnp.full((2, 2), float(name != "idle")) for name in params}
        updates, state = tx.update(grads, state, got)
        got = optax.apply_updates(got, updates)
    np.testing.assert_array_equal(got["idle"], params["idle"])
    np.testing.assert_allclose(got["used"], 0.9**3, rtol=1e-5)
    assert (got["zero"] < 0).all()


@pytest.mark.parametrize(
    "name, b1, expected",
    [("sgd", 0.0, [1.0, 1.0]), ("sgd", 0.5, [1.0, 1.5]), ("lion", 0.9, [1, 1])],
)
def test_other_optimizers_take_their_steps(name, b1, expected):
    config = OptimizerConfig(name=name, b1=b1, learning_rate=0.5, schedule="constant")
    tx = make_optimizer(config, 10)
    params = {"w": jnp.ones(2)}
    state = tx.init(params)
    for size in expected:
        updates, state = tx.update({"w": jnp.ones(2)}, state, params)
        np.testing.assert_allclose(updates["w"], -0.5 * size, rtol=1e-6)


def test_decay_rules_spare_what_they_say():
    params = {"norm": {"scale": jnp.ones(3)}, "kernel": jnp.ones((2, 3)), "log_scale": jnp.ones(())}
    assert decays(params) == {"norm": {"scale": False}, "kernel": True, "log_scale": False}
    assert decays(params, "all", ("log_scale$",)) == {
        "norm": {"scale": True},
        "kernel": True,
        "log_scale": False,
    }


def test_given_mask_overrides_the_rule():
    config = OptimizerConfig(name="sgd", b1=0.0, weight_decay=1.0, schedule="constant")
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones(2)}
    tx = make_optimizer(config, 10, lambda params: {"a": False, "b": True})
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert float(jnp.abs(updates["a"]).max()) == 0
    np.testing.assert_allclose(updates["b"], -1e-3, rtol=1e-6)


def test_average_follows_the_updated_parameters():
    config = OptimizerConfig(
        name="sgd", b1=0.0, learning_rate=1.0, schedule="constant", ema_decay=0.9
    )
    tx = make_optimizer(config, 10)
    params = {"w": jnp.zeros(2)}
    state = tx.init(params)
    expected = 0.0
    for step in range(1, 4):
        updates, state = tx.update({"w": -jnp.ones(2)}, state, params)
        params = optax.apply_updates(params, updates)
        expected = 0.9 * expected + 0.1 * step
    np.testing.assert_allclose(ema_params(state)["w"], expected, rtol=1e-6)
    run = TrainState.create(params, make_optimizer(config, 10), jax.random.key(0))
    run = dataclasses.replace(run, params={"w": params["w"] + 9}, opt_state=state)
    np.testing.assert_allclose(evaluation_params(run)["w"], expected, rtol=1e-6)
    held = evaluation_params(run, lambda params: {"w": jnp.minimum(params["w"], 0.25)})
    np.testing.assert_array_equal(held["w"], 0.25)
    plain = TrainState.create(params, make_optimizer(OptimizerConfig(), 10), jax.random.key(0))
    assert evaluation_params(plain) is plain.params
    with pytest.raises(ValueError, match="ema_decay > 0"):
        ema_params(make_optimizer(OptimizerConfig(), 10).init(params))


def test_schedule_goes_on_from_a_given_step_and_keeps_the_moments():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4, ema_decay=0.5)
    tx, params = make_optimizer(config, 100), {"w": jnp.ones((2, 2))}
    _, state = tx.update({"w": jnp.ones((2, 2))}, tx.init(params), params)
    moved = at_step(state, 2)
    _, after = tx.update({"w": jnp.ones((2, 2))}, moved, params)
    assert float(learning_rate(after)) == 0.75  # (2 + 1) / 4, not (1 + 1) / 4
    np.testing.assert_array_equal(moved[0].mu["w"], state[0].mu["w"])
    np.testing.assert_array_equal(moved[-1].average["w"], state[-1].average["w"])


def test_config_lists_all_mistakes_at_once():
    with pytest.raises(ValueError) as error:
        OptimizerConfig(name="adm", b2=1.0, weight_decay=-1.0, no_decay=("(",), warmup_steps=-2)
    for part in ("name='adm'", "adamw", "b2=1.0", "weight_decay=-1.0", "'('", "warmup_steps=-2"):
        assert part in str(error.value)


def test_every_field_is_documented():
    for field in dataclasses.fields(OptimizerConfig):
        assert f"\n      {field.name}: " in OptimizerConfig.__doc__
