"""Floating-point operations of the towers, counted from their sizes.

A multiplication with its addition counts as two operations. Matrix products and convolutions are
counted; norms, activations, softmax, embeddings and pooling, together below 1 %, are not. The last
block of a transformer computes the one token that is wanted, with keys and values of all; the
original computes every token of it.
"""

from jaxlab.chinese_clip.model import ChineseClipConfig
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.resnet import ModifiedResNetConfig
from jaxlab.layers.vit import VisionTransformerConfig, num_kept_patches


def image_flops(
    config: VisionTransformerConfig | ModifiedResNetConfig, *, mask_ratio: float = 0.0
) -> float:
    """Operations of one image through the image tower.

    Args:
      config: sizes of the tower.
      mask_ratio: share of the patches that a vision transformer drops.

    Returns:
      Operations of the forward pass.

    Example:
      >>> from jaxlab.chinese_clip import MODELS
      >>> round(image_flops(MODELS["ViT-B-16"].vision) / 1e9, 1)
      32.7
    """
    if isinstance(config, ModifiedResNetConfig):
        return _resnet_flops(config)
    patches = config.grid_size**2
    tokens = 1 + num_kept_patches(patches, mask_ratio)
    embedding = _dense(patches, 3 * config.patch_size**2, config.width)
    blocks = _transformer(config.num_layers, tokens, config.width, config.mlp_width)
    return embedding + blocks + _dense(1, config.width, config.output_dim)


def text_flops(config: BertConfig, context_length: int, output_dim: int) -> float:
    """Operations of one text through the text tower.

    Args:
      config: sizes of the tower.
      context_length: tokens of a text, padding included.
      output_dim: width of the joint embedding space.

    Returns:
      Operations of the forward pass.
    """
    blocks = _transformer(config.num_layers, context_length, config.width, config.mlp_width)
    return blocks + _dense(1, config.width, output_dim)


def train_flops(
    config: ChineseClipConfig,
    *,
    image_locked: bool = False,
    cached_features: bool = False,
    mask_ratio: float = 0.0,
    teacher: ChineseClipConfig | None = None,
    teacher_text: bool = False,
) -> float:
    """Operations that training needs for one pair: what a share of the peak is counted with.

    A tower that trains takes three times its forward pass, a locked one its forward pass. What is
    computed twice to save memory (checkpointed blocks, cached accumulation) counts once; the loss,
    whose cost a pair grows with the batch, does not count.

    Args:
      config: sizes of both towers.
      image_locked: whether the image tower is locked.
      cached_features: whether its features are read instead.
      mask_ratio: share of the patches that a vision transformer drops while it trains.
      teacher: sizes of a teacher, whose image tower runs forward.
      teacher_text: whether its text tower does too.

    Returns:
      Operations of a pair.
    """
    ratio = mask_ratio if isinstance(config.vision, VisionTransformerConfig) else 0.0
    image = (
        image_flops(config.vision)
        if image_locked
        else 3 * image_flops(config.vision, mask_ratio=ratio)
    )
    total = (0.0 if cached_features else image) + 3 * _texts(config, config.context_length)
    if teacher is not None:
        total += image_flops(teacher.vision)
        total += _texts(teacher, config.context_length) if teacher_text else 0.0
    return total


def _texts(config: ChineseClipConfig, context_length: int) -> float:
    return text_flops(config.text, context_length, config.embed_dim)


def _dense(rows: int, inputs: int, outputs: int) -> float:
    return 2.0 * rows * inputs * outputs


def _transformer(num_layers: int, tokens: int, width: int, mlp_width: int) -> float:
    """Blocks that compute all tokens, and one that computes the first."""
    whole = _transformer_block(tokens, tokens, width, mlp_width)
    return (num_layers - 1) * whole + _transformer_block(1, tokens, width, mlp_width)


def _transformer_block(outputs: int, tokens: int, width: int, mlp_width: int) -> float:
    """Four projections, scores and weighted values, and the feed-forward layer."""
    projections = 2 * _dense(tokens, width, width) + 2 * _dense(outputs, width, width)
    attention = projections + 2 * _dense(outputs, tokens, width)
    return attention + 2 * _dense(outputs, width, mlp_width)


def _resnet_flops(config: ModifiedResNetConfig) -> float:
    """Convolutions of stem and blocks, each on the map that it writes, and the attention pool.

    The pool has one query; the original computes the output of every place and keeps the first (5 %
    of an RN50).
    """
    half, side = config.stem_width // 2, (config.image_size - 1) // config.stem_stride + 1
    places = side**2
    total = _dense(places, 9 * 3, half) + _dense(places, 9 * half, half)
    total += _dense(places, 9 * half, config.stem_width)
    side //= config.stem_pool
    channels = config.stem_width
    for stage, num_blocks in enumerate(config.stages):
        planes = config.stem_width * 2**stage
        features = planes * config.expansion
        for block in range(num_blocks):
            places = side**2
            total += _dense(places, channels, planes) + _dense(places, 9 * planes, planes)
            strided = stage > 0 and block == 0
            side = side // 2 if strided else side
            total += _dense(side**2, planes, features)
            if strided or channels != features:
                total += _dense(side**2, channels, features)
            channels = features
    tokens = side**2 + 1
    keys_and_values = 2 * _dense(tokens, channels, channels) + 2 * _dense(1, tokens, channels)
    query_and_out = _dense(1, channels, channels) + _dense(1, channels, config.output_dim)
    return total + keys_and_values + query_and_out
