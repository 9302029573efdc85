"""Layers side by side as one hidden state (RAIL-KD), of strategies that stay and that move."""

import jax
import numpy as np
import optax
import pytest

from jaxlab import distillation as kd
from jaxlab.distillation.grammar import format_matches, parse_matches
from jaxlab.training import TrainState
from tests.distillation.features import (
    BATCH,
    FROM_SAME,
    FROM_STUDENT,
    FROM_TEACHER,
    NO_RESPONSE,
    SAME,
    STUDENT,
    TEACHER,
)
from tests.distillation.networks import forward, make_batch, random_params


def compiled(line, student=STUDENT, teacher=TEACHER):
    return kd.compile_objective(kd.ObjectiveConfig(line, NO_RESPONSE), student, teacher)


def mean_pkd(student, teacher, mask):
    """Of one text after the other, in double precision."""
    found = []
    for one, other, real in zip(student, teacher, np.asarray(mask), strict=True):
        if real.any():
            means = (np.asarray(h, np.float64)[real].mean(axis=0) for h in (one, other))
            own, theirs = (mean / np.linalg.norm(mean) for mean in means)
            found.append(((own - theirs) ** 2).sum())
    return np.mean(found)


def test_a_text_is_the_mean_of_its_tokens():
    losses = compiled("last1:mean_pkd", SAME)({}, FROM_SAME, FROM_TEACHER, BATCH)
    expected = mean_pkd(FROM_SAME.hidden[2], FROM_TEACHER.hidden[4], BATCH["mask"])
    np.testing.assert_allclose(losses.total(), expected, rtol=1e-5)


def test_joined_layers_are_compared_as_one():
    objective = compiled("gap:mean_pkd[joined=yes]->linear,last1:cos->linear")
    assert objective.names == ("mean_pkd/joined_gap", "cos/3-1")
    assert objective.projections == (("mean_pkd/joined_gap", 16, 24), ("cos/3-1", 8, 12))
    projections = objective.init(jax.random.key(0))
    losses = objective(projections, FROM_STUDENT, FROM_TEACHER, BATCH)
    own = projections["mean_pkd/joined_gap"]
    student = np.concatenate(FROM_STUDENT.hidden[1:], axis=-1) @ np.asarray(own["kernel"])
    teacher = np.concatenate([FROM_TEACHER.hidden[2], FROM_TEACHER.hidden[4]], axis=-1)
    expected = mean_pkd(student, teacher, BATCH["mask"])
    np.testing.assert_allclose(losses.values["mean_pkd/joined_gap"], expected, rtol=1e-5)


def test_joined_layers_with_embeddings_or_by_number():
    assert compiled("first:hidden_mse[joined=yes]", SAME).terms[0].pair == ((-1, 0, 1),) * 2
    by_number = compiled("3-0+0-1:hidden_mse[joined=yes]", SAME)
    assert by_number.names == ("hidden_mse/joined_pairs",)
    losses = by_number({}, FROM_SAME, FROM_TEACHER, BATCH)
    pairs = [(FROM_SAME.hidden[s], FROM_TEACHER.hidden[t]) for t, s in ((4, 1), (1, 2))]
    each = [kd.hidden_mse(*pair, BATCH["mask"]).value for pair in pairs]
    np.testing.assert_allclose(losses.total(), np.mean(each), rtol=1e-5)


def test_joined_layers_are_drawn_anew():
    """Of the three teachers' layers below the top one goes with the top, another every step."""
    teacher, student = kd.Shape(4, 12, 2), kd.Shape(2, 8, 2)
    objective = compiled("random:mean_pkd[joined=yes]->linear", student, teacher)
    frozen = {"teacher": random_params(teacher, 1)}
    params = kd.distillation_params(objective, random_params(student, 2), jax.random.key(0))
    tx, batch = optax.sgd(0.0), make_batch()
    extra = kd.distillation_extra(objective)
    state = TrainState.create(params, tx, jax.random.key(1), extra)

    def plain(*arguments, **options):
        return forward(*arguments, **{**options, "key": None})

    step = jax.jit(kd.make_distillation_step(kd.Parts(objective, plain, forward), tx, 9))
    taps = frozenset({"hidden"})
    own = forward(params["student"], batch, taps=taps).hidden[1:]
    others = forward(frozen["teacher"], batch, taps=taps).hidden[1:]
    kernel = np.asarray(params["projections"]["mean_pkd/joined_random"]["kernel"])
    projected = np.concatenate(own, axis=-1) @ kernel
    possible = [
        mean_pkd(projected, np.concatenate([others[i], others[3]], axis=-1), batch["mask"])
        for i in range(3)
    ]
    drawn = set()
    for i in range(9):
        state, metrics = step(state, frozen, batch, jax.random.key(i))
        drawn.add(int(np.abs(np.array(possible) - float(metrics["loss"])).argmin()))
        np.testing.assert_allclose(
            min(abs(p - float(metrics["loss"])) for p in possible), 0.0, atol=1e-5
        )
    assert drawn == {0, 1, 2}


@pytest.mark.parametrize(
    "line, message",
    [
        ("gap:attention_mse[joined=yes]", "joined=yes is of hidden states of single layers"),
        ("gap:mmd[joined=yes]", "joined=yes is of hidden states of single layers"),
        ("emd:hidden_mse[joined=yes]", "does not go with emd, alp or ->pca"),
        ("gap:hidden_mse[joined=yes]->pca", "does not go with emd, alp or ->pca"),
        ("gap:cos[joined=yes,schedule=progressive]", "schedule=progressive has no turn"),
        ("gap:cos[joined=yes]->linear/fit,last1:cos->linear/fit", "of 1 and of 2 layers at once"),
        ("gap:cos[joined=yes]", "needs one width"),
    ],
)
def test_what_cannot_be_joined_is_refused(line, message):
    with pytest.raises(ValueError, match=message):
        compiled(line)


def test_embeddings_beside_joined_layers_have_a_projection_of_their_own():
    names = [name for name, *_ in compiled("random:hidden_mse[joined=yes]->linear/fit").projections]
    assert len(names) == 2 and "fit" in names


def test_joined_layers_that_move_need_a_step():
    with pytest.raises(ValueError, match="moves from step to step; train with"):
        compiled("random:cos[joined=yes]", SAME)({}, FROM_SAME, FROM_TEACHER, BATCH)


def test_the_grammar_writes_what_is_joined():
    line = "random:mean_pkd[every=50,joined=yes]->linear"
    assert format_matches(parse_matches(line)) == line
