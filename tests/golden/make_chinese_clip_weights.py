"""Makes chinese_clip_weights.npz: names, shapes and features of two small models of the original.

`python tests/golden/make_chinese_clip_weights.py` with cn_clip 1.6.0 and torch 2.13.0. Weights and
inputs are drawn by NumPy (`draw`, `inputs`: the test calls them too), so that only the features of
the original are stored. torchvision, which the original imports for its image transform, is not
needed.
"""

import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np

TEXT = {
    "vocab_size": 50,
    "text_attention_probs_dropout_prob": 0.1,
    "text_hidden_act": "gelu",
    "text_hidden_dropout_prob": 0.1,
    "text_hidden_size": 128,
    "text_initializer_range": 0.02,
    "text_intermediate_size": 96,
    "text_max_position_embeddings": 60,
    "text_num_attention_heads": 2,
    "text_num_hidden_layers": 2,
    "text_type_vocab_size": 2,
}
MODELS = {
    "vit": {
        "embed_dim": 24,
        "image_resolution": 32,
        "vision_layers": 2,
        "vision_width": 128,
        "vision_patch_size": 8,
    },
    "resnet": {
        "embed_dim": 24,
        "image_resolution": 64,
        "vision_layers": (1, 2, 1, 1),
        "vision_width": 8,
        "vision_patch_size": None,
    },
}


def draw(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Weights by name: scaled normals, positive variances and scales, a logit scale of 2.5."""
    rng = np.random.default_rng(7)
    drawn = {}
    for name in sorted(shapes):
        shape = shapes[name]
        value = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith(("running_var", "bn3.weight")) or "ln_" in name or "LayerNorm" in name:
            value = np.abs(value) + np.float32(0.5)
        elif len(shape) > 1:
            value /= np.sqrt(np.prod(shape[1:]) if len(shape) == 4 else shape[-1], dtype=np.float32)
        drawn[name] = value
    drawn["logit_scale"] = np.array(2.5, np.float32)
    return drawn


def inputs(resolution: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(8)
    images = rng.standard_normal((2, 3, resolution, resolution), dtype=np.float32)
    ids = rng.integers(1, TEXT["vocab_size"], (3, 9))
    ids[1, 5:] = 0
    ids[2] = 0
    return images, ids


def main() -> None:
    sys.modules.setdefault("torchvision", mock.MagicMock())
    sys.modules.setdefault("torchvision.transforms", mock.MagicMock())
    import torch
    from cn_clip.clip.model import CLIP

    stored = {"torch_version": torch.__version__, "cn_clip_version": "1.6.0"}
    for kind, sizes in MODELS.items():
        model = CLIP(**TEXT, **sizes).float().eval()
        state = {n: t for n, t in model.state_dict().items() if not n.endswith("_tracked")}
        drawn = draw({n: tuple(t.shape) for n, t in state.items()})
        model.load_state_dict({n: torch.from_numpy(a) for n, a in drawn.items()}, strict=False)
        images, ids = (torch.from_numpy(a) for a in inputs(sizes["image_resolution"]))
        with torch.no_grad():
            stored[f"{kind}/image"] = model.encode_image(images).numpy()
            stored[f"{kind}/text"] = model.encode_text(ids).numpy()
        shapes = {n: list(t.shape) for n, t in model.state_dict().items()}
        stored[f"{kind}/shapes"] = json.dumps(shapes)
    np.savez_compressed(Path(__file__).parent / "chinese_clip_weights.npz", **stored)


if __name__ == "__main__":
    main()
