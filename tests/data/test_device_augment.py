"""Device augmentation of drawings against slow NumPy forms and exact cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from jaxlab.data.device_augment import (
    NO_AUGMENTATION,
    DrawingAugmentation,
    DrawingAugmentConfig,
    apply_drawing_augmentation,
    augment_drawings,
    compose_drawings,
    gaussian_blur,
    hue_matrix,
    sample_bilinear,
    sample_drawing_augmentation,
)

EVERYTHING = DrawingAugmentConfig(
    stretch=0.1, flip_probability=0.5, brightness=0.2, contrast=0.2, saturation=0.3, num_cutouts=2
)

augment = jax.jit(augment_drawings, static_argnums=(2, 3))
compose = jax.jit(compose_drawings, static_argnums=(1, 2))
apply = jax.jit(apply_drawing_augmentation, static_argnums=2)
sample = jax.jit(sample_drawing_augmentation, static_argnums=(1, 2))
blur = jax.jit(gaussian_blur)


@pytest.fixture(scope="module")
def drawings():
    return np.random.default_rng(0).integers(0, 256, (6, 16, 16, 4), np.uint8)


def on_white(drawings):
    unit = drawings.astype(np.float64) / 255
    return unit[..., :3] * unit[..., 3:] + 1 - unit[..., 3:]


def block_means(images, factor):
    n, height, width, channels = images.shape
    blocks = images.reshape(n, height // factor, factor, width // factor, factor, channels)
    return blocks.mean((2, 4))


def draw_of(matrix=((1.0, 0.0), (0.0, 1.0)), shift=(0.0, 0.0), background=(1.0, 1.0, 1.0), **parts):
    return DrawingAugmentation(jnp.array(matrix), jnp.array(shift), jnp.array(background), **parts)


def slow_bilinear(drawing, offsets):
    """Premultiplied bilinear values, one output pixel at a time."""
    unit = drawing.astype(np.float64) / 255
    premultiplied = np.concatenate([unit[..., :3] * unit[..., 3:], unit[..., 3:]], -1)
    height, width = drawing.shape[:2]
    out = np.zeros((*offsets.shape[:2], 4))
    for i, j in np.ndindex(*offsets.shape[:2]):
        y, x = ((offsets[i, j] + 1) / 2) * (height, width) - 0.5
        if not (-0.5 <= y <= height - 0.5 and -0.5 <= x <= width - 0.5):
            continue
        for dy in (0, 1):
            for dx in (0, 1):
                row, column = int(np.floor(y)) + dy, int(np.floor(x)) + dx
                weight = (1 - abs(y - row)) * (1 - abs(x - column))
                nearest = premultiplied[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
                out[i, j] += weight * nearest
    return out


@pytest.mark.parametrize(("out_size", "factor"), [(16, 1), (8, 2), (2, 8)])
def test_without_augmentation_it_is_composite_and_block_means(drawings, out_size, factor):
    expected = block_means(on_white(drawings), factor)
    plain = compose(drawings, out_size)
    assert plain.dtype == jnp.float32 and plain.shape == (6, out_size, out_size, 3)
    np.testing.assert_allclose(plain, expected, atol=1e-6)
    none = augment(jax.random.key(3), drawings, NO_AUGMENTATION, out_size)
    np.testing.assert_allclose(none, expected, atol=1e-6)


def test_detail_finer_than_the_result_does_not_alias():
    checkers = np.full((3, 16, 16, 4), 255, np.uint8)
    checkers[..., :3] = 255 * (np.indices((16, 16)).sum(0) % 2)[None, :, :, None]
    config = DrawingAugmentConfig(blur_probability=0.0, num_cutouts=0, scale=0.1)
    views = np.asarray(augment(jax.random.key(1), checkers, config, 8))
    np.testing.assert_allclose(views[:, 2:-2, 2:-2], 0.5, atol=1e-5)


def test_compose_on_a_colour(drawings):
    ours = compose(drawings, 16, (0.2, 0.4, 0.6))
    alpha = drawings[..., 3:] / 255
    expected = drawings[..., :3] / 255 * alpha + (1 - alpha) * np.array([0.2, 0.4, 0.6])
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_enlarging_keeps_the_edges_opaque():
    square = np.full((1, 4, 4, 4), 255, np.uint8)
    square[..., :3] = 0
    assert float(compose(square, 11).max()) == 0.0


def test_sampling_equals_a_slow_loop(drawings):
    rng = np.random.default_rng(1)
    offsets = rng.uniform(-1.3, 1.3, (9, 7, 2)).astype(np.float32)
    ours = jax.jit(sample_bilinear)(drawings[0], offsets)
    np.testing.assert_allclose(ours, slow_bilinear(drawings[0], offsets), atol=2e-5)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (((1.0, 0.0), (0.0, -1.0)), lambda x: x[:, ::-1]),
        (((-1.0, 0.0), (0.0, -1.0)), lambda x: x[::-1, ::-1]),
        (((0.0, -1.0), (1.0, 0.0)), lambda x: np.rot90(x, k=-1)),
    ],
)
def test_flips_and_quarter_turns_are_exact(drawings, matrix, expected):
    ours = apply(drawings[0], draw_of(matrix), 16)
    np.testing.assert_allclose(ours, expected(on_white(drawings[0])), atol=1e-5)


def test_a_shift_moves_the_drawing_and_shows_the_background(drawings):
    draw = draw_of(shift=(0.0, 2 * 3 / 16), background=(0.0, 0.5, 1.0))  # three pixels to the left
    ours = np.asarray(apply(drawings[0], draw, 16))
    alpha = drawings[0, :, 3:, 3:] / 255
    background = np.array([0.0, 0.5, 1.0])
    expected = drawings[0, :, 3:, :3] / 255 * alpha + (1 - alpha) * background
    np.testing.assert_allclose(ours[:, :13], expected, atol=1e-5)
    np.testing.assert_allclose(ours[:, 13:], np.broadcast_to(background, (16, 3, 3)), atol=1e-6)


def test_colours_under_transparent_pixels_leave_no_fringe():
    """A white disc on transparent black stays white on white, however it is turned and scaled."""
    y, x = np.mgrid[:32, :32] - 15.5
    disc = np.zeros((8, 32, 32, 4), np.uint8)
    disc[:, y**2 + x**2 < 100] = 255
    config = DrawingAugmentConfig(
        rotation=1.0, scale=0.3, num_cutouts=2, background_probability=0.0
    )
    assert float(augment(jax.random.key(0), disc, config, 16).min()) > 1 - 1e-5


def test_everything_stays_in_range_differs_by_image_and_follows_the_key(drawings):
    same = np.repeat(drawings[:1], 6, axis=0)
    one = augment(jax.random.key(0), same, EVERYTHING, 8)
    again = augment(jax.random.key(0), same, EVERYTHING, 8)
    other = augment(jax.random.key(1), same, EVERYTHING, 8)
    assert one.shape == (6, 8, 8, 3) and one.dtype == jnp.float32
    assert float(one.min()) >= 0 and float(one.max()) <= 1
    np.testing.assert_array_equal(one, again)
    assert (np.asarray(one) != np.asarray(other)).any((1, 2, 3)).all()
    assert len(np.unique(np.asarray(one), axis=0)) == 6


def test_a_batch_equals_single_images(drawings):
    draw = sample(jax.random.key(2), 6, EVERYTHING)
    together = augment(jax.random.key(2), drawings, EVERYTHING, 8)
    for i in range(3):
        alone = apply(drawings[i], jax.tree.map(lambda x: x[i], draw), 8)  # noqa: B023
        np.testing.assert_allclose(alone, together[i], atol=1e-6)


def test_draws_have_the_stated_ranges():
    config = DrawingAugmentConfig(
        rotation=0.3, scale=0.25, translation=0.1, flip_probability=0.5, num_cutouts=3,
        contrast=0.2, blur_probability=0.4, blur_sigma=0.8, background_probability=0.25,
        cutout_size=0.2,
    )  # fmt: skip
    draw = jax.tree.map(np.asarray, sample(jax.random.key(0), 4000, config))
    determinant = np.linalg.det(draw.matrix)
    size = 1 / np.sqrt(np.abs(determinant))
    assert 1 / 1.25 <= size.min() < 0.81 and 1.24 < size.max() <= 1.25 * (1 + 1e-6)
    angle = np.arctan2(draw.matrix[:, 0, 1] * -1, draw.matrix[:, 0, 0])
    assert 0.29 < np.abs(angle).max() <= 0.3 + 1e-6 and abs(angle.mean()) < 0.02
    assert 0.19 < np.abs(draw.shift).max() <= 0.2
    # Binomial shares of 4,000: three standard deviations are at most 0.024.
    assert abs((determinant < 0).mean() - 0.5) < 0.03
    assert abs((draw.blur_sigma > 0).mean() - 0.4) < 0.03 and draw.blur_sigma.max() <= 0.8
    assert abs((draw.background < 1).any(1).mean() - 0.25) < 0.03
    assert 0.19 < draw.contrast.max() - 1 <= 0.2
    assert draw.cutouts.shape == (4000, 3, 4) and 0.19 < draw.cutouts[..., 2:].max() <= 0.2


def test_hue_keeps_gray_and_turns_red_into_green():
    np.testing.assert_allclose(hue_matrix(jnp.float32(0.7)) @ jnp.ones(3), jnp.ones(3), atol=1e-6)
    turned = hue_matrix(jnp.float32(2 * np.pi / 3))
    np.testing.assert_allclose(turned, np.eye(3)[[2, 0, 1]], atol=1e-6)
    many = hue_matrix(jnp.linspace(-1.0, 1.0, 5))
    np.testing.assert_allclose(np.linalg.det(many), 1.0, atol=1e-5)


def test_colour_changes_act_on_straight_colours():
    """Brightness 0.5 of an opaque and of a half-transparent red: halved before compositing."""
    drawing = np.array([[[200, 40, 0, 255], [200, 40, 0, 128]]] * 2, np.uint8)
    draw = draw_of(color=0.5 * jnp.eye(3))
    ours = np.asarray(apply(drawing, draw, 2))[0]
    half = np.array([100, 20, 0]) / 255
    np.testing.assert_allclose(ours[0], half, atol=1e-6)
    alpha = 128 / 255
    np.testing.assert_allclose(ours[1], half * alpha + 1 - alpha, atol=1e-6)


def test_contrast_pulls_towards_the_mean_level_of_the_drawing():
    drawing = np.zeros((4, 4, 4), np.uint8)
    drawing[1:3, 1, :] = (60, 60, 60, 255)
    drawing[1:3, 2, :] = (180, 180, 180, 255)
    draw = draw_of(color=jnp.eye(3), contrast=jnp.float32(0.5))
    ours = np.asarray(apply(drawing, draw, 4))
    np.testing.assert_allclose(ours[1, 1], 90 / 255, atol=1e-6)
    np.testing.assert_allclose(ours[1, 2], 150 / 255, atol=1e-6)
    np.testing.assert_allclose(ours[0], 1.0, atol=1e-6)


def test_cutouts_show_the_background_inside_their_rectangles(drawings):
    cutouts = jnp.array([[-0.5, 0.0, 0.25, 0.5], [0.9, 0.9, 0.2, 0.2]])
    draw = draw_of(background=(0.0, 1.0, 0.0), cutouts=cutouts)
    ours = np.asarray(apply(drawings[1], draw, 16))
    line = (np.arange(16) + 0.5) / 8 - 1
    y, x = np.meshgrid(line, line, indexing="ij")
    cut = (np.abs(y + 0.5) < 0.25) & (np.abs(x) < 0.5)
    cut |= (np.abs(y - 0.9) < 0.2) & (np.abs(x - 0.9) < 0.2)
    assert 0 < cut.sum() < 256
    assert (ours[cut] == [0, 1, 0]).all() and (ours[~cut] != [0, 1, 0]).any(-1).all()


@pytest.mark.parametrize("sigma", [0.3, 0.7, 1.0])
def test_blur_equals_scipy(sigma):
    image = np.random.default_rng(2).uniform(size=(9, 11, 3)).astype(np.float32)
    ours = blur(jnp.asarray(image), jnp.float32(sigma))
    expected = image.astype(np.float64)
    for axis in (0, 1):
        expected = gaussian_filter1d(expected, sigma, axis, mode="nearest", radius=2)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_blur_of_sigma_zero_changes_nothing():
    image = np.random.default_rng(2).uniform(size=(5, 6, 3)).astype(np.float32)
    np.testing.assert_array_equal(blur(jnp.asarray(image), jnp.float32(0.0)), image)


@pytest.mark.parametrize(
    ("field", "value"), [("rotation", -0.1), ("flip_probability", 1.5), ("num_cutouts", -1)]
)
def test_config_names_the_bad_field(field, value):
    with pytest.raises(ValueError, match=f"DrawingAugmentConfig.{field}={value} is out of range"):
        DrawingAugmentConfig(**{field: value})
