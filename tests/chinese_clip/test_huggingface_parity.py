"""Hugging Face folders beside transformers itself (`pytest -m parity`), in both directions."""

import functools
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.checkpoints.foreign.names import flatten, unflatten
from jaxlab.chinese_clip.huggingface import load_huggingface, save_huggingface
from jaxlab.chinese_clip.model import MODELS, ChineseClip, ChineseClipConfig
from jaxlab.chinese_clip.published import variable_shapes
from jaxlab.chinese_clip.starts import load_image_tower, load_text_tower
from jaxlab.chinese_clip.weights import load_original, save_original
from jaxlab.data.images import image_transform
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.vit import VisionTransformerConfig
from jaxlab.text import WordPieceTokenizer

pytestmark = [pytest.mark.parity, pytest.mark.timeout(600)]

# The whole ViT-B-16; the larger ones with fewer layers.
SIZES = {"ViT-B-16": None, "ViT-L-14": (2, 1), "ViT-L-14-336": (1, 1), "ViT-H-14": (2, 2)}
ODD = ChineseClipConfig(
    VisionTransformerConfig(24, 8, 2, 32, 8, 36, 20, "gelu", 1e-3),
    BertConfig(
        num_layers=2, width=24, num_heads=6, mlp_width=28, activation="gelu_new",
        layer_norm_epsilon=1e-6, max_positions=64,
    ),
)  # fmt: skip
"""A small model none of whose conventions is the published one's."""


def sizes(name: str) -> ChineseClipConfig:
    from dataclasses import replace

    config, depth = MODELS[name], SIZES[name]
    if depth is None:
        return config
    vision, text = (
        replace(tower, num_layers=layers)
        for tower, layers in zip((config.vision, config.text), depth, strict=True)
    )
    return replace(config, vision=vision, text=text)


def draw(config):
    """Weights of the usual size, none at exactly 0 or 1."""
    rng = np.random.default_rng(0)
    drawn = {}
    for path, shape in variable_shapes(config).items():
        value = rng.standard_normal(shape, dtype=np.float32)
        drawn[path] = value * np.float32(0.02 if len(shape) > 1 else 0.1)
        if path.endswith("scale"):
            drawn[path] += np.float32(1.0)
    return unflatten(drawn)


def inputs(config):
    rng = np.random.default_rng(1)
    size = config.vision.image_size
    images = rng.standard_normal((2, size, size, 3), dtype=np.float32)
    ids = rng.integers(1, config.text.vocab_size, (2, config.context_length))
    ids[:, 0], ids[1, 9:] = 101, 0
    return images, ids


def theirs(model, images, ids):
    """Normalised features of transformers, which needs the padding mask told."""
    import torch

    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    tokens = torch.from_numpy(ids)
    with torch.no_grad():
        out = model(tokens, pixels, attention_mask=(tokens != 0).long())
    return out.image_embeds.numpy(), out.text_embeds.numpy(), out.logits_per_image.numpy()


def ours(weights, images, ids):
    with jax.default_matmul_precision("highest"):
        return jax.jit(ChineseClip(weights.config).apply)(
            weights.variables, jnp.asarray(images), jnp.asarray(ids, jnp.int32)
        )


def assert_features_equal(weights, model):
    images, ids = inputs(weights.config)
    image, text, logits = theirs(model.eval(), images, ids)
    got = ours(weights, images, ids)
    for mine, want in ((got.image, image), (got.text, text)):
        assert np.abs(mine - want).max() <= 2e-5
        assert np.sum(np.asarray(mine) * want, axis=1).min() >= 0.99999
    np.testing.assert_allclose(
        np.exp(got.log_scale) * got.image @ got.text.T, logits, rtol=1e-4, atol=1e-3
    )


def encode(config, variables, values, method):
    """One tower of ours."""
    variables = jax.tree.map(jnp.asarray, variables)
    with jax.default_matmul_precision("highest"):
        return ChineseClip(config).apply(variables, jnp.asarray(values), method=method)


