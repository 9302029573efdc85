"""Weights of terms in a step of training: by rule, learnt, and the same for any microbatches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab.distillation.compilation import compile_objective
from jaxlab.distillation.objective_config import (
    HardConfig,
    ObjectiveConfig,
    ResponseConfig,
)
from jaxlab.distillation.sweep import make_sweep_step, make_variants
from jaxlab.distillation.train import (
    Parts,
    distillation_extra,
    distillation_params,
    losses_of,
    make_distillation_step,
)
from jaxlab.training import TrainState
from tests.distillation.networks import FROZEN, STUDENT, TEACHER, forward, make_batch, random_params

CONFIG = ObjectiveConfig(
    "last1:pkd@3->linear", ResponseConfig("kl", temperature=2.0), HardConfig(0.5)
)
NAMES = ("pkd/1-0", "response", "hard")
TX = optax.sgd(0.1)


def plain(*arguments, **options):
    return forward(*arguments, **{**options, "key": None})


def parts_of(weighting):
    config = dataclasses.replace(CONFIG, weighting=weighting, weighting_every=2)
    return Parts(compile_objective(config, STUDENT, TEACHER), plain, forward)


def run(weighting, num_steps=1, batch=None, **options):
    parts = parts_of(weighting)
    params = distillation_params(parts.objective, random_params(STUDENT, 2), jax.random.key(3))
    extra = distillation_extra(parts.objective)
    state = TrainState.create(params, TX, jax.random.key(5), extra)
    step = jax.jit(make_distillation_step(parts, TX, 10, **options))
    states, metrics = [state], []
    for i in range(num_steps):
        state, found = step(state, FROZEN, batch or make_batch(), jax.random.key(i))
        states.append(state)
        metrics.append({name: float(value) for name, value in found.items()})
    return states, metrics


def values_of(state, weighting="fixed"):
    parts = parts_of(weighting)
    losses, _ = losses_of(parts, state.params, FROZEN, make_batch(), jnp.float32(0), None)
    return {name: float(value) for name, value in losses.values.items()}


def test_running_means_bring_every_term_to_the_size_of_its_weight():
    states, metrics = run("running_mean", 2)
    assert metrics[0]["loss"] == pytest.approx(3 + 1 + 0.5, rel=1e-5)
    first, second = (values_of(state) for state in states[:2])
    for name, base in zip(NAMES, (3, 1, 0.5), strict=True):
        mean = (0.99 * 0.01 * first[name] + 0.01 * second[name]) / (0.99 * 0.01 + 0.01)
        assert metrics[1][f"weight/{name}"] == pytest.approx(base / mean, rel=1e-4)
        assert metrics[1][f"loss/{name}"] == pytest.approx(second[name], rel=1e-5)


def test_learnt_variances_follow_their_gradient_and_leave_the_student_alone():
    states, metrics = run("uncertainty", 2)
    fixed, _ = run("fixed", 1)
    for name, base in zip(NAMES, (3, 1, 0.5), strict=True):
        value = values_of(states[0])[name]
        log_variance = states[1].params["log_variances"][name]
        assert float(log_variance) == pytest.approx(-0.1 * base * (1 - value), rel=1e-4)
        wanted = base * np.exp(-float(log_variance))
        assert metrics[1][f"weight/{name}"] == pytest.approx(wanted, rel=1e-5)
    for found, wanted in zip(
        jax.tree.leaves(states[1].params["student"]),
        jax.tree.leaves(fixed[1].params["student"]),
        strict=True,
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_learnt_variances_are_the_same_for_any_microbatches():
    (_, whole), (metrics,) = run("uncertainty")
    (_, parted), (again,) = run("uncertainty", num_microbatches=4)
    assert metrics == pytest.approx(again, rel=1e-5)
    for a, b in zip(*(jax.tree.leaves(state.params) for state in (whole, parted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_balanced_gradients_have_one_norm_and_are_measured_every_other_step():
    states, metrics = run("gradient_norm", 2)
    parts, params = parts_of("fixed"), states[0].params
    shared = {name: params["student"][name] for name in ("words", "layers")}

    def value(shared, name):
        student = {**params["student"], **shared}
        found, _ = losses_of(
            parts, {**params, "student": student}, FROZEN, make_batch(), jnp.float32(0), None
        )
        return found.values[name]

    norms = {
        name: metrics[0][f"weight/{name}"] / base * float(optax.tree.norm(gradient))
        for name, base in zip(NAMES, (3, 1, 0.5), strict=True)
        for gradient in [jax.jit(jax.grad(value), static_argnums=1)(shared, name)]
    }
    assert list(norms.values()) == pytest.approx([norms["hard"]] * 3, rel=1e-4)
    for name in NAMES:
        assert metrics[1][f"weight/{name}"] == metrics[0][f"weight/{name}"]


@pytest.mark.parametrize("weighting", ["running_mean", "gradient_norm"])
def test_rules_of_whole_batches_refuse_microbatches(weighting):
    with pytest.raises(ValueError, match="needs the terms of a whole batch, and it goes through"):
        make_distillation_step(parts_of(weighting), TX, 10, num_microbatches=2)


@pytest.mark.parametrize("weighting", ["running_mean", "gradient_norm"])
def test_a_rule_with_a_state_says_where_it_is_from(weighting):
    parts = parts_of(weighting)
    params = distillation_params(parts.objective, random_params(STUDENT, 2), jax.random.key(3))
    state = TrainState.create(params, TX, jax.random.key(5))
    step = make_distillation_step(parts, TX, 10)
    with pytest.raises(ValueError, match=r"with distillation_extra\(objective\) as its extra"):
        step(state, FROZEN, make_batch(), jax.random.key(0))


def test_a_sweep_refuses_weights_with_a_state():
    parts = parts_of("uncertainty")
    variants = make_variants(parts.objective, [{"hard": 1.0}])
    with pytest.raises(ValueError, match="train the students one by one"):
        make_sweep_step(parts, TX, 10, variants, ["a"])
