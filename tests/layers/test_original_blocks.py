"""Layer by layer against what the original's own modules computed on the same random weights."""

import functools
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.checkpoints.foreign.names import unflatten
from jaxlab.chinese_clip.detection import detect_config
from jaxlab.chinese_clip.model import ChineseClip
from jaxlab.chinese_clip.published import variable_shapes
from jaxlab.chinese_clip.weights import original_table
from jaxlab.layers.positions import resize_positions

GOLDEN = Path(__file__).parents[1] / "golden"
STORED = np.load(GOLDEN / "layers.npz")


@functools.cache
def original(kind):
    """Config, variables and inputs of the original that made the goldens."""
    path = GOLDEN / "make_chinese_clip_weights.py"
    spec = importlib.util.spec_from_file_location("make_chinese_clip_weights", path)
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    with np.load(GOLDEN / "chinese_clip_weights.npz") as stored:
        shapes = json.loads(str(stored[f"{kind}/shapes"]))
    shapes = {n: tuple(s) for n, s in shapes.items() if not n.endswith("num_batches_tracked")}
    config = detect_config(shapes)
    flat = original_table(config).load(make.draw(shapes), variable_shapes(config))
    images, ids = make.inputs(make.MODELS[kind]["image_resolution"])
    variables = jax.tree.map(jnp.asarray, unflatten(flat))
    return config, variables, jnp.asarray(images.transpose(0, 2, 3, 1)), jnp.asarray(ids)


def tap(kind, method, inputs):
    config, variables, *_ = original(kind)
    run = jax.jit(functools.partial(ChineseClip(config).apply, method=method))
    return run(variables, inputs)[1]


def assert_close(got, name):
    np.testing.assert_allclose(got, STORED[name], rtol=2e-5, atol=2e-5)


def test_vision_transformer_equals_the_original_after_every_layer():
    taps = tap("vit", "tap_image", original("vit")[2])
    assert_close(jnp.stack(taps.hidden), "vit/hidden")


def test_bert_equals_the_original_after_every_layer():
    """The third text is all padding, the second is padded."""
    taps = tap("vit", "tap_text", original("vit")[3])
    assert_close(jnp.stack(taps.hidden), "bert/hidden")
    assert_close(jnp.stack(taps.probabilities), "bert/probabilities")


def test_resnet_equals_the_original_after_every_stage():
    taps = tap("resnet", "tap_image", original("resnet")[2])
    for stage, hidden in enumerate(taps.hidden):
        expected = STORED[f"resnet/stage_{stage}"]
        np.testing.assert_allclose(
            hidden, expected.reshape(hidden.shape), rtol=2e-5, atol=2e-5 * expected.max()
        )


def test_resnet_trains_as_the_original():
    """Features, two updates of the running statistics, and gradients of the sum of squares."""
    config, variables, images, _ = original("resnet")
    model = ChineseClip(config)

    @jax.jit
    def step(visual, statistics):
        def loss(visual):
            params = variables["params"] | {"visual": visual}
            features, updated = model.apply(
                {"params": params, "batch_stats": statistics},
                images,
                train=True,
                method="encode_image",
                mutable=["batch_stats"],
            )
            return jnp.square(features).sum(), (features, updated["batch_stats"])

        (_, aux), gradient = jax.value_and_grad(loss, has_aux=True)(visual)
        return *aux, gradient

    visual = variables["params"]["visual"]
    features, statistics, gradient = step(visual, variables["batch_stats"])
    statistics = step(visual, statistics)[1]["visual"]

    assert_close(features, "resnet/train_features")
    assert_close(statistics["bn_2"]["mean"], "resnet/train_mean")
    assert_close(statistics["bn_2"]["var"], "resnet/train_var")
    shortcut = statistics["stage_3_block_0"]["shortcut_norm"]
    assert_close(shortcut["var"], "resnet/train_shortcut_var")
    pool = gradient["attention_pool"]
    for got, name in (
        (gradient["conv_1"]["kernel"].transpose(3, 2, 0, 1), "resnet/gradient_stem"),
        (pool["attention"]["query"]["kernel"].T[:8, :8], "resnet/gradient_query"),
        (pool["positional_embedding"], "resnet/gradient_positions"),
    ):
        scale = np.abs(STORED[name]).max()
        np.testing.assert_allclose(got / scale, STORED[name] / scale, atol=2e-5)


@pytest.mark.parametrize("sizes", ["4_7", "7_3", "3_1"])
def test_positions_are_resized_as_by_torch(sizes):
    grid, expected = STORED[f"positions/{sizes}/grid"], STORED[f"positions/{sizes}/resized"]
    table = np.concatenate([np.full((1, 2), 5.0, np.float32), grid.reshape(-1, 2)])
    resized = resize_positions(table, len(expected))
    np.testing.assert_array_equal(resized[0], 5.0)
    np.testing.assert_allclose(resized[1:].reshape(expected.shape), expected, atol=2e-6)
