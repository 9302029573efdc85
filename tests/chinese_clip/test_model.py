import dataclasses
import functools
import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.chinese_clip.model import (
    MODELS,
    ChineseClip,
    ChineseClipConfig,
    abstract_variables,
    initialize,
    normalize,
    similarity,
)
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.resnet import AttentionPool, ModifiedResNetConfig
from jaxlab.layers.vit import VisionTransformerConfig

# Total, image tower with its projection, BERT body, text projection: counted by instantiating the
# original code.
COUNTS = {
    "RN50": (76_989_537, 38_316_896, 37_886_208, 786_432),
    "ViT-B-32": (189_919_489, 87_849_216, 101_677_056, 393_216),
    "ViT-B-16": (188_262_913, 86_192_640, 101_677_056, 393_216),
    "ViT-L-14": (406_233_089, 303_966_208, 101_677_056, 589_824),
    "ViT-L-14-336": (406_560_769, 304_293_888, 101_677_056, 589_824),
    "ViT-H-14": (957_598_209, 632_076_800, 324_472_832, 1_048_576),
}
TEXT = BertConfig(vocab_size=40, num_layers=2, width=32, num_heads=2, mlp_width=64, max_positions=8)
CONFIGS = {
    "vit": ChineseClipConfig(VisionTransformerConfig(16, 4, 2, 32, 2, 128, 24), TEXT, 6),
    "resnet": ChineseClipConfig(
        ModifiedResNetConfig(16, 16, (1,), expansion=2, num_heads=2, output_dim=24),
        dataclasses.replace(TEXT, num_layers=1),
        6,
    ),
}
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 3)), jnp.float32)
IDS = jnp.array([[3, 7, 5, 9, 4, 0], [3, 8, 4, 0, 0, 0]])


@functools.cache
def variables(kind):
    """Variables drawn by NumPy, which compiles nothing; statistics as at the start."""
    rng = np.random.default_rng(1)
    abstract = abstract_variables(CONFIGS[kind])
    drawn = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape, scale=0.2), leaf.dtype), abstract
    )
    if "batch_stats" in drawn:
        drawn["batch_stats"] = jax.tree.map(jnp.ones_like, drawn["batch_stats"])
    return drawn


@functools.cache
def start():
    return initialize(CONFIGS["vit"], jax.random.key(0))


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_published_sizes_have_their_exact_number_of_parameters(name):
    params = abstract_variables(MODELS[name])["params"]
    counted = (count(params), *(count(params[p]) for p in ("visual", "bert", "text_projection")))
    assert counted == COUNTS[name]
    assert params["logit_scale"].shape == ()
    assert set(COUNTS) == set(MODELS)


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_written_down_shapes_are_those_of_the_variables(kind):
    def describe(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

    traced = jax.eval_shape(functools.partial(initialize, CONFIGS[kind]), jax.random.key(0))
    assert describe(abstract_variables(CONFIGS[kind])) == describe(traced)


def test_vision_transformer_starts_as_the_original():
    params = start()["params"]
    assert params["logit_scale"] == pytest.approx(math.log(1 / 0.07))
    visual, layer = params["visual"], params["visual"]["layer_1"]
    for value, std in (
        (visual["positional_embedding"], 32**-0.5),
        (visual["projection"], 32**-0.5),
        (params["text_projection"], 32**-0.5),
        (params["bert"]["word_embeddings"], 0.02),
        (params["bert"]["layer_1"]["attention"]["key"]["kernel"], 0.02),
        (params["bert"]["layer_1"]["mlp_in"]["kernel"], 0.02),
    ):
        # Five standard errors of a sample standard deviation.
        assert np.std(value) == pytest.approx(std, rel=5 / math.sqrt(2 * value.size))
    for value, bound in (
        (visual["patch_embedding"], 48**-0.5),
        (layer["attention"]["query"]["kernel"], math.sqrt(6 / 128)),
        (layer["attention"]["out"]["kernel"], 32**-0.5),
        (layer["mlp_in"]["kernel"], 32**-0.5),
        (layer["mlp_out"]["kernel"], 128**-0.5),
        (layer["mlp_out"]["bias"], 128**-0.5),
    ):
        # The largest of n uniform values lies within 10 / n of the bound, but for 5e-5 of cases.
        assert bound * (1 - 10 / value.size) < np.abs(value).max() <= bound
    for biases in (layer["attention"], params["bert"]["layer_0"]["attention"]):
        assert all((projection["bias"] == 0).all() for projection in biases.values())


def test_resnet_pool_starts_as_the_original():
    init = jax.jit(AttentionPool(num_heads=2, output_dim=24).init)
    pool = init(jax.random.key(0), jnp.zeros((1, 4, 4, 64)))["params"]
    for value in (pool["positional_embedding"], pool["attention"]["out"]["kernel"]):
        assert np.std(value) == pytest.approx(64**-0.5, rel=5 / math.sqrt(2 * value.size))
    assert 0.5 / 8 < np.abs(pool["attention"]["value"]["bias"]).max() <= 1 / 8


@functools.cache
def run(kind, dtype=jnp.float32):
    """Normalised features, and those of each tower before."""
    model = ChineseClip(CONFIGS[kind], dtype=dtype)

    @jax.jit
    def features(variables):
        image = model.apply(variables, IMAGES, method="encode_image")
        text = model.apply(variables, IDS, method="encode_text")
        return model.apply(variables, IMAGES, IDS), image, text

    return features(variables(kind))


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_a_pair_of_towers_gives_normalised_features(kind):
    features, image, text = run(kind)
    for got, raw in ((features.image, image), (features.text, text)):
        norm = np.linalg.norm(raw, axis=1, keepdims=True)
        assert np.abs(norm - 1).min() > 0.1
        np.testing.assert_allclose(got, raw / norm, rtol=1e-5, atol=1e-6)
    assert features.image.shape == features.text.shape == (2, 24)
    assert features.log_scale == variables(kind)["params"]["logit_scale"]
    cosines = np.asarray(features.image) @ np.asarray(features.text).T
    logits = similarity(features.image, features.text, features.log_scale)
    expected = np.exp(features.log_scale) * cosines
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-6)


