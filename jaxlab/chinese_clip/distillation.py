"""What a frozen teacher adds to the loss: its image features, and its view of the whole batch.

The teacher is any Chinese CLIP whose weights the library reads. It runs as in evaluation, without
patch masking and dropout, and sees the images that the student sees, augmentation included.

References:
  `cosineSimilarityLoss` of `cn_clip/training/train.py` in Chinese-CLIP 1.6.0 (image features);
  Yang et al. 2024, "CLIP-KD", arXiv:2307.12732, section 3 (similarities).
"""

import dataclasses
from typing import Any, Literal, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PyTree

from jaxlab.chinese_clip.losses import distillation_loss
from jaxlab.chinese_clip.model import ChineseClip, ClipFeatures, normalize
from jaxlab.chinese_clip.sweep import Devices, check_chunk_size, check_divisible, product, varying
from jaxlab.parallel import DATA_AXIS, shard_map

ImageMap = Literal["interpolate", "linear"]


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
    """What the student learns from a teacher, beside the contrastive loss.

    Attributes:
      image_weight: weight of 1 - the mean cosine of both image features; 0 leaves it out.
      similarity_weight: weight of the Kullback-Leibler divergence of the student's in-batch
        distributions from the teacher's, image to text and text to image; 0 leaves it out. It
        reaches the text tower too.
      image_map: how the student's image features get the width of the teacher's: `interpolate`, as
        the original, or `linear`, a matrix that is trained along and thrown away.
    """

    image_weight: float = 0.5
    similarity_weight: float = 0.0
    image_map: ImageMap = "interpolate"

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
          ValueError: if a weight is negative, both are zero, or the map is unknown.
        """
        weights = (self.image_weight, self.similarity_weight)
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError(
                f"DistillationConfig: image_weight={weights[0]} and similarity_weight={weights[1]} "
                "must not be negative and not both zero; leave the teacher out to have neither"
            )
        if self.image_map not in get_args(ImageMap):
            raise ValueError(
                f"DistillationConfig.image_map={self.image_map!r} is not one of "
                f"{get_args(ImageMap)}"
            )


class Taught(NamedTuple):
    """A teacher's normalised features of a batch, without gradient.

    Attributes:
      image: (batch, teacher's dim), float32.
      text: likewise; `None` where they are not asked for.
    """

    image: Float[Array, "batch dim"]
    text: Float[Array, "batch dim"] | None


def teach(
    teacher: ChineseClip,
    variables: PyTree,
    images: Float[Array, "batch height width 3"],
    ids: Int[Array, "batch time"] | None,
) -> Taught:
    """What the teacher says of a batch.

    Args:
      teacher: its towers.
      variables: its variables; the image tower is enough without `ids`.
      images: normalised, NHWC; of another size than the teacher's, they are resized to it.
      ids: token ids; `None` leaves the texts out.

    Returns:
      Its features.
    """

    def encode(inputs: Array, method: str) -> Array:
        features = cast(Array, teacher.apply(variables, inputs, method=method))
        return jax.lax.stop_gradient(normalize(features))

    resized = resize_images(images, teacher.config.vision.image_size)
    text = None if ids is None else encode(ids, "encode_text")
    return Taught(encode(resized, "encode_image"), text)


def resize_images(
    images: Float[Array, "batch height width 3"], size: int
) -> Float[Array, "batch size size 3"]:
    """Images squashed to a square by a bicubic filter (a = -0.5, antialiased), on the device.

    Args:
      images: NHWC, any scaling.
      size: height and width of the result.

    Returns:
      float32 images; unchanged if they have the size.
    """
    if images.shape[1:3] == (size, size):
        return images
    shape = (images.shape[0], size, size, images.shape[3])
    return jax.image.resize(images.astype(jnp.float32), shape, "cubic", antialias=True)


def image_distillation_loss(
    student: Float[Array, "batch dim"],
    teacher: Float[Array, "batch teacher_dim"],
    kernel: Float[Array, "dim teacher_dim"] | None,
) -> Float[Array, ""]:
    """`distillation_loss`, through a trained map or by interpolation.

    Args:
      student: the student's normalised image features.
      teacher: the teacher's.
      kernel: the trained map; `None` interpolates.

    Returns:
      float32, in [0, 2].
    """
    return distillation_loss(student if kernel is None else student @ kernel, teacher)


def similarity_distillation_loss(
    student: ClipFeatures,
    teacher: ClipFeatures,
    *,
    chunk_size: int = 1024,
    mesh: Mesh | None = None,
) -> Float[Array, ""]:
    """How far the student's in-batch distributions are from the teacher's.

    The mean over images of KL(softmax of the teacher's logits over the texts || the student's), and
    the same of texts over images, averaged. Logits are multiplied by each model's own scale.
    `chunk_size` rows of logits are held at a time, and computed again in the backward pass.

    Args:
      student: both features of the batch, and the log of the multiplier.
      teacher: likewise, in a width of its own; no gradient.
      chunk_size: rows compared with the whole batch at a time.
      mesh: devices over whose data axis the batch is split; `None` uses one device.

    Returns:
      float32, in nats.

    Raises:
      ValueError: if the chunk size is not positive or the batch does not split over the devices.
    """
    check_chunk_size(chunk_size)
    batch = student.image.shape[0]
    teacher = jax.lax.stop_gradient(teacher)
    scales = (jnp.exp(student.log_scale), jnp.exp(teacher.log_scale))
    devices = Devices(None, 1, "all_gather")
    if mesh is not None:
        devices = Devices(DATA_AXIS, mesh.shape[DATA_AXIS], "all_gather")
    check_divisible(batch, devices.size)

    def both(images: tuple, texts: tuple, scales: tuple) -> Array:
        total = _divergence(images, texts, scales, chunk_size, devices)
        total += _divergence(texts, images, scales, chunk_size, devices)
        if devices.axis_name is not None:
            total = jax.lax.psum(total, devices.axis_name)
        return total / (2 * batch)

    if mesh is not None:
        rows = P(DATA_AXIS)
        both = shard_map(both, mesh=mesh, in_specs=(rows, rows, P()), out_specs=P())
    return both((student.image, teacher.image), (student.text, teacher.text), scales)


def _divergence(
    rows: tuple[Array, Array],
    columns: tuple[Array, Array],
    scales: tuple[Array, Array],
    chunk_size: int,
    devices: Devices,
) -> Array:
    """Sum over this device's rows of the divergence over all columns; (student, teacher) pairs."""
    if (name := devices.axis_name) is not None:
        columns = jax.tree.map(lambda x: jax.lax.all_gather(x, name, tiled=True), columns)
    size = rows[0].shape[0]
    chunk_size = min(chunk_size, size)
    num_chunks = -(-size // chunk_size)

    def split(x: Array) -> Array:
        padded = jnp.pad(x, [(0, num_chunks * chunk_size - size), (0, 0)])
        return padded.reshape(num_chunks, chunk_size, x.shape[1])

    @jax.checkpoint
    def one(total: Array, chunk: Any) -> tuple[Array, None]:
        pair, valid = chunk
        student, teacher = (
            jax.nn.log_softmax(scale * product("rd,cd->rc", x, y), axis=1)
            for scale, x, y in zip(scales, pair, columns, strict=True)
        )
        divergence = (jnp.exp(teacher) * (teacher - student)).sum(axis=1)
        return total + jnp.where(valid, divergence, 0.0).sum(), None

    valid = (jnp.arange(num_chunks * chunk_size) < size).reshape(num_chunks, chunk_size)
    zero = varying(jnp.zeros((), jnp.float32), devices)
    return jax.lax.scan(one, zero, (jax.tree.map(split, rows), valid))[0]
