"""Augmentation of small drawings with transparency, on the device, inside a jitted step.

A drawing is an RGBA image with straight alpha. One draw per image (`sample_drawing_augmentation`)
is applied by one bilinear gather on premultiplied colours (`apply_drawing_augmentation`), so that
no dark or white fringe appears at the outline, after the drawing is shrunk near the size of the
result; cutouts, blur and the background follow.
`augment_drawings` does both for a batch, `compose_drawings` is the same path without augmentation.
"""

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

WHITE = (1.0, 1.0, 1.0)
_BLUR_RADIUS = 2
_NUM_DRAWS = (7, 4, 4, 2)
"""Random numbers of an image for geometry, colour, background and blur; a cutout takes 4 more."""
_INSIDE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class DrawingAugmentConfig:
    """Strengths of the augmentation; the defaults are mild and zero switches a part off.

    Attributes:
      rotation: largest angle in radians, either way.
      scale: largest relative change of size, either way: 0.13 draws factors from 1/1.13 to 1.13.
      stretch: the same for height and width separately, on top of `scale`.
      translation: largest shift as a share of the side, either way, per axis.
      flip_probability: probability of a horizontal flip.
      hue: largest rotation about the gray axis in radians, either way.
      brightness: largest relative change of all channels, either way, in [0, 1].
      contrast: largest relative change of the distance to the mean level, either way, in [0, 1].
      saturation: largest relative change of the distance to gray, either way, in [0, 1].
      blur_probability: probability of a Gaussian blur.
      blur_sigma: largest standard deviation of the blur, in pixels of the result; the kernel ends
        two pixels from its centre, so that values above 1 blur less than they say.
      background_probability: probability of a random background colour; white otherwise.
      num_cutouts: rectangles that are cut out of every drawing and show the background.
      cutout_size: largest side of a cutout as a share of the side.
    """

    rotation: float = 0.12
    scale: float = 0.13
    stretch: float = 0.0
    translation: float = 0.04
    flip_probability: float = 0.0
    hue: float = 0.15
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    blur_probability: float = 0.3
    blur_sigma: float = 0.7
    background_probability: float = 0.3
    num_cutouts: int = 1
    cutout_size: float = 0.15

    def __post_init__(self):
        """Checks that no strength is negative and that shares stay within 1."""
        unbounded = ("rotation", "scale", "stretch", "hue", "blur_sigma", "num_cutouts")
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            limit = math.inf if name in unbounded else 1.0
            if not 0 <= value <= limit:
                wanted = "at least 0" if name in unbounded else "between 0 and 1"
                raise ValueError(
                    f"DrawingAugmentConfig.{name}={value} is out of range; wanted a number "
                    f"{wanted} (0 switches it off)"
                )


NO_AUGMENTATION = DrawingAugmentConfig(
    rotation=0.0,
    scale=0.0,
    translation=0.0,
    hue=0.0,
    blur_probability=0.0,
    background_probability=0.0,
    num_cutouts=0,
)
"""Every part switched off: `augment_drawings` then equals `compose_drawings`."""


class DrawingAugmentation(NamedTuple):
    """One draw; None leaves its part out.

    Attributes:
      matrix: maps an offset from the centre of the result to one in the drawing, as (y, x) in
        units of half a side.
      shift: added after `matrix`.
      background: colour under transparent pixels, in [0, 1].
      color: matrix that maps premultiplied (red, green, blue).
      contrast: factor of the distance to the mean level of the drawing, before `color`.
      blur_sigma: standard deviation in pixels of the result; 0 changes nothing.
      cutouts: centre (y, x) and half sides (y, x), in units of half a side.
    """

    matrix: Float[Array, "*batch 2 2"]
    shift: Float[Array, "*batch 2"]
    background: Float[Array, "*batch 3"]
    color: Float[Array, "*batch 3 3"] | None = None
    contrast: Float[Array, "*batch"] | None = None
    blur_sigma: Float[Array, "*batch"] | None = None
    cutouts: Float[Array, "*batch cutouts 4"] | None = None


