import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from jaxlab.chinese_clip.losses import (
    MAX_LOG_SCALE,
    clamp_log_scale,
    contrastive_loss,
    distillation_loss,
    in_batch_accuracies,
    local_contrastive_loss,
    resize_features,
    same_pair,
)
from jaxlab.parallel import batch_sharding, make_mesh

RNG = np.random.default_rng(0)
BATCH, DIM = 16, 6
LOG_SCALE = jnp.float32(2.3)


def unit(x):
    return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)


IMAGE, TEXT = unit(RNG.normal(size=(BATCH, DIM))), unit(RNG.normal(size=(BATCH, DIM)))
TEXT_IDS = jnp.asarray(RNG.integers(0, 6, BATCH))


def reference(image, text, log_scale, positives=None, smoothing=0.0):
    """Both directions in float64, row by row, targets uniform over positives, then smoothed."""
    logits = np.exp(float(log_scale)) * np.asarray(image, np.float64) @ np.asarray(text).T
    positives = np.eye(len(logits)) if positives is None else np.asarray(positives, np.float64)

    def direction(logits, positives):
        target = positives / positives.sum(axis=1, keepdims=True)
        target = (1 - smoothing) * target + smoothing / len(logits)
        return np.mean(logsumexp(logits, axis=1) - (target * logits).sum(axis=1))

    return (direction(logits, positives) + direction(logits.T, positives.T)) / 2


def numeric_gradient(f, x, step=1e-6):
    x = np.asarray(x, np.float64)
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        moved = x.copy()
        moved[index] += step
        up = f(moved)
        moved[index] -= 2 * step
        gradient[index] = (up - f(moved)) / (2 * step)
    return gradient


@pytest.mark.parametrize(("ids", "smoothing"), [(None, 0.0), (TEXT_IDS, 0.1)])
def test_loss_and_gradients_equal_float64(ids, smoothing):
    positives = None if ids is None else same_pair(None, ids)

    def loss(image, text, log_scale):
        return contrastive_loss(image, text, log_scale, positives, label_smoothing=smoothing)

    def slow(image, text, log_scale):
        return reference(image, text, log_scale, positives, smoothing)

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(IMAGE, TEXT, LOG_SCALE)
    assert float(value) == pytest.approx(slow(IMAGE, TEXT, LOG_SCALE), rel=1e-6)
    expected = (
        numeric_gradient(lambda x: slow(x, TEXT, LOG_SCALE), IMAGE),
        numeric_gradient(lambda x: slow(IMAGE, x, LOG_SCALE), TEXT),
        numeric_gradient(lambda x: slow(IMAGE, TEXT, x), LOG_SCALE),
    )
    for got, want in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_the_two_directions_are_both_in_the_loss():
    """One image is nearest to all texts: only image to text is easy."""
    image = unit(np.array([[1.0, 0.0], [1.0, 0.1]]))
    text = unit(np.array([[1.0, 0.0], [0.0, 1.0]]))
    got = contrastive_loss(image, text, jnp.log(10.0))
    assert float(got) == pytest.approx(reference(image, text, math.log(10.0)), rel=1e-6)
    logits = 10.0 * np.asarray(image) @ np.asarray(text).T
    one_way = np.mean(logsumexp(logits, axis=1) - np.diag(logits))
    assert abs(float(got) - one_way) > 0.1


@pytest.mark.parametrize(
    ("image", "text", "scale", "expected"),
    [
        (np.ones((8, 3)), np.ones((8, 3)), 14.3, 2.0794415),
        (np.eye(8), np.eye(8), 1 / 0.07, 4.3741e-06),
        (np.array([[1, 0], [0.6, 0.8]]), np.array([[0.8, 0.6], [0, 1]]), 10.0, 0.8921181),
        (np.array([[1, 0], [1, 0], [0, 1]]), np.array([[1, 0], [1, 0], [0, 1]]), 100.0, 0.4620981),
        (np.ones((1, 3)), np.ones((1, 3)), 14.3, 0.0),
    ],
    ids=["collapsed", "perfect", "two_pairs", "duplicates", "one_pair"],
)
def test_known_values(image, text, scale, expected):
    got = contrastive_loss(unit(image), unit(text), jnp.log(jnp.float32(scale)))
    # The log-sum-exp of orthonormal features rounds near 1 / 0.07.
    assert float(got) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_duplicates_have_no_floor_once_they_are_positives():
    features = unit(np.array([[1, 0], [1, 0], [0, 1]]))
    positives = same_pair(None, jnp.array([4, 4, 5]))
    got = contrastive_loss(features, features, jnp.float32(MAX_LOG_SCALE), positives)
    # Two equal positives share the probability: the entropy of the target remains.
    assert float(got) == pytest.approx(2 / 3 * math.log(2), rel=1e-5)
    step = jax.jit(jax.grad(contrastive_loss))
    gradient = step(features, features, jnp.float32(5.0), positives)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_positives_share_an_image_or_a_text():
    got = same_pair(jnp.array([1, 1, 2, 3]), jnp.array([5, 6, 6, 7]))
    expected = [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(got, np.array(expected, bool))
    with pytest.raises(ValueError, match="both None"):
        same_pair(None, None)


def test_loss_over_eight_devices_equals_one():
    sharding = batch_sharding(make_mesh())
    step = jax.jit(jax.value_and_grad(contrastive_loss, (0, 1, 2)))
    sharded = step(jax.device_put(IMAGE, sharding), jax.device_put(TEXT, sharding), LOG_SCALE)
    single = step(IMAGE, TEXT, LOG_SCALE)
    for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(single), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(b).max())


