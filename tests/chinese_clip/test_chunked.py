"""The memory-linear loss against the dense one, and its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.chinese_clip.chunked import chunked_contrastive_loss, chunked_loss_and_accuracies
from jaxlab.chinese_clip.losses import contrastive_loss, in_batch_accuracies, same_pair
from jaxlab.chinese_clip.model import normalize
from jaxlab.parallel import batch_sharding, make_mesh

BATCH, DIM = 32, 8
RNG = np.random.default_rng(0)
IMAGE, TEXT = (normalize(jnp.asarray(x, jnp.float32)) for x in RNG.normal(size=(2, BATCH, DIM)))
LOG_SCALE = jnp.float32(3.0)
OWN = jnp.arange(BATCH)
IMAGE_IDS, TEXT_IDS = (jnp.asarray(x) for x in RNG.integers(0, 20, (2, BATCH)))


def make_mesh_of(num_devices):
    return make_mesh(devices=jax.devices()[:num_devices])


def assert_equal(got, expected):
    """Loss and every gradient, relative to its largest entry."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.mark.parametrize(
    ("num_devices", "transport", "chunk_size", "smoothing"),
    [
        # Neither 3 nor 5 divides the batch of 32 or the 4 rows of a device; 100 exceeds both.
        (8, "all_gather", 3, 0.0),
        (8, "all_gather", 100, 0.1),
        (8, "ring", 3, 0.1),
        (8, "ring", 100, 0.0),
        (2, "ring", 5, 0.0),
    ],
)
def test_chunked_equals_dense(num_devices, transport, chunk_size, smoothing):
    mesh = make_mesh_of(num_devices)

    @jax.jit
    def chunked(image, text, log_scale, image_ids, text_ids):
        def loss(*features):
            found = chunked_loss_and_accuracies(
                *features,
                chunk_size=chunk_size,
                mesh=mesh,
                transport=transport,
                image_ids=image_ids,
                text_ids=text_ids,
                label_smoothing=smoothing,
            )
            return found.loss, found[1:]

        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(image, text, log_scale)

    def dense_loss(*arguments):
        return contrastive_loss(*arguments, label_smoothing=smoothing)

    dense = jax.jit(jax.value_and_grad(dense_loss, (0, 1, 2)))
    rows = batch_sharding(mesh)
    for image_ids, text_ids in ((OWN, OWN), (IMAGE_IDS, TEXT_IDS)):
        batch = jax.device_put((IMAGE, TEXT, image_ids, text_ids), rows)
        (loss, accuracies), gradients = chunked(batch[0], batch[1], LOG_SCALE, *batch[2:])
        positives = same_pair(image_ids, text_ids)
        assert_equal((loss, gradients), dense(IMAGE, TEXT, LOG_SCALE, positives))
        wanted = in_batch_accuracies(IMAGE, TEXT, positives)
        assert accuracies[0] == pytest.approx(float(wanted["image_to_text_accuracy"]))
        assert accuracies[1] == pytest.approx(float(wanted["text_to_image_accuracy"]))


def test_nearest_rows_are_counted_where_rows_are_equal():
    # Two texts are the same: the lower one is the nearest, on whichever device it lies.
    image = normalize(jnp.asarray(RNG.normal(size=(16, 4)), jnp.float32)).at[9].set(0.5)
    image = image.at[2].set(0.5)
    for ids, wanted in ((None, 15 / 16), (jnp.arange(16).at[9].set(2), 1.0)):
        found = jax.jit(
            lambda f, ids=ids: chunked_loss_and_accuracies(
                f, f, LOG_SCALE, chunk_size=3, mesh=make_mesh_of(2), transport="ring", text_ids=ids
            )
        )(image)
        assert found.image_to_text == found.text_to_image == wanted


def test_ids_of_two_words_are_equal_where_both_are():
    words = jnp.asarray([[1, 0], [1, 1], [1, 0], [2, 0]], jnp.uint32)
    wanted = np.eye(4, dtype=bool)
    wanted[0, 2] = wanted[2, 0] = True
    np.testing.assert_array_equal(same_pair(words, None), wanted)
    images, texts = IMAGE[:4], TEXT[:4]
    got = chunked_contrastive_loss(images, texts, LOG_SCALE, image_ids=words)
    dense = contrastive_loss(images, texts, LOG_SCALE, jnp.asarray(wanted))
    assert float(got) == pytest.approx(float(dense), rel=1e-6)


def test_one_device_needs_no_mesh_and_scales_the_upstream_gradient():
    @jax.jit
    def gradients(image, text, log_scale):
        def loss(*features):
            return 3.0 * chunked_contrastive_loss(*features, chunk_size=7, tower_grad_scale=0.5)

        return jax.value_and_grad(loss, (0, 1, 2))(image, text, log_scale)

    value, (image, text, log_scale) = gradients(IMAGE, TEXT, LOG_SCALE)
    dense, (d_image, d_text, d_log_scale) = jax.value_and_grad(contrastive_loss, (0, 1, 2))(
        IMAGE, TEXT, LOG_SCALE
    )
    expected = 3.0 * dense, (1.5 * d_image, 1.5 * d_text, 3.0 * d_log_scale)
    assert_equal((value, (image, text, log_scale)), expected)


def temporary_bytes(loss, batch, **options):
    feature = jax.ShapeDtypeStruct((batch, DIM), jnp.float32)
    scale = jax.ShapeDtypeStruct((), jnp.float32)
    step = jax.jit(jax.grad(lambda *features: loss(*features, **options), (0, 1, 2)))
    compiled = step.lower(feature, feature, scale).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_grows_linearly_with_the_batch():
    sizes = (2048, 8192)
    small, large = (temporary_bytes(chunked_contrastive_loss, n, chunk_size=64) for n in sizes)
    assert large < 4.2 * small
    assert large < 8192 * 8192  # a quarter of one dense matrix of float32
    dense_small, dense_large = (temporary_bytes(contrastive_loss, n) for n in sizes)
    assert dense_large > 12 * dense_small


@pytest.mark.parametrize("transport", ["all_gather", "ring"])
def test_memory_of_each_of_eight_devices_grows_linearly(transport):
    options = {"chunk_size": 64, "mesh": make_mesh(), "transport": transport}
    small, large = (temporary_bytes(chunked_contrastive_loss, n, **options) for n in (4096, 16384))
    assert large < 4.2 * small


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_size": 0}, "chunk_size=0 must be"),
        ({"transport": "pigeon"}, r"'pigeon' is unknown; use one of \('all_gather', 'ring'\)"),
    ],
)
def test_impossible_options_are_refused(options, message):
    # The written error is what callers without a type checker see.
    loss = chunked_loss_and_accuracies
    function = getattr(loss, "__wrapped__", loss)
    with pytest.raises(ValueError, match=message):
        function(IMAGE, TEXT, LOG_SCALE, **options)


def test_a_batch_that_does_not_split_over_the_devices_is_refused():
    with pytest.raises(ValueError, match="30 rows does not split over 8 devices"):
        chunked_contrastive_loss(IMAGE[:30], TEXT[:30], LOG_SCALE, mesh=make_mesh())