def augment_drawings(
    key: Key[Array, ""],
    drawings: UInt8[Array, "batch height width 4"],
    config: DrawingAugmentConfig = DrawingAugmentConfig(),
    out_size: int = 32,
) -> Float[Array, "batch out_size out_size 3"]:
    """Random views of drawings, one draw per image, composited on a background.

    Args:
      key: key of all draws.
      drawings: RGBA with straight alpha, 0 to 255.
      config: strengths; static under `jit`.
      out_size: height and width of the result in pixels; static under `jit`.

    Returns:
      float32 RGB in [0, 1].
    """
    draw = sample_drawing_augmentation(key, drawings.shape[0], config)
    return jax.vmap(lambda one, d: apply_drawing_augmentation(one, d, out_size))(drawings, draw)


def compose_drawings(
    drawings: UInt8[Array, "batch height width 4"],
    out_size: int,
    background: tuple[float, float, float] = WHITE,
) -> Float[Array, "batch out_size out_size 3"]:
    """Drawings composited on one colour and resized, without augmentation.

    Shrinking by a whole number is the exact mean of blocks; other sizes are bilinear, with blocks
    averaged first where the drawing is twice the result or larger.

    Args:
      drawings: RGBA with straight alpha, 0 to 255.
      out_size: height and width of the result in pixels; static under `jit`.
      background: red, green and blue in [0, 1].

    Returns:
      float32 RGB in [0, 1].
    """
    draw = DrawingAugmentation(jnp.eye(2), jnp.zeros(2), jnp.array(background, dtype=jnp.float32))
    return jax.vmap(lambda one: apply_drawing_augmentation(one, draw, out_size))(drawings)


def sample_drawing_augmentation(
    key: Key[Array, ""], num_images: int, config: DrawingAugmentConfig
) -> DrawingAugmentation:
    """One independent draw per image.

    Args:
      key: key of all draws.
      num_images: length of the leading axis of the result.
      config: strengths.
    """
    # One call for all numbers: every call of a random function adds seconds to the compilation.
    count = sum(_NUM_DRAWS) + 4 * config.num_cutouts
    uniform = jax.random.uniform(key, (num_images, count))
    stops = [sum(_NUM_DRAWS[: i + 1]) for i in range(len(_NUM_DRAWS))]
    geometry, colors, background, blur, cutouts = jnp.split(uniform, stops, axis=1)
    matrix, shift = _draw_geometry(geometry, config)
    color, contrast = _draw_color(colors, config)
    return DrawingAugmentation(
        matrix=matrix,
        shift=shift,
        background=_draw_background(background, config),
        color=color,
        contrast=contrast,
        blur_sigma=_draw_blur(blur, config),
        cutouts=_draw_cutouts(cutouts, config),
    )


def apply_drawing_augmentation(
    drawing: UInt8[Array, "height width 4"], draw: DrawingAugmentation, out_size: int
) -> Float[Array, "out_size out_size 3"]:
    """One drawing under one draw.

    Args:
      drawing: RGBA with straight alpha, 0 to 255.
      draw: a draw without a batch axis.
      out_size: height and width of the result in pixels.

    Returns:
      float32 RGB in [0, 1].
    """
    offsets = _grid_offsets(out_size)
    source = _map_vectors(draw.matrix, offsets) + draw.shift[None, None]
    image = sample_bilinear(_shrink(drawing, out_size), source)
    if draw.color is not None:
        image = _recolor(image, draw.color, draw.contrast)
    if draw.cutouts is not None:
        image = image * _keep_mask(offsets, draw.cutouts)[..., None]
    alpha = image[..., 3:]
    rgb = image[..., :3] + (1 - alpha) * draw.background[None, None]
    if draw.blur_sigma is not None:
        rgb = gaussian_blur(rgb, draw.blur_sigma)
    return jnp.clip(rgb, 0.0, 1.0)


def premultiply(drawing: UInt8[Array, "*shape 4"]) -> Float[Array, "*shape 4"]:
    """Colours times alpha, and alpha, all in [0, 1]."""
    unit = drawing.astype(jnp.float32) / 255
    return jnp.concatenate([unit[..., :3] * unit[..., 3:], unit[..., 3:]], axis=-1)