def test_tower_gradients_can_be_scaled_without_the_temperatures():
    def gradients(scale):
        def loss(*arguments):
            return contrastive_loss(*arguments, tower_grad_scale=scale)

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(IMAGE, TEXT, LOG_SCALE)

    (value, (image, text, scale)), (expected, true) = gradients(0.125), gradients(1.0)
    assert value == expected
    np.testing.assert_array_equal(image, 0.125 * true[0])
    np.testing.assert_array_equal(text, 0.125 * true[1])
    assert scale == true[2]


def test_local_loss_is_the_mean_over_shards():
    got = jax.jit(local_contrastive_loss, static_argnums=3)(IMAGE, TEXT, LOG_SCALE, 4)
    parts = [reference(IMAGE[i : i + 4], TEXT[i : i + 4], LOG_SCALE) for i in range(0, BATCH, 4)]
    assert float(got) == pytest.approx(np.mean(parts), rel=1e-6)
    with pytest.raises(ValueError, match="16 rows does not split over 5 devices"):
        local_contrastive_loss(IMAGE, TEXT, LOG_SCALE, 5)


def test_accuracies_count_the_nearest_in_each_direction():
    image = unit(np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]))
    text = unit(np.array([[1.0, 0.0], [0.95, 0.05], [0.2, 1.0]]))
    got = in_batch_accuracies(image, text)
    logits = np.asarray(image) @ np.asarray(text).T
    for name, axis in (("image_to_text_accuracy", 1), ("text_to_image_accuracy", 0)):
        assert float(got[name]) == pytest.approx(np.mean(logits.argmax(axis) == np.arange(3)))
    assert got["image_to_text_accuracy"] != got["text_to_image_accuracy"]
    swapped = in_batch_accuracies(image, text[jnp.array([1, 0, 2])])
    assert float(swapped["image_to_text_accuracy"]) == pytest.approx(1 / 3)
    positives = same_pair(None, jnp.array([7, 7, 8]))
    forgiven = in_batch_accuracies(image, text[jnp.array([1, 0, 2])], positives)
    assert float(forgiven["image_to_text_accuracy"]) == 1.0


def test_features_that_are_no_pairs_are_refused():
    for f in (contrastive_loss, in_batch_accuracies):
        with pytest.raises(ValueError, match=r"differ: \(16, 6\) and \(15, 6\)"):
            f(IMAGE, TEXT[:-1], LOG_SCALE) if f is contrastive_loss else f(IMAGE, TEXT[:-1])


def test_temperature_is_clamped_after_the_step():
    for value, expected in ((-1.0, 0.0), (2.5, 2.5), (9.0, 4.6052)):
        assert float(clamp_log_scale(jnp.float32(value))) == pytest.approx(expected)
    assert math.exp(MAX_LOG_SCALE) == pytest.approx(100.0, rel=1e-4)


def test_distillation_equals_its_formula():
    teacher = RNG.normal(size=(BATCH, 9))
    resized = np.asarray(resize_features(IMAGE, 9), np.float64)
    cosines = np.sum(resized * teacher, axis=1) / (
        np.linalg.norm(resized, axis=1) * np.linalg.norm(teacher, axis=1)
    )
    step = jax.jit(jax.value_and_grad(distillation_loss, (0, 1)))
    value, gradients = step(IMAGE, jnp.asarray(teacher, jnp.float32))
    assert float(value) == pytest.approx(1 - cosines.mean(), rel=1e-5)
    assert np.abs(gradients[0]).max() > 0
    np.testing.assert_array_equal(gradients[1], 0.0)
    assert float(distillation_loss(IMAGE, 3.0 * IMAGE)) == pytest.approx(0.0, abs=1e-6)


def test_features_are_resized_linearly_with_half_pixel_centres():
    got = resize_features(jnp.array([[0.0, 1.0, 2.0, 3.0]]), 6)
    expected = [[0, 0.5, 7 / 6, 11 / 6, 2.5, 3]]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_allclose(
        resize_features(jnp.array([[0.0, 1.0, 2.0, 3.0]]), 2), [[0.5, 2.5]], rtol=1e-6
    )
