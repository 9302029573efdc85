"""Makes chinese_clip_train.npz: five steps of the original's training on two small models.

`python tests/golden/make_chinese_clip_train.py` with cn_clip 1.6.0 and torch 2.13.0. Loss and
schedule are the original's own functions; its optimizer and clamp, which stand in the middle of its
`main` and `train`, are written out after them. Weights and inputs are drawn by NumPy, so that only
results are stored: of every tensor a spread of entries, its norm and its largest entry.
"""

import json
import sys
from argparse import Namespace
from pathlib import Path
from unittest import mock

import numpy as np
from make_chinese_clip_weights import draw

STEPS, ROWS, LENGTH = 5, 8, 9
RATE, DECAY, BETAS = 1e-3, 0.1, (0.9, 0.98)
SCHEDULE = {"rate": 5e-5, "warmup": 100, "steps": 735, "at": (0, 99, 100, 417, 734)}
TEXT = {
    "vocab_size": 30,
    "text_attention_probs_dropout_prob": 0.0,
    "text_hidden_act": "gelu",
    "text_hidden_dropout_prob": 0.0,
    "text_hidden_size": 64,
    "text_initializer_range": 0.02,
    "text_intermediate_size": 48,
    "text_max_position_embeddings": 52,
    "text_num_attention_heads": 1,
    "text_num_hidden_layers": 1,
    "text_type_vocab_size": 2,
}
MODELS = {
    # The multipliers are small: they magnify the rounding of the features. One starts below its
    # bound, so that the clamp acts. The ResNet runs in float64: batch norms make gradients cancel,
    # and float32 leaves 1e-5 of some of the original's own. A bias before a batch norm has no
    # gradient where no unit is cut off; the large epsilon keeps Adam from stepping on its noise.
    "vit": {
        "embed_dim": 16, "image_resolution": 16, "vision_layers": 1, "vision_width": 64,
        "vision_patch_size": 8, "eps": 1e-6, "logit_scale": -0.01,
    },
    "resnet": {
        "embed_dim": 16, "image_resolution": 64, "vision_layers": (1, 1, 1, 1), "vision_width": 4,
        "vision_patch_size": None, "eps": 1e-4, "logit_scale": 1.0, "double": True,
    },
}  # fmt: skip
ZOO = {
    "ViT-B-16": {
        "embed_dim": 512, "image_resolution": 224, "vision_layers": 12, "vision_width": 768,
        "vision_patch_size": 16, "text_num_hidden_layers": 12,
    },
    "RN50": {
        "embed_dim": 1024, "image_resolution": 224, "vision_layers": (3, 4, 6, 3),
        "vision_width": 64, "vision_patch_size": None, "text_num_hidden_layers": 3,
    },
}  # fmt: skip
NUM_SAMPLES = 96