def sample_bilinear(
    drawing: UInt8[Array, "height width 4"] | Float[Array, "height width 4"],
    offsets: Float[Array, "rows columns 2"],
) -> Float[Array, "rows columns 4"]:
    """Premultiplied colours and alpha of a drawing at given places, bilinear.

    Args:
      drawing: uint8 with straight alpha, or float32 that is premultiplied already.
      offsets: (y, x) from the centre in units of half a side: -1 and 1 are the outer edges.

    Returns:
      float32; the outermost half pixel takes the colour of the edge, outside all is transparent.
    """
    height, width = drawing.shape[:2]
    sides = jnp.array([height, width], jnp.float32)[None, None]
    position = (offsets + 1) / 2 * sides - 0.5
    below = jnp.floor(position)
    weight_y, weight_x = jnp.split(position - below, 2, axis=-1)
    corner = below.astype(jnp.int32)
    pixels = drawing.reshape(-1, 4)

    def neighbour(dy: int, dx: int) -> Float[Array, "rows columns 4"]:
        y = jnp.clip(corner[..., 0] + dy, 0, height - 1)
        x = jnp.clip(corner[..., 1] + dx, 0, width - 1)
        found = pixels[y * width + x]
        return premultiply(found) if found.dtype == jnp.uint8 else found

    upper = (1 - weight_x) * neighbour(0, 0) + weight_x * neighbour(0, 1)
    lower = (1 - weight_x) * neighbour(1, 0) + weight_x * neighbour(1, 1)
    inside = jnp.all(jnp.abs(offsets) <= 1 + _INSIDE_TOLERANCE, axis=-1, keepdims=True)
    return jnp.where(inside, (1 - weight_y) * upper + weight_y * lower, 0.0)


def gaussian_blur(
    image: Float[Array, "height width channels"], sigma: Float[Array, ""]
) -> Float[Array, "height width channels"]:
    """Separable Gaussian blur over two pixels each way, the edges repeated.

    Args:
      image: any number of channels.
      sigma: standard deviation in pixels; 0 changes nothing.
    """
    taps = jnp.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, dtype=jnp.float32)
    weights = jnp.exp(-0.5 * (taps / jnp.maximum(sigma, 1e-3)) ** 2)
    weights = weights / weights.sum()
    for axis in (0, 1):
        padding = [(0, 0)] * 3
        padding[axis] = (_BLUR_RADIUS, _BLUR_RADIUS)
        padded = jnp.pad(image, padding, mode="edge")
        blurred = jnp.zeros_like(image)
        for i in range(taps.size):  # shifted slices: XLA fuses the sum into one pass
            window = jax.lax.slice_in_dim(padded, i, i + image.shape[axis], axis=axis)
            blurred = blurred + weights[i] * window
        image = blurred
    return image


def hue_matrix(angle: Float[Array, "*batch"]) -> Float[Array, "*batch 3 3"]:
    """Rotation of (red, green, blue) about the gray axis: keeps grays and the mean of channels.

    Args:
      angle: in radians; 2 pi / 3 turns red into green, green into blue, blue into red.
    """
    cos, sin = jnp.cos(angle)[..., None, None], jnp.sin(angle)[..., None, None]
    cross = jnp.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    eye, mean = jnp.eye(3), jnp.full((3, 3), 1 / 3)
    shape = (1,) * angle.ndim + (3, 3)
    return cos * eye.reshape(shape) + (1 - cos) * mean.reshape(shape) + sin * cross.reshape(shape)


def _draw_geometry(
    uniform: Float[Array, "batch 7"], config: DrawingAugmentConfig
) -> tuple[Float[Array, "batch 2 2"], Float[Array, "batch 2"]]:
    angle = _symmetric(uniform[:, 0], config.rotation)
    size = _log_symmetric(uniform[:, 1:2], config.scale)
    size = size * _log_symmetric(uniform[:, 2:4], config.stretch)
    mirror = jnp.where(uniform[:, 4] < config.flip_probability, -1.0, 1.0)
    flip = jnp.stack([jnp.ones_like(mirror), mirror], axis=-1)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    turn_back = jnp.stack(
        [jnp.stack([cos, -sin], axis=-1), jnp.stack([sin, cos], axis=-1)], axis=-2
    )
    shift = _symmetric(uniform[:, 5:7], 2 * config.translation)
    return (flip / size)[..., None] * turn_back, shift


def _draw_color(
    uniform: Float[Array, "batch 4"], config: DrawingAugmentConfig
) -> tuple[Float[Array, "batch 3 3"] | None, Float[Array, " batch"] | None]:
    if not (config.hue or config.brightness or config.contrast or config.saturation):
        return None, None
    hue = hue_matrix(_symmetric(uniform[:, 0], config.hue))
    brightness = 1 + _symmetric(uniform[:, 1, None, None], config.brightness)
    saturation = 1 + _symmetric(uniform[:, 2, None, None], config.saturation)
    contrast = 1 + _symmetric(uniform[:, 3], config.contrast)
    gray = jnp.full((1, 3, 3), 1 / 3)
    matrix = brightness * (saturation * hue + (1 - saturation) * gray)
    return matrix, contrast if config.contrast else None


