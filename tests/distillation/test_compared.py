"""What losses of answers, tokens and encoder-decoders compare: real tokens, allowed classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.distillation import hard_losses, train
from jaxlab.distillation.compilation import compile_objective
from jaxlab.distillation.knowledge import Features
from jaxlab.distillation.objective_config import (
    HardConfig,
    ObjectiveConfig,
    ResponseConfig,
)
from jaxlab.distillation.train import Parts
from tests.distillation.features import (
    BATCH,
    FROM_SAME,
    FROM_TEACHER,
    NO_RESPONSE,
    SAME,
    TEACHER,
)


def r_drop_of(task, passes, batch=BATCH):
    """R-Drop of a step whose two passes of the student are given."""
    config = ObjectiveConfig(response=NO_RESPONSE, hard=HardConfig(r_drop=1.0, weight=1e-9))
    objective = compile_objective(config, SAME, None, task=task)
    shown = iter(passes)
    parts = Parts(objective, lambda *_, **__: next(shown))
    params = {"student": {}, "projections": {}}
    losses, _ = train.losses_of(parts, params, {}, batch, jnp.zeros(()), jax.random.key(0))
    return losses.values["r_drop"]


def test_r_drop_of_answers_is_over_the_tokens_of_a_text():
    rng = np.random.default_rng(7)
    s, t = (jnp.asarray(rng.normal(size=(3, 5, 2)), jnp.float32) for _ in range(2))
    batch = {**BATCH, "label": jnp.zeros((3, 2), jnp.int32)}
    found = r_drop_of("span", (Features(logits=s), Features(logits=t)), batch)
    total = 0.0
    for row, length in ((0, 5), (1, 3)):
        for end in range(2):
            p, q = (np.asarray(jax.nn.softmax(x[row, :length, end]), np.float64) for x in (t, s))
            total += np.sum((p - q) * np.log(p / q)) / 2
    np.testing.assert_allclose(found, total / 4, rtol=1e-5)


def test_r_drop_of_an_encoder_decoder_is_over_what_the_decoder_says():
    rng = np.random.default_rng(8)
    s, t = (jnp.asarray(rng.normal(size=(3, 4, 3)), jnp.float32) for _ in range(2))
    said = jnp.arange(4)[None] < jnp.array([[4], [1], [0]])
    batch = {**BATCH, "decoder_mask": said, "label": jnp.where(said, 1, -100)}
    stacks = [{"encoder": Features(), "decoder": Features(logits=logits)} for logits in (s, t)]
    found = r_drop_of("mlm", stacks, batch)
    wanted = hard_losses.r_drop(s, t, said).value
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_r_drop_needs_a_head():
    config = ObjectiveConfig("last1:cos", NO_RESPONSE, HardConfig(r_drop=1.0))
    bare = FROM_SAME._replace(logits=None)
    objective = compile_objective(config, SAME, TEACHER)
    parts = Parts(objective, lambda *_, **__: bare, lambda *_, **__: FROM_TEACHER)
    params, frozen = {"student": {}, "projections": {}}, {"teacher": {}}
    with pytest.raises(ValueError, match="hard.r_drop=1.0 compares logits and the student has no"):
        train.losses_of(parts, params, frozen, BATCH, jnp.zeros(()), jax.random.key(0))


def test_answers_are_compared_over_the_tokens_of_a_text():
    """Start and end of a span are two distributions over real tokens."""
    rng = np.random.default_rng(5)
    s, t = (jnp.asarray(rng.normal(size=(3, 5, 2)), jnp.float32) for _ in range(2))
    objective = compile_objective(ObjectiveConfig(), SAME, TEACHER, task="span")
    found = objective({}, Features(logits=s), Features(logits=t), BATCH).values["response"]
    total = 0.0
    for row, length in ((0, 5), (1, 3)):
        for end in range(2):
            p, q = (np.asarray(jax.nn.softmax(x[row, :length, end]), np.float64) for x in (t, s))
            total += np.sum(p * np.log(p / q))
    np.testing.assert_allclose(found, total / 4, rtol=1e-5)


@pytest.mark.parametrize("schedule", ["flsw", "cwsm"])
def test_temperatures_of_tokens_know_no_padding(schedule):
    rng = np.random.default_rng(6)
    config = ObjectiveConfig(response=ResponseConfig("ce", 1.0, 4.0, temperature_schedule=schedule))
    objective = compile_objective(config, SAME, TEACHER, task="tagging")
    s, t = (jnp.asarray(rng.normal(size=(3, 5, 4)), jnp.float32) for _ in range(2))
    found = objective({}, Features(logits=s), Features(logits=t), BATCH)
    real = np.asarray(BATCH["mask"])
    short = {"mask": jnp.ones((1, real.sum()), bool)}
    only = objective({}, Features(logits=s[real][None]), Features(logits=t[real][None]), short)
    np.testing.assert_allclose(found.total(), only.total(), rtol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature_schedule": "flsw"},
        {"temperature_schedule": "cwsm"},
        {"shift_probability": True},
    ],
    ids=["flsw", "cwsm", "shift"],
)
def test_answers_know_no_padding(changes):
    """Temperatures and the largest probability of an answer are those of its real tokens."""
    rng = np.random.default_rng(9)
    config = ObjectiveConfig(response=ResponseConfig("kl", 1.0, 4.0, **changes))
    objective = compile_objective(config, SAME, TEACHER, task="span")
    s, t = (rng.normal(size=(3, 12, 2)).astype(np.float32) for _ in range(2))
    for logits in (s, t):
        logits[:, 5:] += 9.0
    # The end of the second answer is outside of its tokens: it stays as it is.
    batch = {**BATCH, "label": jnp.array([[1, 2], [0, 4], [0, 0]])}
    wide = {**batch, "mask": jnp.pad(batch["mask"], ((0, 0), (0, 7)))}
    short, padded = (
        objective({}, Features(logits=jnp.asarray(a)), Features(logits=jnp.asarray(b)), c).total()
        for a, b, c in ((s[:, :5], t[:, :5], batch), (s, t, wide))
    )
    assert short > 0
    np.testing.assert_allclose(padded, short, rtol=1e-6)


@pytest.mark.parametrize("form", ["tokens", "texts", "all"])
def test_words_that_are_not_allowed_have_no_part(form):
    """As in OFA's code: masked, and a mean over tokens and the whole vocabulary."""
    rng = np.random.default_rng(10)
    s, t = (rng.normal(size=(3, 5, 7)).astype(np.float32) for _ in range(2))
    allowed = rng.random((3, 5, 7)) < 0.6
    if form != "tokens":
        allowed = allowed[:, :1] if form == "texts" else allowed[0, 0]
    real = np.array(BATCH["mask"])
    if form == "tokens":
        allowed[0, 2] = False  # nothing to predict: the token does not count
        allowed[2] = False
        real[0, 2] = False
    wide = np.broadcast_to(allowed, s.shape)
    config = ObjectiveConfig(response=ResponseConfig("ce", reduction="numel"))
    objective = compile_objective(config, SAME, TEACHER, task="mlm")
    total = 0.0
    for place in zip(*np.nonzero(real), strict=True):
        p, q = (np.array(x[place][wide[place]], np.float64) for x in (t, s))
        total -= np.sum(np.exp(p) / np.exp(p).sum() * (q - np.log(np.exp(q).sum())))

    def loss(student):
        batch = {**BATCH, "allowed": jnp.asarray(allowed)}
        return objective(
            {}, Features(logits=student), Features(logits=jnp.asarray(t)), batch
        ).total()

    found, gradient = jax.value_and_grad(loss)(jnp.asarray(s))
    np.testing.assert_allclose(found, total / (real.sum() * 7), rtol=1e-5)
    assert np.isfinite(gradient).all() and not np.asarray(gradient)[~(wide & real[..., None])].any()


def test_allowed_classes_are_of_tokens_and_of_their_shape():
    objective = compile_objective(ObjectiveConfig(), SAME, TEACHER, task="mlm")
    shown = Features(logits=jnp.zeros((3, 5, 7)))
    batch = {**BATCH, "allowed": jnp.ones((5, 7), bool)}
    with pytest.raises(
        ValueError, match=r"allowed has shape \(5, 7\) and logits \(3, 5, 7\); give"
    ):
        objective({}, shown, shown, batch)
    texts = compile_objective(ObjectiveConfig(), SAME, TEACHER)
    with pytest.raises(ValueError, match=r"are of a classification; leave `allowed` out"):
        texts({}, FROM_SAME, FROM_TEACHER, batch)
