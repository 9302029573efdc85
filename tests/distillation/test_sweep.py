"""A sweep trains every student as it would train alone."""

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
from jaxlab.distillation.sweep import init_sweep, make_sweep_step, make_variants, student_of
from jaxlab.distillation.train import (
    Parts,
    distillation_params,
    losses_of,
    make_distillation_step,
)
from jaxlab.training import TrainState
from tests.distillation.networks import (
    FROZEN,
    STUDENT,
    TEACHER,
    forward,
    make_batch,
    random_params,
)

# Clipping by the norm of each student alone is part of the claim.
TX = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.01))
ALL = ObjectiveConfig(
    "gap:hidden_mse->linear,last1:attention_kl@2,last1:query_relation[heads=2]",
    ResponseConfig("kl", temperature=2.0),
    HardConfig(0.5),
)
OBJECTIVE = compile_objective(ALL, STUDENT, TEACHER)
NAMES = ("response", "hidden", "relation", "hard")
FACTORS = (
    {"response": 1.0},
    {"hidden_mse": 2.0, "hard": 1.0},
    {"query_relation": 1.0},
    {"hard": 1.0},
)
SEEDS = (0, 1, 0, 2)
STUDENTS = [random_params(STUDENT, 10 + seed) for seed in SEEDS]


def without_dropout(*args, **options):
    return forward(*args, **{**options, "key": None})


PARTS = Parts(OBJECTIVE, without_dropout, forward)


@pytest.mark.parametrize("at_once", [0, 1, 3])
def test_every_student_trains_as_it_would_alone(at_once):
    variants = make_variants(OBJECTIVE, FACTORS, seeds=SEEDS)
    state = init_sweep(OBJECTIVE, STUDENTS, TX, jax.random.key(0), SEEDS)
    step = jax.jit(make_sweep_step(PARTS, TX, 3, variants, NAMES, at_once=at_once))
    first = state.params
    for i in range(3):
        state, metrics = step(state, FROZEN, make_batch(), jax.random.key(i))
    alone = ObjectiveConfig("gap:hidden_mse@2->linear", ResponseConfig("none"), HardConfig(0.5))
    objective = compile_objective(alone, STUDENT, TEACHER)
    single = jax.jit(make_distillation_step(PARTS._replace(objective=objective), TX, 3))
    params = distillation_params(objective, STUDENTS[1], jax.random.key(9))
    names = list(params["projections"])
    params["projections"] = jax.tree.map(
        lambda leaf: leaf[1], {name: first["projections"][name] for name in names}
    )
    expected = TrainState.create(params, TX, jax.random.key(1))
    for i in range(3):
        expected, own = single(expected, FROZEN, make_batch(), jax.random.key(i))
    assert int(state.step) == 3
    np.testing.assert_allclose(metrics["loss/hidden"], own["loss"], rtol=1e-5)
    # Adam divides rounding noise of gradients that are zero by itself: compare what moved more.
    for a, b in zip(
        jax.tree.leaves(student_of(state, 1)),
        jax.tree.leaves(expected.params["student"]),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_seeds_and_temperatures_make_students_differ():
    """Students of one seed have the same dropout and projections."""
    seeds, temperatures = (3, 3, 4, 3), (1.0, 1.0, 1.0, 8.0)
    factors = [{"response": 1.0}] * 4
    variants = make_variants(OBJECTIVE, factors, temperatures=temperatures, seeds=seeds)
    state = init_sweep(OBJECTIVE, [STUDENTS[0]] * 4, TX, jax.random.key(0), seeds)
    parts = PARTS._replace(student=forward)
    step = jax.jit(make_sweep_step(parts, TX, 3, variants, ("a", "same", "seed", "warm")))
    _, metrics = step(state, FROZEN, make_batch(), jax.random.key(1))
    assert metrics["loss/a"] == metrics["loss/same"]
    assert metrics["loss/a"] != metrics["loss/seed"]
    assert metrics["loss/a"] != metrics["loss/warm"]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"\['colour'\] are no terms"):
        make_variants(OBJECTIVE, [{"colour": 1.0}])
    with pytest.raises(ValueError, match="1 sets of factors, 2 temperatures"):
        make_variants(OBJECTIVE, [{"hard": 1.0}], temperatures=(1.0, 2.0))
    with pytest.raises(ValueError, match="2 different shapes"):
        init_sweep(OBJECTIVE, [STUDENTS[0], random_params(TEACHER, 0)], TX, jax.random.key(0))
    with pytest.raises(ValueError, match="1 names for 2 students"):
        make_sweep_step(PARTS, TX, 3, make_variants(OBJECTIVE, [{"hard": 1.0}] * 2), ("a",))
    moving = compile_objective(ObjectiveConfig("emd:hidden_mse->linear"), STUDENT, TEACHER)
    variants = make_variants(moving, [{"response": 1.0}])
    with pytest.raises(ValueError, match="hidden_mse/emd take layers from step to step"):
        make_sweep_step(PARTS._replace(objective=moving), TX, 3, variants, ("a",))


