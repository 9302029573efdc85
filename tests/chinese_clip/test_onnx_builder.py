"""What ONNX files are made of, without ONNX: folding, quantising, and the error where it lacks."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import chinese_clip as clip
from jaxlab.chinese_clip.onnx_builder import GraphBuilder, Tensor, quantization_scale
from jaxlab.chinese_clip.onnx_towers import fold_batch_norm
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.convolution import convolve
from jaxlab.layers.normalization import BatchNorm
from jaxlab.layers.vit import VisionTransformerConfig


def test_a_folded_batch_norm_is_the_convolution_and_the_norm():
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, 3, 4, 6), dtype=np.float32)
    x = rng.standard_normal((2, 5, 5, 4), dtype=np.float32)
    scale, bias, mean = rng.standard_normal((3, 6)).astype(np.float32)
    var = rng.uniform(1e-6, 4, 6).astype(np.float32)
    params, statistics = {"scale": scale, "bias": bias}, {"mean": mean, "var": var}
    wanted = BatchNorm(train=False, epsilon=1e-5).apply(
        {"params": params, "batch_stats": statistics},
        convolve(jnp.asarray(x), jnp.asarray(kernel), 1),
    )
    folded, shift = fold_batch_norm(kernel, params, statistics, 1e-5)
    found = np.asarray(convolve(jnp.asarray(x), jnp.asarray(folded), 1)) + shift
    assert folded.dtype == shift.dtype == np.float32
    # Channel by channel: the smallest variance magnifies its channel 300 times.
    error = np.abs(found - np.asarray(wanted)).max(axis=(0, 1, 2))
    assert (error <= 2e-6 * np.abs(wanted).max(axis=(0, 1, 2))).all()


def test_every_column_uses_the_whole_range_of_integers():
    array = np.array([[1.1, 0.0, -6.0], [-2.0, 0.0, 3.05]], np.float32)
    scale = quantization_scale(array, axis=1, limit=63)
    np.testing.assert_array_equal(scale, np.float32([[2 / 63, 1, 6 / 63]]))
    stored = np.frombuffer(Tensor(array, np.dtype(np.int8), scale).to_bytes(), np.int8)
    np.testing.assert_array_equal(stored.reshape(2, 3), [[35, 0, -63], [-63, 0, 32]])


def test_a_stored_view_is_written_in_the_order_of_its_axes():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    stored = np.frombuffer(Tensor(array.T, np.dtype(np.float16)).to_bytes(), np.float16)
    np.testing.assert_array_equal(stored, [0, 3, 1, 4, 2, 5])


def test_factors_of_several_products_are_quantised_once():
    builder = GraphBuilder("int8")
    for name in ("query", "key", "value"):
        builder.product("x", name, np.eye(3, dtype=np.float32))
    ops = [node.op for node in builder.nodes]
    assert ops.count("DynamicQuantizeLinear") == 1 and ops.count("MatMulInteger") == 3


def test_without_onnx_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    config = clip.ChineseClipConfig(
        VisionTransformerConfig(16, 8, 1, 16, 2, 24, 12), BertConfig(num_layers=1), 12
    )
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'jaxlab\[export\]', or onnx"):
        clip.export_onnx(tmp_path / "new" / "clip", {"params": {}}, config)
    assert not list(tmp_path.iterdir())


def test_unknown_precisions_and_half_towers_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", sys)
    config = clip.ChineseClipConfig(
        VisionTransformerConfig(16, 8, 1, 16, 2, 24, 12), BertConfig(num_layers=1), 12
    )
    with pytest.raises(ValueError, match="precision='bf16' is unknown; use one of fp32, fp16, int"):
        clip.export_onnx(tmp_path / "clip", {"params": {}}, config, precision="bf16")
    with pytest.raises(ValueError, match=r"image graph, 'bert' and 'text_projection' for a text"):
        clip.export_onnx(tmp_path / "clip", {"params": {}}, config)
    with pytest.raises(ValueError, match=r"text tower lacks \['bert'\]"):
        clip.export_onnx(tmp_path / "clip", {"params": {"text_projection": np.eye(2)}}, config)
