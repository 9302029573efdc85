"""A model of two small random towers, and pictures of all kinds, for the tests of use."""

import io

import jax
import numpy as np
from PIL import Image

from jaxlab import chinese_clip as clip
from jaxlab.checkpoints.foreign.names import unflatten
from jaxlab.chinese_clip.published import variable_shapes
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.vit import VisionTransformerConfig
from jaxlab.parallel import make_mesh

CONFIG = clip.ChineseClipConfig(
    VisionTransformerConfig(16, 8, 1, 16, 2, 24, 12),
    BertConfig(num_layers=1, width=16, num_heads=2, mlp_width=24, max_positions=64),
    context_length=52,
)


def tiny_weights(seed=0):
    """Random weights of the scale of the usual start, without compiling one."""
    rng = np.random.default_rng(seed)
    flat = {
        path: rng.standard_normal(shape, dtype=np.float32) * (len(shape) > 1 and shape[0] ** -0.5)
        for path, shape in variable_shapes(CONFIG).items()
    }
    flat |= {path: np.ones_like(a) for path, a in flat.items() if path.endswith("scale")}
    flat["params/logit_scale"] = np.log(np.float32(100.0))
    return clip.Weights(CONFIG, unflatten(flat))


def tiny_model(seed=0, **options):
    options.setdefault("mesh", make_mesh(devices=jax.devices()[:1]))
    return clip.load(tiny_weights(seed), **options)


def picture(seed=0, size=(20, 14), mode="RGB"):
    """A picture of random colours in a mode of Pillow."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray((pixels[..., 0].astype(np.uint16) << 8) + pixels[..., 1])
    image = Image.fromarray(pixels)
    return image.convert("RGB").convert(mode) if mode != "RGBA" else image


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
