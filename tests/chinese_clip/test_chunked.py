"""The memory-linear loss against the dense one, and its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.chinese_clip.chunked import chunked_contrastive_loss
from jaxlab.chinese_clip.losses import contrastive_loss, same_pair
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
    ("num_devices", "transport", "chunk_size"),
    [
        # Neither 3 nor 5 divides the batch of 32 or the 4 rows of a device; 100 exceeds both.
        (8, "all_gather", 3),
        (8, "all_gather", 100),
        (8, "ring", 3),
        (8, "ring", 100),
        (2, "all_gather", 5),
        (2, "ring", 5),
        (1, "ring", 5),
    ],
)
def test_chunked_equals_dense(num_devices, transport, chunk_size):
    mesh = make_mesh_of(num_devices)

    @jax.jit
    def chunked(image, text, log_scale, image_ids, text_ids):
        def loss(*features):
            return chunked_contrastive_loss(
                *features,
                chunk_size=chunk_size,
                mesh=mesh,
                transport=transport,
                image_ids=image_ids,
                text_ids=text_ids,
            )

        return jax.value_and_grad(loss, (0, 1, 2))(image, text, log_scale)

    dense = jax.jit(jax.value_and_grad(contrastive_loss, (0, 1, 2)))
    rows = batch_sharding(mesh)
    for image_ids, text_ids in ((OWN, OWN), (IMAGE_IDS, TEXT_IDS)):
        batch = jax.device_put((IMAGE, TEXT, image_ids, text_ids), rows)
        got = chunked(batch[0], batch[1], LOG_SCALE, batch[2], batch[3])
        assert_equal(got, dense(IMAGE, TEXT, LOG_SCALE, same_pair(image_ids, text_ids)))


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
    function = getattr(chunked_contrastive_loss, "__wrapped__", chunked_contrastive_loss)
    with pytest.raises(ValueError, match=message):
        function(IMAGE, TEXT, LOG_SCALE, **options)


def test_a_batch_that_does_not_split_over_the_devices_is_refused():
    with pytest.raises(ValueError, match="30 rows does not split over 8 devices"):
        chunked_contrastive_loss(IMAGE[:30], TEXT[:30], LOG_SCALE, mesh=make_mesh())
