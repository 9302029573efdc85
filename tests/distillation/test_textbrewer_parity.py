"""Beside TextBrewer itself (`pytest -m parity`): losses, gradients, a run, and where it differs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import distillation as kd
from jaxlab.training import TrainState
from tests.distillation.textbrewer import (
    CASES,
    MAKER,
    check_gradients,
    check_run,
    objective_config,
    our_run,
    ours,
)

pytestmark = pytest.mark.parity

TEACHER, SAME = (kd.Shape(*MAKER[name]) for name in ("TEACHER", "SAME"))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_equal(name, seed):
    drawn = MAKER["draw"](CASES[name], seed)
    expected, expected_gradients = MAKER["theirs"](CASES[name], drawn)
    loss, gradients = ours(CASES[name], drawn)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    check_gradients(gradients, expected_gradients)


def test_a_run_is_equal():
    _, of_student, losses, after = MAKER["train"]()
    found = our_run()
    assert found[0].keys() == of_student.keys()
    check_run(found, (losses, after))


def exact(case, drawn):
    """Our default loss in place of that library's normalisation."""
    (match,) = kd.from_textbrewer(case.config["intermediate_matches"])
    matches = kd.format_matches([dataclasses.replace(match, convention="exact")])
    config = kd.ObjectiveConfig(matches, kd.ResponseConfig("none"))
    objective = kd.compile_objective(config, kd.Shape(*case.student), TEACHER)
    teacher, student = (
        kd.Features(
            hidden=tuple(map(jnp.asarray, side["hidden"])),
            scores=tuple(map(jnp.asarray, side["attention"])),
        )
        for side in drawn[:2]
    )
    batch = {"mask": jnp.asarray(drawn[2]["mask"])}
    return float(objective({}, student, teacher, batch).total())


def test_the_published_package_divides_similarities_by_the_length():
    """Ours divides by the width, as its repository and its own branch without a mask do."""
    case = CASES["mmd"]
    drawn = MAKER["draw"](case)
    ratio = MAKER["TIME"] / TEACHER.width
    theirs, _ = MAKER["theirs"](case, drawn)
    np.testing.assert_allclose(exact(case, drawn), theirs * ratio**2, rtol=1e-5)
    everything = (*drawn[:2], {**drawn[2], "mask": np.ones_like(drawn[2]["mask"])}, drawn[3])
    unmasked, _ = MAKER["theirs"](CASES["mmd/unmasked"], drawn)
    np.testing.assert_allclose(exact(case, everything), unmasked, rtol=1e-5)


def test_without_a_mask_it_takes_negative_scores_for_padding():
    """A student that is wrong in all of them is right to it, and not to ours."""
    case = CASES["attention_mse/unmasked"]
    teacher, _, batch, none = MAKER["draw"](case)
    wrong = {**teacher, "attention": [np.where(s < 0, s - 9, s) for s in teacher["attention"]]}
    case = dataclasses.replace(
        case, config=MAKER["only"](MAKER["match"]("attention_mse", 0, 0)), student=MAKER["TEACHER"]
    )
    drawn = (teacher, wrong, {**batch, "mask": np.ones_like(batch["mask"])}, none)
    assert MAKER["theirs"](case, drawn)[0] == 0.0
    assert exact(case, drawn) > 30.0


@pytest.mark.parametrize("loss", ["attention_ce", "attention_ce_mean"])
def test_its_softmax_leaves_out_padding_where_the_scores_do(loss):
    """With the additive mask in the scores it gives our default; without, padded keys take part."""
    teacher, student, batch, none = MAKER["draw"](CASES[loss])
    bare = (teacher, student, batch, none)
    assert abs(exact(CASES[loss], bare) / MAKER["theirs"](CASES[loss], bare)[0] - 1) > 1e-3
    bias = np.where(batch["mask"], 0.0, -1e4).astype(np.float32)[:, None, None, :]
    masked = [
        {**side, "attention": [scores + bias for scores in side["attention"]]}
        for side in (teacher, student)
    ]
    theirs, _ = MAKER["theirs"](CASES[loss], (*masked, batch, none))
    np.testing.assert_allclose(exact(CASES[loss], bare), theirs, rtol=1e-5)


@pytest.mark.parametrize("loss", ["gram", "pkd"])
def test_texts_without_tokens_count_there(loss):
    """They make `gram` NaN and are averaged over by `pkd`; ours leaves them out of both."""
    teacher, student, batch, none = MAKER["draw"](CASES[loss])
    mask = batch["mask"].copy()
    mask[1] = False
    theirs, _ = MAKER["theirs"](CASES[loss], (teacher, student, {**batch, "mask": mask}, none))

    def kept(side):
        return {name: [x[[0, 2]] for x in side[name]] for name in ("hidden", "attention")}

    rest = (kept(teacher), kept(student), {**batch, "mask": mask[[0, 2]]}, none)
    found = exact(CASES[loss], (teacher, student, {**batch, "mask": mask}, none))
    np.testing.assert_allclose(found, exact(CASES[loss], rest), rtol=1e-6)
    assert np.isnan(theirs) if loss == "gram" else abs(found / theirs - 1) > 1e-3


