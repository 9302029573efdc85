"""The step of a distillation: one number for any padding, sharding, accumulation and teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxlab.distillation.cached_features import PREFIX
from jaxlab.distillation.compilation import compile_objective
from jaxlab.distillation.objective_config import (
    HardConfig,
    ObjectiveConfig,
    ResponseConfig,
)
from jaxlab.distillation.train import (
    Parts,
    distillation_params,
    losses_of,
    make_distillation_step,
    progress_at,
)
from jaxlab.parallel import make_mesh
from jaxlab.training import TrainState
from tests.distillation.networks import FROZEN, STUDENT, TEACHER, forward, make_batch, random_params

CONFIG = ObjectiveConfig(
    "gap:hidden_mse->linear,last1:attention_kl@2,last1:query_relation[heads=2],last1:pkd->linear",
    ResponseConfig("kl", temperature=2.0),
    HardConfig(0.5, label_smoothing=0.1),
)
OBJECTIVE = compile_objective(CONFIG, STUDENT, TEACHER)
PARTS = Parts(OBJECTIVE, forward, forward)
TX = optax.sgd(0.1)


def new_state():
    params = distillation_params(OBJECTIVE, random_params(STUDENT, 2), jax.random.key(3))
    return TrainState.create(params, TX, jax.random.key(5))


def run(batch, *, parts=PARTS, frozen=FROZEN, key=None, **options):
    """A step without dropout unless there is a key of it."""
    plain = parts._replace(student=lambda *a, **k: parts.student(*a, **{**k, "key": key}))
    step = jax.jit(make_distillation_step(plain, TX, 10, **options))
    return step(new_state(), frozen, batch, jax.random.key(0))


def assert_same(first, second, rtol=1e-6):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)


WHOLE = run(make_batch())


def test_padding_changes_nothing():
    assert_same(WHOLE, run(make_batch(time=13)))


@pytest.mark.parametrize("num_microbatches", [2, 4, 8])
def test_accumulation_changes_nothing(num_microbatches):
    """Parts with few tokens and parts with many count by their tokens."""
    state, metrics = run(make_batch(), num_microbatches=num_microbatches)
    assert_same(WHOLE, (state, metrics))


@pytest.mark.parametrize("devices", [2, 8])
def test_devices_change_nothing(devices):
    mesh = make_mesh(devices=jax.devices()[:devices])
    batch = jax.device_put(make_batch(), NamedSharding(mesh, P("data")))
    assert_same(WHOLE, run(batch))


@pytest.mark.parametrize("num_microbatches", [1, 4])
def test_a_cached_teacher_changes_nothing(num_microbatches):
    batch = make_batch()
    shown = forward(FROZEN["teacher"], batch, taps=OBJECTIVE.teacher_taps)
    cached = {PREFIX + "logits": shown.logits}
    for name, entry in OBJECTIVE.teacher_entries:
        cached[f"{PREFIX}{name}/{entry}"] = getattr(shown, name)[entry]
    found = run(
        {**batch, **cached},
        parts=PARTS._replace(teacher=None),
        frozen={},
        num_microbatches=num_microbatches,
    )
    assert_same(WHOLE, found)


def test_student_and_projections_learn_and_the_teacher_does_not_matter_twice():
    before, (after, metrics) = new_state(), WHOLE
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before.params, after.params)
    assert all(jax.tree.leaves(moved["projections"]))
    assert all(jax.tree.leaves(moved["student"]))
    assert {f"loss/{name}" for name in OBJECTIVE.names} < set(metrics)
    assert metrics["tokens"] == make_batch()["mask"].sum()


def test_no_gradient_goes_to_the_teacher():
    def loss(teacher):
        params = new_state().params
        losses, _ = losses_of(
            PARTS, params, {"teacher": teacher}, make_batch(), jnp.float32(0.0), None
        )
        return losses.total()

    for gradient in jax.tree.leaves(jax.grad(loss)(FROZEN["teacher"])):
        np.testing.assert_array_equal(gradient, 0.0)


def test_a_batch_of_padding_is_no_loss():
    batch = {
        "ids": jnp.zeros((2, 4), jnp.int32),
        "mask": jnp.zeros((2, 4), bool),
        "label": jnp.zeros(2, jnp.int32),
        "has_label": jnp.zeros(2, bool),
    }
    state, metrics = run(batch)
    assert metrics["loss"] == 0.0 and metrics["tokens"] == 0.0
    assert_same(new_state().params, state.params)


def test_tokens_of_two_vocabularies_are_compared_where_they_are_said_to_align():
    batch = {**make_batch(), "student_ids": make_batch()["ids"]}
    wanted = (
        "hidden_mse/emb-emb, .*query_relation/1-0 are of tokens, .*match pkd, .* or logits of texts"
    )
    with pytest.raises(ValueError, match=wanted):
        run(batch)

    def trace(objective, **options):
        params = distillation_params(objective, random_params(STUDENT, 2), jax.random.key(3))
        parts = Parts(objective, forward, forward, **options)
        return jax.eval_shape(
            lambda: losses_of(parts, params, FROZEN, batch, jnp.float32(0.0), None)[0].means
        )

    assert set(trace(OBJECTIVE, is_aligned=True)) == set(OBJECTIVE.names)
    matches = "last1:pkd->linear,last1:pooled_mse->linear,last1:pooled_cos->linear"
    of_texts = ObjectiveConfig(matches, ResponseConfig("kl"), HardConfig(0.5))
    assert len(trace(compile_objective(of_texts, STUDENT, TEACHER))) == 5
    of_tokens = ObjectiveConfig(response=ResponseConfig("kl"))
    with pytest.raises(ValueError, match="response are of tokens"):
        trace(compile_objective(of_tokens, STUDENT, TEACHER, task="tagging"))


def test_r_drop_compares_two_passes():
    config = ObjectiveConfig(response=ResponseConfig("none"), hard=HardConfig(1.0, r_drop=2.0))
    objective = compile_objective(config, STUDENT, None)
    params = distillation_params(objective, random_params(STUDENT, 2), jax.random.key(3))
    parts = Parts(objective, forward)
    batch, key = make_batch(), jax.random.key(7)
    losses, shown = losses_of(parts, params, {}, batch, jnp.float32(0.0), key)
    again = forward(params["student"], batch, key=jax.random.split(jax.random.key(7))[1])
    p, q = (np.asarray(jax.nn.softmax(f.logits), np.float64) for f in (shown, again))
    rows = np.asarray(batch["mask"].any(axis=1))
    both = (p * np.log(p / q) + q * np.log(q / p)).sum(axis=1)
    assert losses.weights["r_drop"] == 2.0
    np.testing.assert_allclose(losses.values["r_drop"] * 2, both[rows].mean(), rtol=1e-4)
    evaluated, _ = losses_of(parts, params, {}, batch, jnp.float32(0.0), None)
    assert list(evaluated.means) == ["hard"]


def test_progress_goes_from_the_first_step_to_the_last():
    found = [float(progress_at(jnp.int32(step), 11)) for step in (0, 5, 10, 20)]
    assert found == [0.0, 0.5, 1.0, 1.0]
    assert progress_at(jnp.int32(0), 1) == 0.0


def test_no_microbatches_are_refused():
    with pytest.raises(ValueError, match="num_microbatches=0 must be at least 1"):
        make_distillation_step(PARTS, TX, 10, num_microbatches=0)


def test_what_a_step_lacks_is_told_by_name():
    batch, params = make_batch(), new_state().params
    progress = jnp.zeros(())
    with pytest.raises(ValueError, match="frozen has .*is to hold the parameters of the teacher"):
        losses_of(PARTS, params, {}, batch, progress, None)
    with pytest.raises(ValueError, match="wanted params made by distillation_params"):
        losses_of(PARTS, params["student"], FROZEN, batch, progress, None)
    bare = {name: field for name, field in batch.items() if name != "mask"}
    with pytest.raises(ValueError, match="the mask of real tokens in the batch"):
        losses_of(PARTS, params, FROZEN, bare, progress, None)
    deeper = compile_objective(
        ObjectiveConfig("last1:hidden_mse->linear", ResponseConfig("kl")),
        STUDENT, TEACHER._replace(num_layers=9),
    )  # fmt: skip
    wrong = PARTS._replace(objective=deeper)
    params = distillation_params(deeper, random_params(STUDENT, 2), jax.random.key(3))
    with pytest.raises(ValueError, match="of layer 8 of the teacher, which shows 2 layers of it"):
        losses_of(wrong, params, FROZEN, batch, progress, None)
