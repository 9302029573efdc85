"""Matches that move: the losses of a loop over layers, redrawn and updated when it is time."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab.distillation.compilation import compile_objective
from jaxlab.distillation.grammar import format_matches, parse_matches
from jaxlab.distillation.hidden import hidden_mse
from jaxlab.distillation.objective_config import (
    ObjectiveConfig,
    ResponseConfig,
)
from jaxlab.distillation.soft_matching import EmdMatching, attended_teacher
from jaxlab.distillation.terms import Shape
from jaxlab.distillation.train import (
    Parts,
    distillation_extra,
    distillation_params,
    losses_of,
    make_distillation_step,
)
from jaxlab.training import TrainState
from tests.distillation.networks import forward, make_batch, random_params

TEACHER, STUDENT = Shape(5, 8, 2), Shape(2, 8, 2)
FROZEN = {"teacher": random_params(TEACHER, 1)}
TX = optax.sgd(0.1)


def plain(*arguments, **options):
    return forward(*arguments, **{**options, "key": None})


def parts_of(matches):
    config = ObjectiveConfig(matches, ResponseConfig("none"))
    return Parts(compile_objective(config, STUDENT, TEACHER), plain, forward)


def run(matches, num_steps, **options):
    parts = parts_of(matches)
    params = distillation_params(parts.objective, random_params(STUDENT, 2), jax.random.key(3))
    extra = distillation_extra(parts.objective)
    state = TrainState.create(params, TX, jax.random.key(5), extra)
    step = jax.jit(make_distillation_step(parts, TX, 10, **options))
    states, losses = [state], []
    for i in range(num_steps):
        state, metrics = step(state, FROZEN, make_batch(), jax.random.key(i))
        states.append(state)
        losses.append(float(metrics["loss"]))
    return states, losses


def hidden_of(state):
    taps = frozenset({"hidden"})
    own = forward(state.params["student"], make_batch(), taps=taps).hidden[1:]
    return own, forward(FROZEN["teacher"], make_batch(), taps=taps).hidden[1:]


def distances(state, loss=hidden_mse):
    own, others = hidden_of(state)
    mask = make_batch()["mask"]
    return np.array([[float(loss(s, t, mask).value) for s in own] for t in others])


def test_random_layers_are_drawn_again_when_it_is_time_and_kept_till_then():
    states, losses = run("random:hidden_mse[every=2,emb=no]", 8)
    chosen = []
    for state, loss in zip(states[:-1], losses, strict=True):
        pairs = distances(state)
        # The top goes to the top; of the others the one that gives the loss.
        values = (pairs[:4, 0] + pairs[4, 1]) / 2
        chosen.append(int(np.abs(values - loss).argmin()))
        assert values[chosen[-1]] == pytest.approx(loss, rel=1e-5)
    assert chosen[0::2] == chosen[1::2] and len(set(chosen)) > 1


def test_a_resumed_run_draws_the_same_layers():
    states, losses = run("random:hidden_mse", 4)
    step = jax.jit(make_distillation_step(parts_of("random:hidden_mse"), TX, 10))
    _, metrics = step(states[3], FROZEN, make_batch(), jax.random.key(3))
    assert float(metrics["loss"]) == losses[3]


def test_a_transport_uses_the_flow_of_the_step_before():
    states, losses = run("emd:hidden_mse", 2)
    first, second = (distances(state) for state in states[:2])
    assert losses[0] == pytest.approx(first.mean(), rel=1e-5)
    matching = EmdMatching()
    weights, flow = matching.update(matching.init(5, 2), jnp.asarray(first, jnp.float32))
    assert losses[1] == pytest.approx(float((flow * second).sum()), rel=1e-4)
    kept = states[1].extra["matchings"]["hidden_mse/emd"]
    np.testing.assert_allclose(kept.weights.teacher, weights.teacher, rtol=1e-4)


def test_a_transport_is_updated_every_few_steps():
    states, _ = run("emd:hidden_mse[every=2]", 3)
    flows = [np.asarray(state.extra["matchings"]["hidden_mse/emd"].flow) for state in states]
    np.testing.assert_array_equal(flows[1], flows[2])
    assert (flows[0] != flows[1]).any() and (flows[2] != flows[3]).any()


@pytest.mark.parametrize("matches", ["emd:hidden_mse", "random:pkd,alp:pkd"])
def test_microbatches_change_nothing(matches):
    whole, losses = run(matches, 2)
    parted, again = run(matches, 2, num_microbatches=4)
    assert losses == pytest.approx(again, rel=1e-5)
    for a, b in zip(*(jax.tree.leaves(s[-1].params) for s in (whole, parted)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_attention_between_layers_is_that_of_its_function():
    states, (loss,) = run("alp:hidden_mse", 1)
    own, others = (jnp.stack([h[:, 0] for h in hidden]) for hidden in hidden_of(states[0]))
    rows = np.asarray(make_batch()["mask"].any(axis=1))
    wanted = np.mean(np.asarray(own - attended_teacher(own, others))[:, rows] ** 2)
    assert loss == pytest.approx(float(wanted), rel=1e-5)
    _, (loss,) = run("alp:pkd", 1)
    assert 0 < loss <= 4 and loss != pytest.approx(float(wanted), rel=1e-2)


def test_attention_maps_are_transported_too_and_projections_are_shared():
    _, losses = run("emd:attention_mse_mean@0.1", 1)
    assert losses[0] > 0
    narrow = Shape(2, 4, 2)
    objective = compile_objective(
        ObjectiveConfig("random:hidden_mse->linear", ResponseConfig("none")), narrow, TEACHER
    )
    assert objective.names == ("hidden_mse/random", "hidden_mse/emb-emb")
    assert objective.projections == (("hidden_mse/random", 4, 8), ("hidden_mse/emb-emb", 4, 8))
    assert objective.teacher_entries == tuple(("hidden", i) for i in range(6))


def test_embeddings_stay_matched_where_layers_are_drawn():
    _, (layers,) = run("random:hidden_mse[emb=no]", 1)
    _, (all_of_them,) = run("random:hidden_mse", 1)
    _, (embeddings,) = run("emb-emb:hidden_mse", 1)
    assert all_of_them == pytest.approx(layers + embeddings, rel=1e-5)


@pytest.mark.parametrize(
    ("matches", "message"),
    [
        ("random:mmd", "is of several features"),
        ("emd:query_relation", "is of several features"),
        ("alp:attention_mse", "only first tokens attend"),
        ("alp:mean_pkd", "only first tokens attend"),
        ("emd:hidden_mse[schedule=progressive]", "holds all layers at once"),
        ("emd:hidden_mse[emb=yes]", "add emb-emb:hidden_mse, a match of its own"),
        ("gap:hidden_mse[every=2]", "every=2 is of layers that move"),
        ("gap:attention_kl[emb=yes]", "embeddings have no place in it"),
        ("3-0:hidden_mse[emb=yes]", "add emb-emb to the pairs"),
        ("gap:hidden_mse[heads=2]", "num_relation_heads=2 is of relations"),
    ],
)
def test_what_cannot_move_is_refused(matches, message):
    with pytest.raises(ValueError, match=message):
        parts_of(matches)


def test_without_a_matching_the_loss_says_what_is_missing():
    parts = parts_of("random:hidden_mse")
    params = {"student": random_params(STUDENT, 2), "projections": {}}
    with pytest.raises(ValueError, match="train with make_distillation_step"):
        losses_of(parts, params, FROZEN, make_batch(), jnp.float32(0), None)


def test_the_grammar_reads_what_it_writes():
    line = "random:hidden_mse[every=100]@0.5->linear"
    (match,) = parse_matches(line)
    assert match.every == 100 and format_matches([match]) == line
    with pytest.raises(ValueError, match="every=0 must be 1 or more"):
        parse_matches("emd:hidden_mse[every=0]")