def inputs(resolution, seed=11):
    """Images (NCHW) and token ids; two texts are equal, one is short."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((ROWS, 3, resolution, resolution), dtype=np.float32)
    ids = rng.integers(1, TEXT["vocab_size"], (ROWS, LENGTH))
    ids[1, 4:] = 0
    ids[3] = ids[2]
    return images, ids


def sample(array):
    """Entries spread evenly over a tensor; all of a small one."""
    flat = np.asarray(array, np.float32).ravel()
    return flat[np.linspace(0, flat.size - 1, min(flat.size, NUM_SAMPLES)).astype(int)]


def weights(sizes, shapes):
    """Weights by name; small biases, or all features are alike and their differences rounding."""
    drawn = draw({name: tuple(shape) for name, shape in shapes.items()})
    drawn = {n: a * np.float32(0.1) if n.endswith("bias") else a for n, a in drawn.items()}
    return drawn | {"logit_scale": np.array(sizes["logit_scale"], np.float32)}


def import_original():
    stand_ins = {name: mock.MagicMock() for name in ("torchvision", "torchvision.transforms")}
    sys.modules.update(stand_ins)
    from cn_clip.clip.model import CLIP
    from cn_clip.training.scheduler import cosine_lr
    from cn_clip.training.train import get_loss

    for name in stand_ins:  # tests in the same process ask whether it is installed
        del sys.modules[name]
    return CLIP, get_loss, cosine_lr


def build(sizes):
    kept = {k: v for k, v in sizes.items() if k not in ("eps", "logit_scale", "double")}
    model = import_original()[0](**{**TEXT, **kept})
    return model.double() if sizes.get("double") else model.float()


def is_spared(name):
    """`exclude` of cn_clip/training/main.py."""
    return "bn" in name or "ln" in name or "bias" in name or "logit_scale" in name


def train(sizes, seed=11):
    """Five steps: shapes, losses, gradients of the first, and what the parameters moved by."""
    import torch

    _, get_loss, _ = import_original()
    model = build(sizes)
    state = {n: t for n, t in model.state_dict().items() if not n.endswith("_tracked")}
    shapes = {n: tuple(t.shape) for n, t in state.items()}
    drawn = weights(sizes, shapes)
    model.load_state_dict({n: torch.from_numpy(a) for n, a in drawn.items()}, strict=False)
    model.train()
    named = list(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in named if is_spared(n)], "weight_decay": 0.0},
            {"params": [p for n, p in named if not is_spared(n)], "weight_decay": DECAY},
        ],
        lr=RATE, betas=BETAS, eps=sizes["eps"],
    )  # fmt: skip
    images, ids = (torch.from_numpy(a) for a in inputs(sizes["image_resolution"], seed))
    args = Namespace(
        accum_freq=1, mask_ratio=0, distillation=False, aggregate=False, local_device_rank=0,
        report_training_batch_acc=False,
    )  # fmt: skip
    cross_entropy = torch.nn.CrossEntropyLoss()
    losses, gradients = [], {}
    for step in range(STEPS):
        optimizer.zero_grad()
        with mock.patch.object(torch.Tensor, "cuda", lambda self, *_, **__: self):
            loss, _ = get_loss(model, images, ids, cross_entropy, cross_entropy, args)
        loss.backward()
        if step == 0:
            gradients = {n: p.grad.numpy().copy() for n, p in named if p.grad is not None}
        optimizer.step()
        model.logit_scale.data = torch.clamp(model.logit_scale.data, 0, 4.6052)
        losses.append(loss.item())
    after = {n: t.numpy() for n, t in model.state_dict().items() if n in shapes}
    return {
        "shapes": shapes, "losses": np.array(losses), "gradients": gradients,
        "updates": {n: after[n] - drawn[n] for n, _ in named},
        "statistics": {n: a for n, a in after.items() if "running" in n},
    }  # fmt: skip


def decayed(sizes):
    """Names of the parameters that the original decays, and of all."""
    import torch

    with torch.device("meta"):
        names = [name for name, _ in build(sizes).named_parameters()]
    return [name for name in names if not is_spared(name)], names


def summary(tensors):
    """Spread entries, norms and largest entries of all tensors, in the order of their names."""
    names = sorted(tensors)
    return {
        "names": json.dumps(names),
        "entries": np.concatenate([sample(tensors[n]) for n in names]),
        "norms": np.array([np.linalg.norm(np.asarray(tensors[n], np.float64)) for n in names]),
        "largest": np.array([np.abs(tensors[n]).max() for n in names]),
    }


def main() -> None:
    import torch

    stored = {"torch_version": torch.__version__, "cn_clip_version": "1.6.0"}
    for kind, sizes in MODELS.items():
        run = train(sizes)
        stored[f"{kind}/shapes"] = json.dumps(run["shapes"])
        stored[f"{kind}/losses"] = run["losses"]
        for what in ("gradients", "updates", "statistics"):
            if run[what]:
                found = summary(run[what]).items()
                stored |= {f"{kind}/{what}/{name}": value for name, value in found}
    for name, sizes in ZOO.items():
        stored[f"decayed/{name}"], stored[f"all/{name}"] = map(json.dumps, decayed(sizes))
    adjust = import_original()[2](
        mock.MagicMock(param_groups=[{}]), SCHEDULE["rate"], SCHEDULE["warmup"], SCHEDULE["steps"]
    )
    stored["schedule"] = np.array([adjust(step) for step in SCHEDULE["at"]])
    np.savez_compressed(Path(__file__).parent / "chinese_clip_train.npz", **stored)


if __name__ == "__main__":
    main()
