"""The shipped English tower, and a trained tower as the start of a model."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxlab.checkpoints.foreign.names import flatten
from jaxlab.chinese_clip.emoji import compose_inputs
from jaxlab.chinese_clip.evaluate import encode
from jaxlab.chinese_clip.model import ChineseClip, abstract_variables
from jaxlab.chinese_clip.published import Weights
from jaxlab.chinese_clip.towers import (
    EMOJI_MODEL,
    ENGLISH_TOWER,
    load_english_tower,
    with_image_tower,
)
from jaxlab.data.emoji import STYLES, load_emoji
from jaxlab.layers.vit import VisionTransformerConfig


@pytest.fixture(scope="module")
def english():
    return load_english_tower()


@pytest.fixture(scope="module")
def variables():
    """Variables of the emoji model that start from nothing: zeros."""
    shapes = abstract_variables(EMOJI_MODEL)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def decode(encoded):
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGBA"))


def test_shipped_tower_is_small_and_fits_the_emoji_model(english):
    assert english.config.vision == EMOJI_MODEL.vision
    assert set(english.variables) == {"params", "batch_stats"}
    assert set(english.variables["params"]) == {"visual"}
    files = [path for path in ENGLISH_TOWER.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 4e6
    assert {path.name for path in files} >= {"model.safetensors", "config.json", "README.md"}
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(english.variables))


def test_shipped_tower_knows_a_drawing_in_the_other_style(english):
    # 64 drawings and their counterparts of the other style: chance is 1/64, 16 or more hits happen
    # by chance less than once in 10^13 times.
    emoji = load_emoji()
    chosen = emoji.base_index[:: emoji.num_concepts // 64][:64]
    drawings = [emoji.encoded_images(style) for style in STYLES]
    drawings = np.stack([decode(style[i]) for style in drawings for i in chosen])
    size = EMOJI_MODEL.vision.image_size

    @jax.jit
    def features_of(variables, drawings):
        inputs = compose_inputs(drawings, size)
        return encode(ChineseClip(english.config), variables, inputs, "encode_image")

    features = np.asarray(features_of(english.variables, drawings))
    assert features.shape == (128, EMOJI_MODEL.embed_dim) and np.isfinite(features).all()
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1.0, rtol=1e-5)
    google, twitter = features[:64], features[64:]
    assert ((google @ twitter.T).argmax(1) == np.arange(64)).sum() > 32


def test_model_takes_the_tower_with_its_statistics_and_nothing_else(english, variables):
    started = with_image_tower(variables, EMOJI_MODEL, english)
    assert flatten(started).keys() == flatten(variables).keys()
    tower = flatten(english.variables)
    for path, array in flatten(started).items():
        is_tower = path.startswith(("params/visual/", "batch_stats/"))
        assert array is (tower if is_tower else flatten(variables))[path]
    assert not any(np.any(a) for a in jax.tree.leaves(variables)), "the given tree was changed"


def test_settings_of_the_training_do_not_matter(english, variables):
    vision = dataclasses.replace(
        EMOJI_MODEL.vision, kernel_init="torch", norm_decay=0.5, norm_groups=2
    )
    config = dataclasses.replace(EMOJI_MODEL, vision=vision)
    started = with_image_tower(variables, config, english)
    assert started["params"]["visual"] is english.variables["params"]["visual"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # Both widths at once, and what the shapes of the weights do not show.
        (
            {"stem_width": 64, "output_dim": 64},
            r"\(stem_width: 64 here, 32 in the weights, output_dim: 64 here, 128 in the weights\)",
        ),
        ({"num_heads": 2}, r"\(num_heads: 2 here, 4 in the weights\); take the sizes of the wei"),
        ({"norm_epsilon": 1e-3}, r"\(norm_epsilon: 0\.001 here, 1e-05 in the weights\)"),
    ],
)
def test_a_tower_of_other_sizes_is_refused_with_every_difference(
    changes, message, english, variables
):
    vision = dataclasses.replace(EMOJI_MODEL.vision, **changes)
    with pytest.raises(ValueError, match=message):
        with_image_tower(variables, dataclasses.replace(EMOJI_MODEL, vision=vision), english)


def test_another_kind_of_tower_and_weights_without_one_are_refused(english, variables):
    vit = VisionTransformerConfig(32, 8, 1, 16, 2, 16, 128)
    with pytest.raises(
        ValueError, match=r"VisionTransformerConfig here, ModifiedResNetConfig in the weights"
    ):
        with_image_tower(variables, dataclasses.replace(EMOJI_MODEL, vision=vit), english)
    text_only = Weights(EMOJI_MODEL, {"params": {"logit_scale": jnp.float32(1.0)}})
    with pytest.raises(ValueError, match=r"hold \['logit_scale'\] and no image tower \('visual'\)"):
        with_image_tower(variables, EMOJI_MODEL, text_only)
