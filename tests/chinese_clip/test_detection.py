"""The model of a checkpoint, told from its shapes."""

import dataclasses

import pytest

from jaxlab.chinese_clip.detection import detect_config, differences, model_name
from jaxlab.chinese_clip.model import MODELS
from jaxlab.chinese_clip.published import variable_shapes
from jaxlab.chinese_clip.weights import original_table

NUM_TENSORS = {"RN50": 394 - 55, "ViT-B-16": 351}
"""Tensors in the original's state dicts; 55 of RN50's are counters of its batch norms."""


@pytest.mark.parametrize("name", NUM_TENSORS)
def test_published_sizes_are_recognised(name):
    config = MODELS[name]
    shapes = original_table(config).foreign_shapes(variable_shapes(config))
    assert len(shapes) == NUM_TENSORS[name]
    assert detect_config(shapes) == config
    assert model_name(detect_config(shapes)) == name


def text_shapes(width=128, layers=2):
    return {
        "bert.embeddings.word_embeddings.weight": (100, width),
        "bert.embeddings.position_embeddings.weight": (64, width),
        "bert.embeddings.token_type_embeddings.weight": (2, width),
        **{
            f"bert.encoder.layer.{i}.intermediate.dense.weight": (256, width) for i in range(layers)
        },
    }


def vit_shapes(width=192, grid=4, layers=11):
    return {
        "visual.conv1.weight": (width, 3, 8, 8),
        "visual.positional_embedding": (grid * grid + 1, width),
        "visual.proj": (width, 32),
        "visual.transformer.resblocks.0.mlp.c_fc.weight": (500, width),
        **{f"visual.transformer.resblocks.{i}.ln_1.weight": (width,) for i in range(layers)},
    }


def test_every_visible_size_is_read():
    config = detect_config(vit_shapes() | text_shapes())
    vision, text = config.vision, config.text
    assert (vision.image_size, vision.patch_size, vision.num_layers) == (32, 8, 11)
    assert (vision.width, vision.num_heads, vision.mlp_width) == (192, 3, 500)
    assert (vision.output_dim, vision.activation) == (32, "quick_gelu")
    assert (text.vocab_size, text.max_positions, text.num_types) == (100, 64, 2)
    assert (text.width, text.num_layers, text.num_heads, text.mlp_width) == (128, 2, 2, 256)
    assert model_name(config) is None


def test_head_width_is_80_at_width_1280_only():
    assert detect_config(vit_shapes(1280) | text_shapes()).vision.num_heads == 16
    assert detect_config(vit_shapes(1024) | text_shapes()).vision.num_heads == 16


def test_all_missing_and_odd_tensors_are_named():
    shapes = vit_shapes() | text_shapes()
    del shapes["visual.proj"], shapes["bert.embeddings.word_embeddings.weight"]
    shapes["visual.conv1.weight"] = (192, 3, 8)
    shapes["visual.positional_embedding"] = (18, 192)
    with pytest.raises(ValueError) as error:
        detect_config(shapes)
    text = str(error.value)
    assert "visual.proj is missing" in text
    assert "bert.embeddings.word_embeddings.weight is missing" in text
    assert "visual.conv1.weight has shape (192, 3, 8); 4 axes expected" in text
    assert "visual.positional_embedding has 18 rows" in text


def test_sizes_of_no_model_ask_for_the_config():
    with pytest.raises(ValueError, match="pass its config"):
        detect_config(vit_shapes(width=200) | text_shapes())


def test_differences_show_only_what_shapes_show():
    config = MODELS["ViT-L-14"]
    assert differences(config, MODELS["ViT-L-14-336"]) == {"vision.image_size": (224, 336)}
    other_heads = dataclasses.replace(
        config, vision=dataclasses.replace(config.vision, num_heads=8), context_length=32
    )
    assert differences(config, other_heads) == {}
    assert differences(config, MODELS["RN50"])["vision"] == (
        "VisionTransformerConfig",
        "ModifiedResNetConfig",
    )
