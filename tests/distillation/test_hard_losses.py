import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy.special import log_softmax

from jaxlab.distillation import hard_losses
from jaxlab.distillation.means import pool

RNG = np.random.default_rng(0)
LOGITS = jnp.asarray(2 * RNG.normal(size=(6, 4)), jnp.float32)
LABELS = jnp.asarray([0, 3, 2, 1, 1, 2])
HAS_LABEL = jnp.asarray([True, True, False, True, False, True])


def slow_ce(logits, label, smoothing=0.0):
    logs = log_softmax(np.asarray(logits, np.float64))
    target = np.full(len(logs), smoothing / (len(logs) - 1))
    target[label] = 1.0 - smoothing
    return -(target * logs).sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_is_that_with_the_smoothed_target(smoothing):
    rows = [i for i in range(6) if HAS_LABEL[i]]
    wanted = np.mean([slow_ce(LOGITS[i], int(LABELS[i]), smoothing) for i in rows])
    found = hard_losses.label_ce(LOGITS, LABELS, HAS_LABEL, smoothing=smoothing)
    assert float(found.value) == pytest.approx(wanted, rel=1e-5)
    assert float(found.count) == 4


@pytest.mark.parametrize("none", [-1, hard_losses.IGNORED])
def test_a_negative_label_is_none(none):
    """It must not be the last class, as negative places of arrays are."""
    labels = jnp.asarray(np.where(HAS_LABEL, LABELS, none))
    known = hard_losses.label_ce(LOGITS, LABELS, HAS_LABEL)
    found = hard_losses.label_ce(LOGITS, labels, jnp.ones(6, bool))
    np.testing.assert_array_equal(found, known)
    tagged = hard_losses.token_ce(LOGITS[None], labels[None])
    np.testing.assert_allclose(tagged, known, rtol=1e-6)


def test_rows_without_a_label_change_nothing_whatever_they_hold():
    unlabelled = ~np.asarray(HAS_LABEL)
    logits = jnp.asarray(np.where(unlabelled[:, None], np.nan, LOGITS))
    labels = jnp.asarray(np.where(unlabelled, -1, LABELS))

    def loss(logits, labels):
        return hard_losses.label_ce(logits, labels, HAS_LABEL, smoothing=0.1).value

    wanted, gradient = jax.value_and_grad(loss)(LOGITS, LABELS)
    np.testing.assert_array_equal(loss(logits, labels), wanted)
    assert not np.asarray(gradient)[unlabelled].any()
    assert np.asarray(gradient)[~unlabelled].all()


def test_nothing_labelled_is_zero_with_a_zero_gradient():
    none = jnp.zeros(6, bool)
    found, gradient = jax.value_and_grad(
        lambda z: hard_losses.label_ce(z, LABELS, none, smoothing=0.1).value
    )(LOGITS)
    assert float(found) == 0.0
    assert not np.asarray(gradient).any()


@pytest.mark.parametrize(("share", "kept"), [(1.0, 4), (0.75, 3), (0.6, 2), (0.01, 1)])
def test_the_worst_of_the_labelled_rows_are_dropped(share, kept):
    losses = sorted(slow_ce(LOGITS[i], int(LABELS[i])) for i in range(6) if HAS_LABEL[i])
    found = hard_losses.label_ce(LOGITS, LABELS, HAS_LABEL, kept=share)
    assert float(found.value) == pytest.approx(np.mean(losses[:kept]), rel=1e-5)


def test_dropping_begins_after_a_while_and_counts_no_padding():
    shares = [float(hard_losses.kept_share(jnp.float32(p), 0.1, 0.5)) for p in (0, 0.5, 0.6)]
    assert shares == pytest.approx([1.0, 1.0, 0.9])
    losses = jnp.arange(10.0)[::-1]
    full = hard_losses.smallest_share(losses, jnp.ones(10, bool), jnp.float32(0.9))
    assert full.tolist() == [False] + [True] * 9
    padded = hard_losses.smallest_share(
        jnp.pad(losses, (0, 5)), jnp.arange(15) < 10, jnp.float32(0.9)
    )
    assert padded.tolist() == full.tolist() + [False] * 5
    ties = hard_losses.smallest_share(jnp.ones(4), jnp.ones(4, bool), 0.5)
    assert ties.tolist() == [True, True, False, False]


def test_tags_are_averaged_over_labelled_tokens_of_labelled_rows():
    logits = jnp.asarray(RNG.normal(size=(3, 4, 5)), jnp.float32)
    labels = jnp.asarray([[1, -100, 4, 0], [2, 2, -100, -100], [3, 1, 0, 2]])
    rows = jnp.asarray([True, True, False])
    kept = [(0, 0), (0, 2), (0, 3), (1, 0), (1, 1)]
    for smoothing in (0.0, 0.2):
        wanted = np.mean([slow_ce(logits[i, j], int(labels[i, j]), smoothing) for i, j in kept])
        found = hard_losses.token_ce(logits, labels, rows, smoothing=smoothing)
        assert float(found.value) == pytest.approx(wanted, rel=1e-5)
        assert float(found.count) == 5
    assert float(hard_losses.token_ce(logits, labels).count) == 9


def test_numbers_are_compared_where_there_is_one():
    predictions = jnp.asarray([[1.0], [2.0], [3.0]])
    labels = jnp.asarray([0.5, jnp.nan, 5.0])
    rows = jnp.asarray([True, False, True])
    found = hard_losses.label_mse(predictions, labels, rows)
    assert float(found.value) == pytest.approx((0.25 + 4.0) / 2)
    np.testing.assert_array_equal(hard_losses.label_mse(predictions[:, 0], labels, rows), found)
    gradient = jax.grad(lambda p: hard_losses.label_mse(p, labels, rows).value)(predictions)
    np.testing.assert_allclose(gradient, [[0.5], [0.0], [-2.0]])