def load_theirs(folder):
    """The folder in transformers; every name must be known and filled."""
    from transformers import ChineseCLIPModel

    model, told = ChineseCLIPModel.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    return model


@pytest.mark.parametrize("name", [*SIZES, "odd"])
def test_a_folder_saved_here_loads_there_with_the_same_features(name, tmp_path):
    config = ODD if name == "odd" else sizes(name)
    variables = draw(config)
    save_huggingface(tmp_path, variables, config)
    model = load_theirs(tmp_path)
    weights = load_huggingface(tmp_path)
    assert weights.config == config
    assert_features_equal(weights, model)


@functools.cache
def saved_there(folder):
    """A model of transformers with its own random start, saved by it in every way."""
    import torch
    from transformers import ChineseCLIPConfig, ChineseCLIPModel

    torch.manual_seed(0)
    config = ChineseCLIPConfig(
        projection_dim=20,
        text_config={
            "vocab_size": 21128, "hidden_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 6, "intermediate_size": 28, "max_position_embeddings": 64,
            "hidden_act": "silu",
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 36, "num_hidden_layers": 2,
            "num_attention_heads": 4, "image_size": 24, "patch_size": 8, "hidden_act": "relu",
        },
    )  # fmt: skip
    model = ChineseCLIPModel(config).eval()
    state = model.state_dict()
    for tensor in state.values():
        if tensor.ndim == 1 and tensor.is_floating_point():
            tensor += 0.1 * torch.rand_like(tensor)
    model.load_state_dict(state)
    model.save_pretrained(folder / "safetensors")
    model.save_pretrained(folder / "bin", safe_serialization=False)
    model.save_pretrained(folder / "sharded", max_shard_size="400KB")
    model.save_pretrained(folder / "sharded_bin", max_shard_size="400KB", safe_serialization=False)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("theirs")


@pytest.mark.parametrize("form", ["safetensors", "bin", "sharded", "sharded_bin"])
def test_a_folder_saved_there_loads_here_with_the_same_features(form, folder):
    model = saved_there(folder)
    if form.startswith("sharded"):
        assert len(list((folder / form).glob("*-of-*"))) > 1
    weights = load_huggingface(folder / form)
    assert (weights.config.vision.activation, weights.config.text.activation) == ("relu", "swish")
    assert_features_equal(weights, model)


def test_all_forms_hold_the_same_bits(folder, tmp_path):
    """transformers -> ours -> the original's file -> ours -> transformers."""
    import torch

    model = saved_there(folder)
    weights = load_huggingface(folder / "bin")
    save_original(tmp_path / "clip.pt", weights.variables, weights.config)
    weights = load_original(tmp_path / "clip.pt")
    save_huggingface(tmp_path / "back", weights.variables, weights.config)
    back, state = load_theirs(tmp_path / "back").state_dict(), model.state_dict()
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor), name


