"""Makes layers.npz: what the original's blocks compute, layer by layer, in evaluation and training.

`python tests/golden/make_layers.py` with cn_clip 1.6.0 and torch 2.13.0. The models, weights and
inputs are those of make_chinese_clip_weights.py.
"""

import sys
from pathlib import Path
from unittest import mock

import numpy as np
from make_chinese_clip_weights import MODELS, TEXT, draw, inputs

BATCH_NORM_STEPS = 2


def build(kind):
    """The original's model in float32 with the drawn weights, in evaluation mode."""
    sys.modules.setdefault("torchvision", mock.MagicMock())
    sys.modules.setdefault("torchvision.transforms", mock.MagicMock())
    import torch
    from cn_clip.clip.model import CLIP

    model = CLIP(**TEXT, **MODELS[kind]).float().eval()
    state = {n: t for n, t in model.state_dict().items() if not n.endswith("_tracked")}
    drawn = draw({n: tuple(t.shape) for n, t in state.items()})
    model.load_state_dict({n: torch.from_numpy(a) for n, a in drawn.items()}, strict=False)
    return model


def hidden_states(stages, run):
    """Outputs of torch modules during a run."""
    caught = []
    hooks = [s.register_forward_hook(lambda _m, _i, out: caught.append(out)) for s in stages]
    run()
    for hook in hooks:
        hook.remove()
    return [np.asarray(x.detach()) for x in caught]


def vision_transformer(model, images):
    tower = model.visual
    states = hidden_states(
        [tower.ln_pre, *tower.transformer.resblocks], lambda: model.encode_image(images)
    )
    # The blocks put time before the batch.
    return {"vit/hidden": np.stack([states[0], *(s.transpose(1, 0, 2) for s in states[1:])])}


def bert(model, ids):
    encoder = model.bert.encoder
    encoder.output_hidden_states = encoder.output_attentions = True
    for layer in encoder.layer:
        layer.attention.self.output_attentions = True
    _, _, hidden, probabilities = model.bert(ids, attention_mask=ids.ne(0).float())
    return {
        "bert/hidden": np.stack([h.numpy() for h in hidden]),
        "bert/probabilities": np.stack([p.numpy() for p in probabilities]),
    }


def resnet(model, images):
    import torch

    tower = model.visual
    stages = [tower.avgpool, tower.layer1, tower.layer2, tower.layer3, tower.layer4]
    states = hidden_states(stages, lambda: tower(images))
    stored = {f"resnet/stage_{i}": s.transpose(0, 2, 3, 1) for i, s in enumerate(states)}
    tower.train()
    with torch.enable_grad():
        features = tower(images)
        features.square().sum().backward()
    for _ in range(BATCH_NORM_STEPS - 1):
        tower(images)
    return stored | {
        "resnet/train_features": features.detach().numpy(),
        "resnet/train_mean": tower.bn2.running_mean.numpy(),
        "resnet/train_var": tower.bn2.running_var.numpy(),
        "resnet/train_shortcut_var": tower.layer4[0].downsample[-1].running_var.numpy(),
        "resnet/gradient_stem": tower.conv1.weight.grad.numpy(),
        "resnet/gradient_query": tower.attnpool.q_proj.weight.grad.numpy()[:8, :8],
        "resnet/gradient_positions": tower.attnpool.positional_embedding.grad.numpy(),
    }


def resizes():
    from torch import from_numpy
    from torch.nn.functional import interpolate

    rng = np.random.default_rng(9)
    stored = {}
    for old, new in ((4, 7), (7, 3), (3, 1)):
        grid = rng.standard_normal((1, 2, old, old), dtype=np.float32)
        resized = interpolate(from_numpy(grid), size=(new, new), mode="bicubic", align_corners=True)
        stored[f"positions/{old}_{new}/grid"] = grid[0].transpose(1, 2, 0)
        stored[f"positions/{old}_{new}/resized"] = resized.numpy()[0].transpose(1, 2, 0)
    for old, new in ((5, 8), (8, 3)):
        rows = rng.standard_normal((2, old), dtype=np.float32)
        resized = interpolate(from_numpy(rows)[:, None], size=new, mode="linear")
        stored[f"features/{old}_{new}/rows"] = rows
        stored[f"features/{old}_{new}/resized"] = resized.numpy()[:, 0]
    return stored


def main() -> None:
    import torch

    stored = {"torch_version": torch.__version__, "cn_clip_version": "1.6.0"} | resizes()
    for kind, sizes in MODELS.items():
        model = build(kind)
        images, ids = (torch.from_numpy(a) for a in inputs(sizes["image_resolution"]))
        with torch.no_grad():
            if kind == "vit":
                stored |= vision_transformer(model, images) | bert(model, ids)
            else:
                stored |= resnet(model, images)
    np.savez_compressed(Path(__file__).parent / "layers.npz", **stored)


if __name__ == "__main__":
    main()