@pytest.mark.parametrize("temperature", [0.0, -2.0, float("nan")])
def test_temperatures_of_variants_are_positive(temperature):
    with pytest.raises(ValueError, match="must be positive"):
        make_variants(OBJECTIVE, [{"hard": 1.0}] * 2, temperatures=(1.0, temperature))


@pytest.mark.parametrize("factor", [-1.0, float("nan"), float("inf")])
def test_factors_of_variants_are_finite_and_not_negative(factor):
    with pytest.raises(ValueError, match=f"factors response={factor} of weights must be 0"):
        make_variants(OBJECTIVE, [{"hard": 1.0}, {"response": factor}])


def test_students_side_by_side_have_one_pass_each():
    config = ObjectiveConfig(hard=HardConfig(1.0, r_drop=0.5))
    objective = compile_objective(config, STUDENT, TEACHER)
    variants = make_variants(objective, [{"hard": 1.0}])
    with pytest.raises(ValueError, match="hard.r_drop=0.5 takes a second pass"):
        make_sweep_step(PARTS._replace(objective=objective), TX, 3, variants, ("a",))


def test_principal_components_of_the_teacher_are_common_to_all_students():
    config = ObjectiveConfig("last1:cos->pca/down", ResponseConfig("none"))
    objective = compile_objective(config, STUDENT, TEACHER)
    parts = PARTS._replace(objective=objective)
    down = {"kernel": jnp.eye(TEACHER.width, STUDENT.width), "bias": jnp.zeros(STUDENT.width)}
    frozen = {**FROZEN, "principal": {"down": down}}
    variants = make_variants(objective, [{"cos": 1.0}, {"cos": 2.0}])
    state = init_sweep(objective, [STUDENTS[0]] * 2, TX, jax.random.key(0))
    step = jax.jit(make_sweep_step(parts, TX, 3, variants, ("one", "two")))
    params = {"student": STUDENTS[0], "projections": {}}
    alone, _ = losses_of(parts, params, frozen, make_batch(), jnp.zeros(()), None)
    _, metrics = step(state, frozen, make_batch(), jax.random.key(1))
    np.testing.assert_allclose(metrics["loss/two"], 2 * alone.total(), rtol=1e-5)


def test_variants_say_what_counts_for_whom():
    variants = make_variants(OBJECTIVE, FACTORS, seeds=SEEDS)
    columns = dict(zip(OBJECTIVE.names, jnp.asarray(variants.factors).T.tolist(), strict=True))
    assert columns["hidden_mse/1-0"] == [0, 2, 0, 0]
    assert columns["hidden_mse/emb-emb"] == [0, 2, 0, 0]
    assert columns["hard"] == [0, 1, 0, 1]