def test_the_config_survives_transformers(tmp_path):
    save_huggingface(tmp_path / "ours", draw(ODD), ODD)
    load_theirs(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert load_huggingface(tmp_path / "theirs").config == ODD


def test_the_processor_of_a_saved_folder_equals_ours(tmp_path):
    """Squashed images, no crop; the same token ids, cut at the context length."""
    import io

    from PIL import Image
    from transformers import ChineseCLIPImageProcessor, ChineseCLIPProcessor

    save_huggingface(tmp_path, draw(ODD), ODD)
    processor = ChineseCLIPProcessor.from_pretrained(tmp_path, use_fast=False)
    assert isinstance(processor.image_processor, ChineseCLIPImageProcessor)
    texts = ["杰尼龟", "皮卡丘 Hello, 世界!", "长" * 100]
    want = processor(text=texts, padding="max_length", truncation=True)["input_ids"]
    np.testing.assert_array_equal(WordPieceTokenizer().tokenize(texts, 52), want)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    file = io.BytesIO()
    picture.save(file, "PNG")
    got = image_transform(24)(file.getvalue())
    want = processor(images=picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_towers_of_transformers_are_starts(tmp_path):
    import torch
    from transformers import BertConfig as TheirBert
    from transformers import BertForPreTraining, CLIPConfig, CLIPModel

    torch.manual_seed(0)
    clip = CLIPModel(
        CLIPConfig(
            projection_dim=20,
            text_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                         "intermediate_size": 8, "vocab_size": 50},
            vision_config={"hidden_size": 32, "intermediate_size": 36, "num_hidden_layers": 2,
                           "num_attention_heads": 4, "image_size": 24, "patch_size": 8},
        )
    ).eval()  # fmt: skip
    clip.save_pretrained(tmp_path / "clip")
    tower = load_image_tower(tmp_path / "clip")
    images = np.random.default_rng(0).standard_normal((2, 24, 24, 3), dtype=np.float32)
    with torch.no_grad():
        want = clip.get_image_features(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    config = ChineseClipConfig(tower.config, BertConfig(num_layers=1))
    got = encode(config, tower.variables, images, "encode_image")
    np.testing.assert_allclose(got, want.numpy(), atol=2e-5)

    sizes = TheirBert(vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=6,
                      intermediate_size=28, hidden_act="relu")  # fmt: skip
    bert = BertForPreTraining(sizes).eval()
    bert.save_pretrained(tmp_path / "bert")
    torch.save(bert.state_dict(), tmp_path / "bert.bin")
    text = load_text_tower(tmp_path / "bert")
    assert (text.config.num_heads, text.config.activation) == (6, "relu")
    same = load_text_tower(tmp_path / "bert.bin", text.config)
    jax.tree.map(np.testing.assert_array_equal, same.variables, text.variables)
    ids = np.random.default_rng(1).integers(1, 60, (2, 9))
    ids[1, 4:] = 0
    tokens = torch.from_numpy(ids)
    with torch.no_grad():
        want = bert.bert(tokens, attention_mask=(tokens != 0).long()).last_hidden_state[:, 0]
    params = {**text.variables["params"], "text_projection": np.eye(24, dtype=np.float32)}
    config = ChineseClipConfig(VisionTransformerConfig(8, 8, 1, 8, 1, 8, 24), text.config)
    got = encode(config, {"params": params}, ids.astype(np.int32), "encode_text")
    np.testing.assert_allclose(got, want.numpy(), atol=2e-5)


def test_traced_clip_of_openai_is_a_start(tmp_path):
    """A traced module in half precision, as OpenAI's archives are."""
    import torch

    stand_ins = {name: mock.MagicMock() for name in ("torchvision", "torchvision.transforms")}
    sys.modules.update(stand_ins)
    from cn_clip.clip.model import VisualTransformer

    for name in stand_ins:  # transformers asks whether it is installed
        del sys.modules[name]

    class Clip(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.visual = VisualTransformer(24, 8, 128, 2, 2, 20)
            self.logit_scale = torch.nn.Parameter(torch.tensor(4.6))
            self.register_buffer("input_resolution", torch.tensor(24))

        def forward(self, image):
            return self.visual(image)

    torch.manual_seed(0)
    model = Clip().eval()
    image = torch.rand(2, 3, 24, 24)
    state = {name: t.half().float() for name, t in model.state_dict().items()}
    model.load_state_dict(state)
    with torch.no_grad():
        want = model(image).numpy()
    traced = torch.jit.trace(model, image, check_trace=False)
    traced.half().save(str(tmp_path / "ViT-B-16.pt"))
    tower = load_image_tower(tmp_path / "ViT-B-16.pt")
    assert tower.config == VisionTransformerConfig(24, 8, 2, 128, 2, 512, 20)
    assert flatten(tower.variables)["params/logit_scale"] == np.float32(np.float16(4.6))
    config = ChineseClipConfig(tower.config, BertConfig(num_layers=1))
    pixels = image.numpy().transpose(0, 2, 3, 1)
    got = encode(config, tower.variables, pixels, "encode_image")
    np.testing.assert_allclose(got, want, atol=2e-5)
