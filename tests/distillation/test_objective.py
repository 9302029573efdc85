"""Compiled objectives: which losses they are, what they refuse; a copy has none to lose."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.distillation import attentions, hidden, relations, responses, train
from jaxlab.distillation.compilation import compile_objective
from jaxlab.distillation.knowledge import CATALOGUE
from jaxlab.distillation.model import TextModel, TextModelConfig, init_params
from jaxlab.distillation.objective_config import (
    HardConfig,
    ObjectiveConfig,
    ResponseConfig,
)
from jaxlab.distillation.terms import Shape
from jaxlab.layers.bert import BertConfig
from tests.distillation.features import (
    BATCH,
    FROM_SAME,
    FROM_STUDENT,
    FROM_TEACHER,
    NO_RESPONSE,
    SAME,
    STUDENT,
    TEACHER,
    losses_of,
)


def test_terms_are_the_losses_of_their_layers():
    config = ObjectiveConfig(
        "gap:hidden_mse@2,last1:attention_kl,1-0:key_value_relation[heads=4],last1:mmd[emb=no]",
        ResponseConfig("kl", weight=3.0, temperature=2.0),
        HardConfig(0.5),
    )
    objective, losses = losses_of(config)
    mask = BATCH["mask"]
    teacher, student = FROM_TEACHER, FROM_SAME
    expected = {
        "hidden_mse/emb-emb": hidden.hidden_mse(student.hidden[0], teacher.hidden[0], mask),
        "hidden_mse/1-0": hidden.hidden_mse(student.hidden[1], teacher.hidden[2], mask),
        "hidden_mse/3-1": hidden.hidden_mse(student.hidden[2], teacher.hidden[4], mask),
        "attention_kl/3-1": attentions.attention_kl(student.scores[1], teacher.scores[3], mask),
        "key_value_relation/1-0": relations.relation(
            (student.keys[0], student.values[0]), (teacher.keys[1], teacher.values[1]), mask, 4
        ),
        "mmd/3/3-1/1": hidden.token_similarity(
            (student.hidden[2],) * 2, (teacher.hidden[4],) * 2, mask
        ),
        "response": responses.logits_kl(
            student.logits, teacher.logits, mask.any(axis=1), temperature=2.0
        ),
    }
    assert objective.names == (*expected, "hard")
    for name, mean in expected.items():
        np.testing.assert_allclose(losses.values[name], mean.value, rtol=1e-6, err_msg=name)
    log_p = jax.nn.log_softmax(student.logits)
    np.testing.assert_allclose(losses.values["hard"], -(log_p[0, 2] + log_p[1, 0]) / 2, rtol=1e-6)
    factors = {"hidden_mse": 2.0, "response": 3.0, "hard": 0.5}
    total = sum(factors.get(n.split("/")[0], 1.0) * v for n, v in losses.values.items())
    np.testing.assert_allclose(losses.total(), total, rtol=1e-6)


def test_only_the_features_of_its_terms_are_asked_for():
    objective = compile_objective(ObjectiveConfig("last1:key_value_relation"), SAME, TEACHER)
    assert objective.student_taps == {"keys", "values"}
    objective = compile_objective(
        ObjectiveConfig("last1:attention_mse[of=probabilities]"), SAME, TEACHER
    )
    assert objective.teacher_taps == {"probabilities"}
    assert not compile_objective(ObjectiveConfig(), SAME, TEACHER).student_taps


@pytest.mark.parametrize("knowledge", CATALOGUE)
def test_a_copy_of_the_teacher_has_nothing_to_learn(knowledge):
    """No loss, and no gradient that would move the copy away."""
    layers = "last1" if CATALOGUE[knowledge].is_pooled else "first"
    objective = compile_objective(
        ObjectiveConfig(f"{layers}:{knowledge}", NO_RESPONSE), TEACHER, TEACHER
    )

    def loss(student):
        losses = objective({}, student, FROM_TEACHER, BATCH)
        return losses.total(), losses

    (value, _), gradients = jax.value_and_grad(loss, has_aux=True)(FROM_TEACHER)
    if knowledge in ("attention_ce", "attention_ce_mean"):  # the entropy of the teacher remains
        assert value > 0
    else:
        np.testing.assert_allclose(value, 0.0, atol=1e-6)
    for gradient in jax.tree.leaves(gradients):
        np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_pooled_outputs_are_compared_text_by_text():
    line = "last1:pooled_mse->tanh,3-1:pooled_cos@2->linear/fit"
    objective, losses = losses_of(ObjectiveConfig(line, NO_RESPONSE), FROM_STUDENT, STUDENT)
    assert objective.names == ("pooled_mse/3-1", "pooled_cos/3-1")
    assert not objective.teacher_taps and not objective.teacher_entries
    projections = objective.init(jax.random.key(0))
    own, fit = projections["pooled_mse/3-1"]["kernel"], projections["fit"]["kernel"]
    ours, theirs = np.asarray(FROM_STUDENT.pooled)[:2], np.asarray(FROM_TEACHER.pooled)[:2]
    expected = ((np.tanh(ours @ own) - theirs) ** 2).mean()  # the third text has no token
    np.testing.assert_allclose(losses.values["pooled_mse/3-1"], expected, rtol=1e-5)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (ours @ fit, theirs)]
    expected = (1.0 - (unit[0] * unit[1]).sum(axis=1)).mean()
    np.testing.assert_allclose(losses.values["pooled_cos/3-1"], expected, rtol=1e-5)
    assert {float(count) for count in losses.counts.values()} == {2.0}
    with pytest.raises(ValueError, match="and the teacher shows none; give both models a task"):
        objective(projections, FROM_STUDENT, FROM_TEACHER._replace(pooled=None), BATCH)


def test_a_text_model_shows_its_pooled_output():
    encoder = BertConfig(11, num_layers=2, width=12, num_heads=2, mlp_width=8, max_positions=5)
    config = TextModelConfig(encoder, task="classification", num_labels=3)
    objective = compile_objective(ObjectiveConfig("last1:pooled_cos", NO_RESPONSE), SAME, SAME)
    forward = train.make_forward(TextModel(config))
    batch = {"ids": jnp.ones((3, 5), jnp.int32), "types": jnp.zeros((3, 5), jnp.int32), **BATCH}

    def loss(key):
        shown = forward(init_params(config, key), batch, taps=objective.student_taps)
        return objective({}, shown, shown, batch).total()

    assert jax.eval_shape(loss, jax.random.key(0)).shape == ()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("gap:pooled_mse", "'pooled_mse' is of what comes behind the last layers, not of 'gap'"),
        ("2-1:pooled_cos", "not of '2-1'; write last1:pooled_cos"),
        ("emd:pooled_mse", "not of 'emd'; write last1:pooled_mse"),
        ("last1:pooled_mse:decoder", "is of an encoder, and got decoder"),
        ("last1:pooled_mse->pca", "use last1:pooled_mse->linear"),
    ],
)
def test_pooled_outputs_are_of_the_last_layers_alone(line, message):
    with pytest.raises(ValueError, match=message):
        compile_objective(ObjectiveConfig(line, NO_RESPONSE), SAME, TEACHER)
    with pytest.raises(ValueError, match="models of task 'tagging' pool none; match hidden states"):
        config = ObjectiveConfig("last1:pooled_mse", NO_RESPONSE)
        compile_objective(config, SAME, TEACHER, task="tagging")


def test_projections_are_one_a_pair_or_shared():
    own, _ = losses_of(ObjectiveConfig("gap:hidden_mse->linear"), FROM_STUDENT, STUDENT)
    assert sorted(own.init(jax.random.key(1))) == [
        "hidden_mse/1-0", "hidden_mse/3-1", "hidden_mse/emb-emb",
    ]  # fmt: skip
    shared, losses = losses_of(ObjectiveConfig("gap:hidden_mse->tanh/fit"), FROM_STUDENT, STUDENT)
    projections = shared.init(jax.random.key(0))
    assert list(projections) == ["fit"]
    assert projections["fit"]["kernel"].shape == (8, 12)
    projected = jnp.tanh(FROM_STUDENT.hidden[2] @ projections["fit"]["kernel"])
    expected = hidden.hidden_mse(projected, FROM_TEACHER.hidden[4], BATCH["mask"]).value
    np.testing.assert_allclose(losses.values["hidden_mse/3-1"], expected, rtol=1e-5)


def test_projections_begin_as_those_of_an_earlier_training():
    """One for all hidden states, or one for each from the embeddings up, if it is of the widths."""
    rng = np.random.default_rng(4)

    def fitted(*widths):
        bias = np.float32(rng.normal(size=widths[1]))
        return {"kernel": np.float32(rng.normal(size=widths)), "bias": bias}

    line = "gap:hidden_mse->linear,gap:cos->linear/fit,last1:cos->tanh,last1:pooled_mse->linear"
    objective = compile_objective(ObjectiveConfig(line, NO_RESPONSE), STUDENT, TEACHER)
    each = [fitted(8, 12) for _ in range(3)]
    own = ["hidden_mse/emb-emb", "hidden_mse/1-0", "hidden_mse/3-1"]
    new = objective.init(jax.random.key(0))
    cases = (
        (each, dict(zip(own, each, strict=True))),
        (each[:1], dict.fromkeys([*own, "fit"], each[0])),
        (each[:2], dict(zip(own[:2], each[:2], strict=True))),
        ([fitted(8, 10)], {}),
    )
    for given, expected in cases:
        key = jax.random.key(0)
        found = train.distillation_params(objective, {}, key, given)["projections"]
        jax.tree.map(np.testing.assert_array_equal, found, {**new, **expected})


def test_a_pair_that_is_matched_twice_has_two_projections():
    line = "gap:hidden_mse->linear,last1:hidden_mse[emb=no]->relu,last1:cos->linear/fit"
    own, _ = losses_of(ObjectiveConfig(line, NO_RESPONSE), FROM_STUDENT, STUDENT)
    named = {term.name: term.projection for term in own.terms}
    assert named["hidden_mse/3-1"] == "hidden_mse/3-1"
    assert named["hidden_mse/3-1#2"] == "hidden_mse/3-1#2" and named["cos/3-1"] == "fit"
    assert len(own.init(jax.random.key(0))) == 5


def test_sums_over_other_numbers_of_heads_are_warned_of():
    config = ObjectiveConfig("last1:attention_mse_sum", NO_RESPONSE)
    with pytest.warns(UserWarning, match="attention_mse_mean does"):
        compile_objective(config, Shape(2, 12, 4), TEACHER)


@pytest.mark.parametrize(
    "schedule, factors",
    [("constant", (1, 1, 1)), ("growth", (0, 0.25, 1)), ("decay", (1, 0.75, 0))],
    ids=["constant", "growth", "decay"],
)
def test_schedules_multiply_the_weight(schedule, factors):
    config = ObjectiveConfig(
        f"last1:cos[schedule={schedule}]@4",
        ResponseConfig(weight=2.0, schedule=schedule),
        HardConfig(3.0, schedule=schedule),
    )
    for progress, factor in zip((0.0, 0.25, 1.0), factors, strict=True):
        _, losses = losses_of(config, progress=progress)
        assert {n: float(w) for n, w in losses.weights.items()} == {
            "cos/3-1": 4.0 * factor, "response": 2.0 * factor, "hard": 3.0 * factor,
        }  # fmt: skip


def test_weights_can_change_at_points_of_the_run():
    """Annealing-KD in one stage: logits first, then labels alone."""
    bounds = (0.25, 0.5)
    config = ObjectiveConfig(
        response=ResponseConfig(
            weight=2.0, schedule="piecewise", bounds=(0.5,), factors=(1.0, 0.0)
        ),
        hard=HardConfig(3.0, schedule="piecewise", bounds=bounds, factors=(0.0, 0.5, 1.0)),
    )
    assert hash(config) == hash(dataclasses.replace(config))
    for progress, soft, hard in ((0.0, 2, 0), (0.3, 2, 1.5), (0.5, 0, 3), (1.0, 0, 3)):
        _, losses = losses_of(config, progress=progress)
        found = {name: float(weight) for name, weight in losses.weights.items()}
        assert found == {"response": soft, "hard": hard}


@pytest.mark.parametrize("kind", [ResponseConfig, HardConfig])
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"schedule": "piecewise"}, "0 factors; give one a piece"),
        ({"schedule": "piecewise", "bounds": (1.5,), "factors": (1.0, 2.0)}, "between 0 and 1"),
        ({"schedule": "piecewise", "factors": (-1.0,)}, "must be finite numbers, 0 or more"),
        ({"factors": (1.0,)}, "go with schedule='piecewise' alone"),
    ],
    ids=["none", "bounds", "factors", "constant"],
)
def test_pieces_that_are_none_are_refused(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        kind(**changes)


def test_layers_have_their_turns_and_then_comes_the_loss():
    config = ObjectiveConfig(
        "gap:hidden_mse[emb=no,schedule=progressive]@2",
        ResponseConfig(schedule="after_transfer"),
        transfer_share=0.8,
    )
    weights = [
        [float(w) for w in losses_of(config, progress=x)[1].weights.values()]
        for x in (0.0, 0.39, 0.41, 0.81)
    ]
    # Half a unit of weight, shared by the layers that are matched.
    assert weights == [[1, 0, 0], [1, 0, 0], [0.5, 0.5, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    "matches, shape, message",
    [
        ("gap:hidden_mse", STUDENT, "needs one width, and the student has 8, the teacher 12"),
        ("first:attention_kl", Shape(2, 12, 4), "4 heads, the teacher 2; use attention_mse_mean"),
        ("last1:value_relation[heads=5]", SAME, "these do: 1, 2, 3, 4, 6, 12"),
        ("last3:cos", SAME, "last3"),
        ("gap:value_relation->linear", SAME, "nothing to project"),
        ("gap:cos[of=probabilities]", SAME, "not of attention"),
        ("gap:cos->pca", Shape(2, 16, 2), "16 components of a teacher of width 12; use ->linear"),
        ("last1:cos->linear/a,0-0:pkd->pca/a", STUDENT, "'a' is the name of a projection that"),
    ],
    ids=["width", "heads", "pieces", "layers", "projection", "probabilities", "wide", "name"],
)
def test_what_does_not_fit_the_sizes_is_refused(matches, shape, message):
    with pytest.raises(ValueError, match=message):
        compile_objective(ObjectiveConfig(matches), shape, TEACHER)


def test_hidden_states_of_another_width_than_compiled_for_are_told():
    objective = compile_objective(ObjectiveConfig("last1:hidden_mse->linear"), STUDENT, TEACHER)
    wide = compile_objective(ObjectiveConfig("last1:hidden_mse"), SAME, TEACHER)
    projections = objective.init(jax.random.key(0))
    with pytest.raises(ValueError, match="of the student, which are 12 wide and were to be 8; com"):
        objective(projections, FROM_SAME, FROM_TEACHER, BATCH)
    assert wide({}, FROM_SAME, FROM_TEACHER, BATCH).total() > 0


def test_all_that_does_not_fit_is_told_at_once():
    with pytest.raises(ValueError, match=r"needs one width.*; .*4 heads"):
        compile_objective(
            ObjectiveConfig("gap:hidden_mse,first:attention_kl"), Shape(2, 8, 4), TEACHER
        )


def test_a_regression_has_no_distributions():
    with pytest.raises(ValueError, match="use response.kind='mse'"):
        compile_objective(ObjectiveConfig(), SAME, TEACHER, task="regression")


def test_r_drop_of_a_regression_is_refused():
    config = ObjectiveConfig(response=NO_RESPONSE, hard=HardConfig(1.0, r_drop=1.0))
    with pytest.raises(ValueError, match="hard.r_drop=1.0 compares distributions"):
        compile_objective(config, SAME, None, task="regression")


@pytest.mark.parametrize(
    "task, changes",
    [
        *((task, {"drop_worst": 0.1}) for task in ("regression", "span", "tagging", "mlm")),
        *((task, {"label_smoothing": 0.1}) for task in ("regression", "span")),
    ],
)
def test_settings_that_the_loss_of_a_task_does_not_have_are_refused(task, changes):
    (name,) = changes
    config = ObjectiveConfig(response=NO_RESPONSE, hard=HardConfig(1.0, **changes))
    with pytest.raises(ValueError, match=f"hard.{name}=0.1 is of .* the task is '{task}'"):
        compile_objective(config, SAME, None, task=task)
    assert compile_objective(config, SAME, None, task="classification")


def test_an_objective_without_anything_is_refused():
    with pytest.raises(ValueError, match="the objective is empty"):
        ObjectiveConfig(response=NO_RESPONSE)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ResponseConfig(temperature=0.0), "must be positive"),
        (lambda: ResponseConfig(weight=-1.0), "weight=-1.0 must be a finite number, 0 or more"),
        (lambda: ResponseConfig(weight=float("inf")), "weight=inf must be a finite number"),
        (lambda: ResponseConfig(beta=-0.5), "beta=-0.5 must be a finite number"),
        (lambda: ResponseConfig(gamma=float("nan")), "gamma=nan must be a finite number"),
        (lambda: ObjectiveConfig(transfer_share=2.0), r"transfer_share=2.0 must be in \(0, 1\]"),
        (lambda: ResponseConfig("kl", annealing=7), "goes with kind='mse'"),
        (lambda: ResponseConfig("mse", reduction="numel"), "reduction='numel' is of distributions"),
        (lambda: ResponseConfig("mse", scale_by_temperature=True), "has no such factor"),
        (lambda: HardConfig(label_smoothing=1.0), r"not in \[0, 1\)"),
        (lambda: HardConfig(drop_worst=-0.1), r"drop_worst=-0.1 is not in \[0, 1\)"),
    ],
    ids=(
        "temperature weight infinite beta gamma share annealing numel scale smoothing worst"
    ).split(),
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "config, name, word",
    [
        (ResponseConfig(), "kind", "KL"),
        (ResponseConfig(), "reduction", "mean"),
        (HardConfig(), "schedule", "grow"),
        (ObjectiveConfig(), "weighting", "mean"),
        (ObjectiveConfig(), "projection_init", "zero"),
    ],
)
def test_words_that_a_setting_does_not_have_are_told(config, name, word):
    wrong = copy.copy(config)
    object.__setattr__(wrong, name, word)  # types are checked in tests alone
    with pytest.raises(ValueError, match=f"{name}='{word}' is not one of [a-z]+, "):
        wrong.__post_init__()


def test_a_teacher_that_is_asked_for_must_be_there():
    objective = compile_objective(ObjectiveConfig("last1:cos"), SAME, TEACHER)
    with pytest.raises(ValueError, match="there is none"):
        objective({}, FROM_SAME, None, BATCH)
    with pytest.raises(ValueError, match="there is none"):
        compile_objective(ObjectiveConfig(), SAME, None)


def test_labels_alone_need_no_teacher():
    config = ObjectiveConfig(response=NO_RESPONSE, hard=HardConfig(1.0))
    objective = compile_objective(config, SAME, None)
    losses = objective({}, FROM_SAME, None, BATCH)
    assert not objective.needs_teacher
    assert list(losses.means) == ["hard"] and losses.total() > 0


def test_annealing_follows_growing_logits():
    config = ObjectiveConfig(response=ResponseConfig("mse", annealing=7))
    _, losses = losses_of(config, progress=0.0)
    rows = BATCH["mask"].any(axis=1)
    expected = responses.logits_mse(FROM_SAME.logits, FROM_TEACHER.logits / 7, rows).value
    np.testing.assert_allclose(losses.values["response"], expected, rtol=1e-5)


def test_a_given_temperature_takes_the_place_of_the_settings():
    config = ObjectiveConfig(response=ResponseConfig(temperature=1.0))
    _, warm = losses_of(config, temperature=jnp.float32(4.0))
    _, same = losses_of(dataclasses.replace(config, response=ResponseConfig(temperature=4.0)))
    np.testing.assert_allclose(warm.total(), same.total(), rtol=1e-6)


def test_conventions_are_those_of_the_peers():
    mask = BATCH["mask"]
    teacher, student = FROM_TEACHER, FROM_SAME
    config = ObjectiveConfig(
        "3-1:attention_ce[norm=textbrewer],3-1:attention_ce[norm=textbrewer_unmasked],"
        "3-1:cos[norm=textbrewer_unmasked],3-1:query_relation[norm=bertdistiller]",
        NO_RESPONSE,
    )
    _, losses = losses_of(config)
    scores, queries = (
        (student.scores[1], teacher.scores[3]),
        (student.queries[1], teacher.queries[3]),
    )
    expected = (
        attentions.attention_ce(*scores, mask, convention="textbrewer"),
        attentions.attention_ce(*scores, None, convention="textbrewer"),
        hidden.hidden_cosine(student.hidden[2], teacher.hidden[4], None),
        relations.relation((queries[0],) * 2, (queries[1],) * 2, mask, 2, average="texts"),
    )
    for (name, value), mean in zip(losses.values.items(), expected, strict=True):
        np.testing.assert_allclose(value, mean.value, rtol=1e-6, err_msg=name)
