"""Makes chinese_clip_sizes.npz: features and gradients of the original at all five kinds of sizes.

`PYTHONPATH=. python tests/golden/make_chinese_clip_sizes.py` with cn_clip 1.6.0 and torch 2.13.0.
Every published size has a small one that keeps what sets it apart: the ResNet with its attention
pool, patches of 16 and 14 pixels, the larger grid of the 336-pixel model, heads 80 wide and a wider
text tower. Weights, inputs and directions are drawn by NumPy (the test calls the same functions),
so that only what the original computes is stored. Of the gradient of every parameter there are the
norm and the product with a random direction.
"""

import sys
from pathlib import Path
from unittest import mock

import numpy as np
from make_chinese_clip_weights import draw

from jaxlab.chinese_clip.model import ChineseClipConfig
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.resnet import ModifiedResNetConfig
from jaxlab.layers.vit import VisionTransformerConfig


def _text(layers: int, width: int) -> BertConfig:
    return BertConfig(
        vocab_size=60,
        num_layers=layers,
        width=width,
        num_heads=width // 64,
        mlp_width=96,
        max_positions=16,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )


CONFIGS = {
    "RN50": ChineseClipConfig(
        ModifiedResNetConfig(64, 8, (1, 2, 1, 1), num_heads=4, output_dim=24), _text(3, 128), 11
    ),
    "ViT-B-16": ChineseClipConfig(
        VisionTransformerConfig(32, 16, 2, 128, 2, 512, 24), _text(2, 128), 11
    ),
    "ViT-L-14": ChineseClipConfig(
        VisionTransformerConfig(28, 14, 3, 192, 3, 768, 32), _text(2, 128), 11
    ),
    "ViT-L-14-336": ChineseClipConfig(
        VisionTransformerConfig(42, 14, 2, 192, 3, 768, 32), _text(2, 128), 11
    ),
    "ViT-H-14": ChineseClipConfig(
        VisionTransformerConfig(28, 14, 2, 160, 2, 640, 40), _text(3, 192), 11
    ),
}


def inputs(config: ChineseClipConfig) -> tuple[np.ndarray, np.ndarray]:
    """Images, NHWC, and padded texts; the last one is all padding."""
    rng = np.random.default_rng(4)
    size = config.vision.image_size
    images = rng.standard_normal((3, size, size, 3), dtype=np.float32)
    ids = rng.integers(1, config.text.vocab_size, (3, config.context_length))
    ids[1, 4:], ids[2] = 0, 0
    return images, ids


def objective(config: ChineseClipConfig) -> np.ndarray:
    """Weights of the normalised features, image and text, whose sum is differentiated.

    The text of padding has none: the original's embedding passes padding no gradient, which makes a
    difference for such a text only.
    """
    weights = np.random.default_rng(5).standard_normal((2, 3, config.embed_dim), dtype=np.float32)
    weights[1, 2] = 0.0
    return weights


def digest(name: str, gradient: np.ndarray) -> np.ndarray:
    """Norm, and product with a random unit direction, in float64."""
    seed = np.frombuffer(name.encode(), np.uint8)
    direction = np.random.default_rng(seed).standard_normal(gradient.shape)
    wide = gradient.astype(np.float64)
    return np.array([np.linalg.norm(wide), np.sum(wide * direction) / np.linalg.norm(direction)])


def main() -> None:
    sys.modules.setdefault("torchvision", mock.MagicMock())
    sys.modules.setdefault("torchvision.transforms", mock.MagicMock())
    import torch

    from experiments.chinese_clip.peers.cn_clip_model import build

    stored = {"torch_version": torch.__version__, "cn_clip_version": "1.6.0"}
    for name, config in CONFIGS.items():
        model = build(config, {})
        shapes = {n: tuple(t.shape) for n, t in model.state_dict().items()}
        drawn = draw({n: s for n, s in shapes.items() if not n.endswith("_tracked")})
        model.load_state_dict({n: torch.from_numpy(a) for n, a in drawn.items()}, strict=False)
        images, ids = (torch.from_numpy(a) for a in inputs(config))
        image, text, scale = model(images.permute(0, 3, 1, 2), ids)
        (torch.stack([image, text]) * torch.from_numpy(objective(config))).sum().backward()
        stored[f"{name}/features"] = torch.stack([image, text]).detach().numpy()
        stored[f"{name}/scale"] = scale.detach().numpy()
        gradients = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
        stored[f"{name}/parameters"] = np.array("\n".join(gradients))
        stored[f"{name}/gradients"] = np.stack([digest(n, g) for n, g in gradients.items()])
    np.savez_compressed(Path(__file__).parent / "chinese_clip_sizes.npz", **stored)


if __name__ == "__main__":
    main()
