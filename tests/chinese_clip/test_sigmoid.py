"""The sigmoid loss against its formula in float64, on one device and on eight, and its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.chinese_clip.losses import in_batch_accuracies, same_pair
from jaxlab.chinese_clip.model import normalize
from jaxlab.chinese_clip.objective import LossConfig, initial_objective
from jaxlab.chinese_clip.sigmoid import sigmoid_loss
from jaxlab.chinese_clip.towers import EMOJI_MODEL
from jaxlab.parallel import batch_sharding, make_mesh

BATCH, DIM = 24, 6
RNG = np.random.default_rng(0)
IMAGE, TEXT = (normalize(jnp.asarray(x, jnp.float32)) for x in RNG.normal(size=(2, BATCH, DIM)))
LOG_SCALE, BIAS = jnp.float32(2.0), jnp.float32(-3.0)
IMAGE_IDS, TEXT_IDS = (jnp.asarray(x) for x in RNG.integers(0, 15, (2, BATCH)))


def reference(positives):
    """Value and gradients in float64."""
    image, text = np.asarray(IMAGE, np.float64), np.asarray(TEXT, np.float64)
    scale = np.exp(float(LOG_SCALE))
    cosines = image @ text.T
    logits, signs = scale * cosines + float(BIAS), np.where(positives, 1.0, -1.0)
    loss = np.log1p(np.exp(-signs * logits)).sum() / BATCH
    d_logits = (1 / (1 + np.exp(-logits)) - np.asarray(positives)) / BATCH
    d_scale = (d_logits * scale * cosines).sum()
    return loss, (scale * d_logits @ text, scale * d_logits.T @ image, d_scale, d_logits.sum())


@pytest.mark.parametrize(("transport", "chunk_size"), [("one device", 7), ("ring", 2)])
def test_loss_and_gradients_equal_float64(transport, chunk_size):
    mesh = None if transport == "one device" else make_mesh()
    options = {} if mesh is None else {"mesh": mesh, "transport": transport}

    @jax.jit
    def run(image, text, image_ids, text_ids):
        def loss(*arguments):
            found = sigmoid_loss(
                *arguments, image_ids=image_ids, text_ids=text_ids, chunk_size=chunk_size, **options
            )
            return found.loss, found[1:]

        return jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)(image, text, LOG_SCALE, BIAS)

    own = jnp.arange(BATCH)
    for ids in ((own, own), (IMAGE_IDS, TEXT_IDS)):
        arrays = (IMAGE, TEXT, *ids)
        if mesh is not None:
            arrays = jax.device_put(arrays, batch_sharding(mesh))
        (value, accuracies), gradients = run(*arrays)
        positives = same_pair(*ids)
        loss, expected = reference(positives)
        assert float(value) == pytest.approx(loss, rel=1e-5)
        for got, want in zip(gradients, expected, strict=True):
            assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
        wanted = in_batch_accuracies(IMAGE, TEXT, positives)
        assert accuracies[0] == pytest.approx(float(wanted["image_to_text_accuracy"]))
        assert accuracies[1] == pytest.approx(float(wanted["text_to_image_accuracy"]))


def test_memory_grows_linearly_with_the_batch():
    def temporary_bytes(batch):
        feature = jax.ShapeDtypeStruct((batch, DIM), jnp.float32)
        scalar = jax.ShapeDtypeStruct((), jnp.float32)
        step = jax.jit(jax.grad(lambda *a: sigmoid_loss(*a, chunk_size=64).loss, (0, 1, 2, 3)))
        compiled = step.lower(feature, feature, scalar, scalar).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporary_bytes(2048), temporary_bytes(8192)
    assert large < 4.2 * small
    assert large < 8192 * 8192  # a quarter of one dense matrix of float32


def test_the_bias_starts_where_nearly_all_pairs_are_negatives():
    start = initial_objective(LossConfig(kind="sigmoid"), jax.random.key(0), model=EMOJI_MODEL)
    assert {name: float(value) for name, value in start.items()} == {"bias": -10.0}
    assert initial_objective(LossConfig(), jax.random.key(0), model=EMOJI_MODEL) == {}


@pytest.mark.parametrize("batch", [23, 20])
def test_rows_that_are_no_pairs_or_do_not_split_are_refused(batch):
    message = "differ" if batch == 23 else "20 rows does not split over 8 devices"
    with pytest.raises(ValueError, match=message):
        text = TEXT if batch == 23 else TEXT[:batch]
        sigmoid_loss(IMAGE[:batch], text, LOG_SCALE, BIAS, mesh=make_mesh())