def test_each_tower_works_on_its_own_parameters():
    params = variables("vit")["params"]
    model = ChineseClip(CONFIGS["vit"])
    text_only = {"params": {name: params[name] for name in ("bert", "text_projection")}}
    image_only = {"params": {"visual": params["visual"]}}
    _, image, text = run("vit")
    for part, inputs, method, expected in (
        (text_only, IDS, "encode_text", text),
        (image_only, IMAGES, "encode_image", image),
    ):
        encode = jax.jit(functools.partial(model.apply, method=method))
        np.testing.assert_allclose(encode(part, inputs), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(KeyError, match="no text_projection; load the text tower"):
        model.apply(image_only, IDS, method="encode_text")
    with pytest.raises(KeyError, match="no logit_scale"):
        model.apply({"params": text_only["params"] | image_only["params"]}, IMAGES, IDS)


def test_a_locked_image_tower_gets_no_gradient_and_keeps_its_statistics():
    model = ChineseClip(CONFIGS["resnet"])

    @jax.jit
    def train(params):
        def loss(params):
            state = variables("resnet") | {"params": params}
            features, updated = model.apply(
                state,
                IMAGES,
                IDS,
                train=True,
                image_locked=True,
                rngs={"dropout": jax.random.key(1)},
                mutable=["batch_stats"],
            )
            return jnp.sum(features.image * features.text), (features.image, updated)

        return jax.grad(loss, has_aux=True)(params)

    gradient, (image, updated) = train(variables("resnet")["params"])
    assert all((g == 0).all() for g in jax.tree.leaves(gradient["visual"]))
    assert np.abs(gradient["text_projection"]).max() > 0
    for a, b in zip(
        jax.tree.leaves(updated["batch_stats"]),
        jax.tree.leaves(variables("resnet")["batch_stats"]),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(image, run("resnet")[0].image, rtol=1e-5, atol=1e-6)


def test_masking_a_resnet_warns_and_changes_nothing(caplog):
    def trace(ratio):
        encode = functools.partial(
            ChineseClip(CONFIGS["resnet"]).apply, mask_ratio=ratio, method="encode_image"
        )
        return str(jax.make_jaxpr(encode)(variables("resnet"), IMAGES))

    with caplog.at_level(logging.WARNING):
        masked = trace(0.5)
    assert "mask_ratio=0.5 has no effect on a ResNet" in caplog.text
    assert masked == trace(0.0)
    with pytest.raises(ValueError, match="mask_ratio=1.5"):
        trace(1.5)


def test_features_leave_a_bfloat16_model_in_float32():
    features, expected = run("vit", jnp.bfloat16)[0], run("vit")[0]
    for got, full in ((features.image, expected.image), (features.text, expected.text)):
        assert got.dtype == jnp.float32
        assert float(jnp.sum(got * full, axis=1).min()) > 0.999


@pytest.mark.parametrize("length", [0.0, 1e-30, 1e-13, 3.0])
def test_normalising_never_gives_nan(length):
    x = jnp.zeros((2, 4)).at[:, 1].set(length)
    value, gradient = jax.value_and_grad(lambda x: normalize(x)[:, 1].sum())(x)
    assert np.isfinite(gradient).all()
    assert float(value) == pytest.approx(2.0 if length == 3.0 else 2 * length)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("context_length", 2, r"context_length=2 must be at least 3"),
        ("context_length", 9, r"context_length=9 .*max_positions=8"),
        ("initial_scale", 0.0, "initial_scale=0.0 multiplies cosines"),
    ],
)
def test_impossible_configs_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIGS["vit"], **{field: value})