def test_spans_are_the_mean_of_both_ends_over_real_tokens():
    logits = jnp.asarray(RNG.normal(size=(3, 6, 2)), jnp.float32)
    lengths = np.asarray([6, 4, 5])
    mask = jnp.asarray(np.arange(6)[None] < lengths[:, None])
    spans = jnp.asarray([[1, 3], [0, 2], [2, 2]])
    rows = jnp.asarray([True, True, False])
    ends = [-log_softmax(logits[i, : lengths[i], e])[spans[i, e]] for i in (0, 1) for e in (0, 1)]
    found = hard_losses.span_ce(logits, spans, mask, rows)
    assert float(found.value) == pytest.approx(np.mean(ends), rel=1e-5)
    longer = hard_losses.span_ce(
        jnp.pad(logits, ((0, 0), (0, 7), (0, 0)), constant_values=3.0),
        spans,
        jnp.pad(mask, ((0, 0), (0, 7))),
        rows,
    )
    assert float(longer.value) == pytest.approx(float(found.value), rel=1e-6)
    # The end of the second answer was cut off: it is the padding behind the text.
    cut = hard_losses.span_ce(logits, spans.at[1, 1].set(4), mask, rows)
    assert float(cut.value) == pytest.approx(np.mean(ends[:3]), rel=1e-5)
    parts = [
        hard_losses.span_ce(logits[i : i + 1], spans[i : i + 1], mask[i : i + 1], rows[i : i + 1])
        for i in range(3)
    ]
    assert float(pool(parts).value) == pytest.approx(float(found.value), rel=1e-6)


def test_two_passes_are_pulled_together_from_both_sides():
    second = jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32)
    logs = [log_softmax(np.asarray(z, np.float64), axis=-1) for z in (LOGITS, second)]
    both = sum((np.exp(a) * (a - b)).sum(axis=-1) for a, b in (logs, logs[::-1]))
    wanted = (both / 2)[np.asarray(HAS_LABEL)].mean()
    found = hard_losses.r_drop(LOGITS, second, HAS_LABEL)
    assert float(found.value) == pytest.approx(wanted, rel=1e-5)
    swapped = hard_losses.r_drop(second, LOGITS, HAS_LABEL)
    np.testing.assert_allclose(swapped.value, found.value, rtol=1e-6)
    assert float(hard_losses.r_drop(LOGITS, LOGITS, HAS_LABEL).value) == 0.0


def on_devices(array):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec("data")))


def test_losses_are_those_of_one_device_on_eight():
    logits = jnp.asarray(RNG.normal(size=(16, 5, 4)), jnp.float32)
    labels = jnp.asarray(RNG.integers(0, 4, size=(16, 5)))
    rows = jnp.asarray(RNG.random(16) < 0.6)
    mask = jnp.asarray(np.arange(5)[None] < RNG.integers(1, 6, size=(16, 1)))

    def losses(logits, labels, rows, mask):
        tokens = jnp.where(mask, labels, hard_losses.IGNORED)
        return [
            hard_losses.label_ce(logits[:, 0], labels[:, 0], rows, smoothing=0.1, kept=0.5),
            hard_losses.token_ce(logits, tokens, rows),
            hard_losses.span_ce(logits[..., :2], labels[:, :2], mask, rows),
            hard_losses.r_drop(logits[:, 0], logits[:, 1], rows),
            hard_losses.label_mse(logits[:, 0, 0], logits[:, 0, 1], rows),
        ]

    def total(*arguments):
        return sum(loss.value for loss in losses(*arguments))

    arguments = (logits, labels, rows, mask)
    sharded = tuple(on_devices(argument) for argument in arguments)
    for found, wanted in zip(jax.jit(losses)(*sharded), jax.jit(losses)(*arguments), strict=True):
        assert float(found.count) == float(wanted.count) > 0
        assert float(found.value) == pytest.approx(float(wanted.value), rel=1e-6)
    gradients = [jax.jit(jax.grad(total))(*each) for each in (sharded, arguments)]
    np.testing.assert_allclose(*gradients, atol=1e-7)


def test_wrong_labels_are_told_with_their_numbers(caplog):
    with pytest.raises(ValueError, match=r"classes 0 to 1; got 2 \(2 times\), 7 \(1 times\).*8"):
        hard_losses.check_labels(np.array([0, 2, 1, 2, 7, -1, -100]), 2)
    with pytest.raises(ValueError, match="none of 3 rows has a label"):
        hard_losses.check_labels(np.array([-1, -1, -100]), 2)
    with pytest.raises(TypeError, match="float64; classes are integers"):
        hard_losses.check_labels(np.array([0.0, 1.0]), 2)
    with caplog.at_level(logging.WARNING):
        hard_losses.check_labels(np.array([1, 1, -1]), 2, "train")
    assert "train: all 2 are of class 1" in caplog.text
    with pytest.raises(ValueError, match="num_labels=1"):
        hard_losses.label_mse(jnp.ones((3, 2)), jnp.ones(3), jnp.ones(3, bool))
    with pytest.raises(ValueError, match="smoothing=1.0 is a share"):
        hard_losses.label_ce(LOGITS, LABELS, HAS_LABEL, smoothing=1.0)
    with pytest.raises(ValueError, match="label_mse for a regression"):
        hard_losses.label_ce(LOGITS[:, :1], LABELS, HAS_LABEL)
    with pytest.raises(ValueError, match="dropped=1.0"):
        hard_losses.kept_share(jnp.float32(0), 1.0, 0.5)