def _draw_background(
    uniform: Float[Array, "batch 4"], config: DrawingAugmentConfig
) -> Float[Array, "batch 3"]:
    return jnp.where(uniform[:, 3:] < config.background_probability, uniform[:, :3], 1.0)


def _draw_blur(
    uniform: Float[Array, "batch 2"], config: DrawingAugmentConfig
) -> Float[Array, " batch"] | None:
    if not (config.blur_probability and config.blur_sigma):
        return None
    blurred = uniform[:, 1] < config.blur_probability
    return jnp.where(blurred, config.blur_sigma * uniform[:, 0], 0.0)


def _draw_cutouts(
    uniform: Float[Array, "batch numbers"], config: DrawingAugmentConfig
) -> Float[Array, "batch cutouts 4"] | None:
    if not (config.num_cutouts and config.cutout_size):
        return None
    numbers = uniform.reshape(-1, config.num_cutouts, 4)
    centers = _symmetric(numbers[..., :2], 1.0)
    return jnp.concatenate([centers, config.cutout_size * numbers[..., 2:]], axis=-1)


def _recolor(
    image: Float[Array, "height width 4"],
    color: Float[Array, "3 3"],
    contrast: Float[Array, ""] | None,
) -> Float[Array, "height width 4"]:
    """Premultiplied colours under a linear map, clipped to [0, alpha]."""
    rgb, alpha = image[..., :3], image[..., 3:]
    if contrast is not None:
        mean = rgb.mean() / jnp.maximum(alpha.mean(), 1e-6)
        rgb = contrast * rgb + (1 - contrast) * mean * alpha
    rgb = _map_vectors(color, rgb)
    return jnp.concatenate([jnp.clip(rgb, 0.0, alpha), alpha], axis=-1)


def _map_vectors(
    matrix: Float[Array, "n n"], vectors: Float[Array, "rows columns n"]
) -> Float[Array, "rows columns n"]:
    """The matrix times every vector as fused sums; a tiny dot product takes a CPU twice as long."""
    mapped = jnp.zeros_like(vectors)
    for j in range(matrix.shape[1]):
        mapped = mapped + vectors[..., j : j + 1] * matrix[None, None, :, j]
    return mapped


def _keep_mask(
    offsets: Float[Array, "height width 2"], cutouts: Float[Array, "cutouts 4"]
) -> Float[Array, "height width"]:
    """1 outside every cutout, 0 inside one."""
    centers, half_sides = cutouts[:, None, None, :2], cutouts[:, None, None, 2:]
    inside = jnp.all(jnp.abs(offsets[None] - centers) < half_sides, axis=-1)
    return 1.0 - jnp.any(inside, axis=0)


def _shrink(
    drawing: UInt8[Array, "height width 4"], out_size: int
) -> UInt8[Array, "height width 4"] | Float[Array, "rows columns 4"]:
    """Block means where the drawing is at least twice the result, else the drawing itself.

    Sampling the larger drawing at a stride of two would alias: a network trained on such views
    knows sharper drawings than the block means it is evaluated on.
    """
    height, width = drawing.shape[:2]
    factor = min(height, width) // out_size
    if factor < 2 or height % factor or width % factor:
        return drawing
    blocks = premultiply(drawing).reshape(height // factor, factor, width // factor, factor, 4)
    return blocks.mean(axis=(1, 3))


def _grid_offsets(size: int) -> Float[Array, "size size 2"]:
    """(y, x) of pixel centres, from the centre in units of half a side: (size, size, 2)."""
    line = (jnp.arange(size, dtype=jnp.float32) + 0.5) * (2 / size) - 1
    return jnp.stack(jnp.meshgrid(line, line, indexing="ij"), axis=-1)


def _symmetric(uniform: Float[Array, "*shape"], limit: float) -> Float[Array, "*shape"]:
    """Numbers in [0, 1) moved to [-limit, limit)."""
    return (2 * uniform - 1) * limit


def _log_symmetric(uniform: Float[Array, "*shape"], limit: float) -> Float[Array, "*shape"]:
    """Factors between 1 / (1 + limit) and 1 + limit, their logarithm uniform."""
    return jnp.exp(_symmetric(uniform, math.log1p(limit)))
