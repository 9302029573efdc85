import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from jaxlab.distillation import ensembles
from jaxlab.distillation.knowledge import Features

RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(2 * RNG.normal(size=(3, 4, 5)), jnp.float32)
LABELS = jnp.asarray([0, 4, 2, -1])
HAS_LABEL = jnp.asarray([True, True, True, False])


def test_logits_are_averaged_with_or_without_weights():
    np.testing.assert_allclose(ensembles.mean_logits(LOGITS), LOGITS.mean(axis=0), atol=1e-6)
    weights = jnp.asarray(softmax(RNG.normal(size=(3, 4)), axis=0), jnp.float32)
    found = ensembles.mean_logits(LOGITS, weights)
    wanted = np.einsum("tb,tbc->bc", np.asarray(weights, np.float64), LOGITS)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distributions_are_averaged_at_their_temperature(temperature):
    weights = jnp.asarray(softmax(RNG.normal(size=(3, 4)), axis=0), jnp.float32)
    each = softmax(np.asarray(LOGITS, np.float64) / temperature, axis=-1)
    wanted = np.einsum("tb,tbc->bc", np.asarray(weights, np.float64), each)
    found = ensembles.mean_probabilities(LOGITS, weights, temperature=temperature)
    np.testing.assert_allclose(softmax(found / temperature, axis=-1), wanted, rtol=1e-5)
    alone = ensembles.mean_probabilities(LOGITS[:1], temperature=temperature)
    np.testing.assert_allclose(softmax(alone, axis=-1), softmax(LOGITS[0], axis=-1), rtol=1e-5)


def test_a_teacher_counts_by_its_error_or_else_by_its_entropy():
    logs = log_softmax(np.asarray(LOGITS, np.float64), axis=-1)
    unsure = -(np.exp(logs) * logs).sum(axis=-1)
    for row in range(3):
        unsure[:, row] = -logs[:, row, int(LABELS[row])]
    found = ensembles.confidence_weights(LOGITS, LABELS, HAS_LABEL, sharpness=2.0)
    np.testing.assert_allclose(found, softmax(-2.0 * unsure, axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.sum(axis=0), 1.0, rtol=1e-6)
    equal = ensembles.confidence_weights(LOGITS, LABELS, HAS_LABEL, sharpness=0.0)
    np.testing.assert_allclose(equal, 1 / 3, rtol=1e-6)
    sharp = ensembles.confidence_weights(LOGITS, sharpness=1e4)
    entropy = -(np.exp(logs) * logs).sum(axis=-1)
    np.testing.assert_array_equal(np.argmax(sharp, axis=0), entropy.argmin(axis=0))


def shown(params, batch):
    """A teacher that puts out what it is made of."""
    del batch
    return Features(logits=params)


SPANS = jnp.asarray(2 * RNG.normal(size=(2, 2, 4, 2)), jnp.float32)
SPAN_MASK = jnp.asarray([[True] * 4, [True, True, False, False]])


@pytest.mark.parametrize("mixing", ["probabilities", "confidence"])
def test_answers_are_mixed_over_the_tokens_of_a_text(mixing):
    run = ensembles.make_ensemble_forward([shown] * 2, mixing, temperature=2.0, task="span")
    found = run(tuple(SPANS), {"mask": SPAN_MASK, "label": jnp.zeros((2, 2), jnp.int32)}).logits
    for row, length in ((0, 4), (1, 2)):
        each = np.asarray(SPANS[:, row, :length], np.float64)
        for end in range(2):
            if mixing == "probabilities":
                wanted = softmax(each[..., end] / 2, axis=-1).mean(axis=0)
                own = softmax(np.asarray(found[row, :, end], np.float64) / 2)
            else:
                logs = log_softmax(each[..., end], axis=-1)
                shares = softmax((np.exp(logs) * logs).sum(axis=-1))
                wanted = (shares[:, None] * each[..., end]).sum(axis=0)
                own = np.asarray(found[row, :, end])
            np.testing.assert_allclose(own[:length], wanted, rtol=1e-5)
            assert (own[length:] <= 0.0).all()


@pytest.mark.parametrize("mixing", ["probabilities", "confidence"])
def test_numbers_are_averaged_as_they_are(mixing):
    teachers = [shown] * 3
    with pytest.raises(ValueError, match="is of distributions over classes.*mixing='logits'"):
        ensembles.make_ensemble_forward(teachers, mixing, task="regression")
    run = ensembles.make_ensemble_forward(teachers, task="regression")
    found = run(tuple(LOGITS[..., :1]), {"label": jnp.ones(4), "has_label": HAS_LABEL}).logits
    np.testing.assert_allclose(found, LOGITS[..., :1].mean(axis=0), atol=1e-6)


def test_a_negative_label_is_none():
    found = ensembles.confidence_weights(LOGITS, jnp.full(4, -1), jnp.ones(4, bool))
    np.testing.assert_array_equal(found, ensembles.confidence_weights(LOGITS))


def test_tasks_come_as_often_as_their_sizes_say_and_by_step_alone():
    sizes = (100, 900, 400)
    wanted = np.array([10.0, 30.0, 20.0]) / 60
    np.testing.assert_allclose(ensembles.task_probabilities(sizes, 0.5), wanted)
    np.testing.assert_allclose(ensembles.task_probabilities(sizes, 0.0), 1 / 3)
    drawn = [ensembles.task_of_step(step, sizes, seed=3) for step in range(4000)]
    counts = np.bincount(drawn, minlength=3)
    # Five standard deviations: a correct program misses this once in a million.
    deviation = np.sqrt(4000 * wanted * (1 - wanted))
    assert (np.abs(counts - 4000 * wanted) < 5 * deviation).all()
    again = [ensembles.task_of_step(step, sizes, seed=3) for step in (17, 5, 3999)]
    assert again == [drawn[17], drawn[5], drawn[3999]]
    other = [ensembles.task_of_step(step, sizes, seed=4) for step in range(100)]
    assert other != drawn[:100]


def test_wrong_numbers_are_told():
    with pytest.raises(ValueError, match=r"tasks \[1\] are empty"):
        ensembles.task_probabilities((3, 0))
    with pytest.raises(ValueError, match="power=2.0"):
        ensembles.task_probabilities((3, 1), 2.0)
    with pytest.raises(ValueError, match="sharpness=-1.0"):
        ensembles.confidence_weights(LOGITS, sharpness=-1.0)
    with pytest.raises(ValueError, match=r"weights of shape \(3, 2\)"):
        ensembles.mean_logits(LOGITS, jnp.ones((3, 2)))
