"""Makes chinese_clip_files.npz and chinese_clip_openai.pt: what other libraries read and write.

`python tests/golden/make_chinese_clip_files.py` with torch 2.13.0 and transformers 4.57.6. The npz
holds names, shapes and `config.json` of two small models of transformers (ChineseCLIPModel and
BertForPreTraining) and the features of the first; weights and inputs are drawn by NumPy (`draw`,
`inputs`: the tests call them too). The archive is a TorchScript module in half precision with the
names of OpenAI's CLIP; `openai_state` gives what is in it.
"""

import json
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
CONFIG = {
    "projection_dim": 20,
    "text_config": {
        "vocab_size": 60,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "intermediate_size": 28,
        "max_position_embeddings": 40,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-6,
        "hidden_dropout_prob": 0.2,
        "attention_probs_dropout_prob": 0.3,
    },
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "image_size": 24,
        "patch_size": 8,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-3,
    },
}
BERT = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 28,
    "max_position_embeddings": 40,
}
OPENAI_SHAPES = {
    "logit_scale": (),
    "text_projection": (6, 5),
    "positional_embedding": (7, 6),
    "token_embedding.weight": (9, 6),
    "transformer.resblocks.0.ln_1.weight": (6,),
    "visual.class_embedding": (64,),
    "visual.positional_embedding": (5, 64),
    "visual.proj": (64, 5),
    "visual.conv1.weight": (64, 3, 4, 4),
    **{
        f"visual.{norm}.{end}": (64,)
        for norm in ("ln_pre", "ln_post", "transformer.resblocks.0.ln_1")
        for end in ("weight", "bias")
    },
    "visual.transformer.resblocks.0.ln_2.weight": (64,),
    "visual.transformer.resblocks.0.ln_2.bias": (64,),
    "visual.transformer.resblocks.0.attn.in_proj_weight": (192, 64),
    "visual.transformer.resblocks.0.attn.in_proj_bias": (192,),
    "visual.transformer.resblocks.0.attn.out_proj.weight": (64, 64),
    "visual.transformer.resblocks.0.attn.out_proj.bias": (64,),
    "visual.transformer.resblocks.0.mlp.c_fc.weight": (12, 64),
    "visual.transformer.resblocks.0.mlp.c_fc.bias": (12,),
    "visual.transformer.resblocks.0.mlp.c_proj.weight": (64, 12),
    "visual.transformer.resblocks.0.mlp.c_proj.bias": (64,),
}
OPENAI_SIZES = {"input_resolution": 8, "context_length": 7, "vocab_size": 9}


def draw(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Weights by name: normals, scaled by the last axis; norms near 1; a logit scale of 2.5."""
    rng = np.random.default_rng(11)
    drawn = {}
    for name in sorted(shapes):
        value = rng.standard_normal(shapes[name], dtype=np.float32)
        if value.ndim > 1:
            value /= np.sqrt(shapes[name][-1], dtype=np.float32)
        elif "norm" in name.lower() and name.endswith("weight"):
            value = np.abs(value) + np.float32(0.5)
        drawn[name] = value
    if "logit_scale" in drawn:
        drawn["logit_scale"] = np.array(2.5, np.float32)
    return drawn


def inputs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(12)
    images = rng.standard_normal((2, 3, 24, 24), dtype=np.float32)
    ids = rng.integers(1, 60, (3, 9))
    ids[1, 5:] = 0
    return images, ids


def openai_state() -> dict[str, np.ndarray]:
    """The tensors of the archive, float16."""
    return {name: array.astype(np.float16) for name, array in draw(OPENAI_SHAPES).items()}


def load(model, torch):
    """Gives a model of transformers drawn weights, and returns names and shapes."""
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(a) for name, a in draw(shapes).items()})
    return shapes


def script(torch):
    """The archive as a module tree without a forward pass."""
    root = torch.nn.Module()
    for name, array in openai_state().items():
        *parents, leaf = name.split(".")
        node = root
        for parent in parents:
            if parent not in node._modules:
                node.add_module(parent, torch.nn.Module())
            node = node._modules[parent]
        node.register_parameter(leaf, torch.nn.Parameter(torch.from_numpy(array)))
    for name, value in OPENAI_SIZES.items():
        root.register_buffer(name, torch.tensor(value))
    root.heads = torch.jit.Attribute([1, 2], list[int])
    return torch.jit.script(root.eval())


def main() -> None:
    import torch
    import transformers

    config = transformers.ChineseCLIPConfig(**CONFIG)
    model = transformers.ChineseCLIPModel(config).eval()
    shapes = load(model, torch)
    images, ids = (torch.from_numpy(a) for a in inputs())
    with torch.no_grad():
        out = model(ids, images, attention_mask=(ids != 0).long())
    bert = transformers.BertForPreTraining(transformers.BertConfig(**BERT))
    np.savez_compressed(
        HERE / "chinese_clip_files.npz",
        torch_version=torch.__version__,
        transformers_version=transformers.__version__,
        config=config.to_json_string(),
        shapes=json.dumps({n: list(s) for n, s in shapes.items()}),
        image=out.image_embeds.numpy(),
        text=out.text_embeds.numpy(),
        bert_config=bert.config.to_json_string(),
        bert_shapes=json.dumps({n: list(t.shape) for n, t in bert.state_dict().items()}),
    )
    script(torch).save(str(HERE / "chinese_clip_openai.pt"))


if __name__ == "__main__":
    main()