def test_shifting_changes_its_teacher():
    """In place, for whatever comes after; ours gives new logits."""
    import torch
    from textbrewer.distiller_utils import probability_shift_

    teacher, _, batch, _ = MAKER["draw"](CASES["shift"])
    before = torch.tensor(teacher["logits"])
    given = before.clone()
    shifted = probability_shift_(given, torch.tensor(batch["label"]).long())
    assert shifted is given and not torch.equal(given, before)
    logits = jnp.asarray(teacher["logits"])
    found = kd.shift_probability(logits, jnp.asarray(batch["label"]))
    np.testing.assert_array_equal(found, shifted.numpy())
    np.testing.assert_array_equal(logits, before.numpy())


@pytest.mark.parametrize("name", ["linear_decay", "linear_growth"])
def test_a_schedule_takes_the_place_of_its_weight(name):
    """From the second step on; ours multiplies the weight, from the first step on."""
    config = {"kd_loss_weight": 4, "kd_loss_weight_scheduler": name}
    rest = [0.75, 0.5, 0.25] if name == "linear_decay" else [0.25, 0.5, 0.75]
    assert weights_of_steps(config) == [4, *rest]
    objective = kd.compile_objective(objective_config(config), SAME, TEACHER)
    logits = kd.Features(logits=jnp.ones((1, 2)))
    batch = {"mask": jnp.ones((1, 1), bool)}
    found = [objective({}, logits, logits, batch, x).weights for x in (0.0, 0.25, 1.0)]
    expected = [4, 3, 0] if name == "linear_decay" else [0, 1, 4]
    assert [float(weights["response"]) for weights in found] == expected


def weights_of_steps(config):
    """The weight of logits in each of four steps of a linear student."""
    import torch

    torch.manual_seed(0)
    teacher, student = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    distiller = MAKER["make_distiller"](
        config, teacher, student, (lambda _, outputs: {"logits": outputs},) * 2
    )
    weights = []
    distiller.write_loss = lambda *_: weights.append(distiller.d_config.kd_loss_weight)
    batches = [(torch.randn(5, 3),) for _ in range(4)]
    with distiller:
        distiller.train(torch.optim.SGD(student.parameters(), lr=0.1), batches, num_epochs=1)
    return weights


def test_it_clips_the_student_alone():
    """A projection's gradient goes past `max_grad_norm` there; ours is clipped with the student."""
    import torch

    match = MAKER["match"]("hidden_mse", 0, 0, 1.0, "linear")
    config = {"intermediate_matches": [{**match, "proj": ["linear", 8, 12]}]}

    class Model(torch.nn.Module):
        def __init__(self, width):
            super().__init__()
            self.dense = torch.nn.Linear(3, width)

        def forward(self, x):
            return {"hidden": [50 * self.dense(x)]}

    torch.manual_seed(0)
    teacher, student = Model(12), Model(8)
    distiller = MAKER["make_distiller"](config, teacher, student, (lambda _, out: out,) * 2)
    before = distiller.projs[0].weight.detach().clone()
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
    with distiller:
        distiller.train(optimizer, [(torch.randn(4, 5, 3),)], num_epochs=1, max_grad_norm=0.01)
    assert (distiller.projs[0].weight.detach() - before).norm() > 1.0

    config = kd.ObjectiveConfig("emb-emb:hidden_mse->linear", kd.ResponseConfig("none"))
    objective = kd.compile_objective(config, kd.Shape(1, 8, 2), kd.Shape(1, 12, 2))
    shown = jnp.full((4, 5, 12), 50.0)

    def forward(params, batch, **_):
        return kd.Features(hidden=(50.0 * params["dense"][None, None] + jnp.zeros((4, 5, 1)),))

    parts = kd.Parts(objective, forward, lambda *_, **__: kd.Features(hidden=(shown,)))
    tx = optax.chain(optax.clip_by_global_norm(0.01), optax.sgd(1.0))
    params = kd.distillation_params(objective, {"dense": jnp.ones(8)}, jax.random.key(0))
    step = kd.make_distillation_step(parts, tx, 1)
    state = TrainState.create(params, tx, jax.random.key(1), {})
    after, _ = step(state, {"teacher": {}}, {"mask": jnp.ones((4, 5), bool)}, jax.random.key(2))
    moved = jax.tree.map(jnp.subtract, after.params, params)
    np.testing.assert_allclose(optax.tree.norm(moved), 0.01, rtol=1e-3)
