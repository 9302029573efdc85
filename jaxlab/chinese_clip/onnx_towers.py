"""Both towers as ONNX graphs, and the files of the original's deployment.

The graphs are written operator by operator from the same variables that the modules read, and the
tests hold them to the modules' features. A converter that traces the modules (jax2onnx 0.17) gives
the same float32 numbers at about the same speed; its half precision graphs mix types in one
operator, which ONNX Runtime refuses, its operators are of opset 23, which few runtimes read yet,
and its pins contradict those of this library.

The image graph takes NCHW and keeps that layout; a batch norm is folded into the convolution
before it. Every ViT, modified ResNet and BERT body that the configs can describe has its graph.

TensorRT (`trtexec --onnx=...`) and Core ML (through a converter of ONNX or torch) start from these
files; neither is tested here, as both need their hardware.

References:
  Chinese-CLIP 1.6.0 (MIT), cn_clip/deploy: names of files and tensors, float32 at the borders of
  half precision, its weights in an `extra_file`.
"""

import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from jaxlab.checkpoints.foreign.names import unflatten
from jaxlab.chinese_clip.deployment import (
    TOWERS,
    TowerName,
    as_text,
    check_choice,
    complete_towers,
    describe,
    tower_weights,
)
from jaxlab.chinese_clip.model import ChineseClipConfig
from jaxlab.chinese_clip.onnx_builder import (
    PRECISIONS,
    GraphBuilder,
    import_onnx,
    write_model,
)
from jaxlab.layers.bert import MASKED_SCORE, BertConfig
from jaxlab.layers.resnet import ModifiedResNetConfig
from jaxlab.layers.stacking import LAYER_PREFIX
from jaxlab.layers.vit import VisionTransformerConfig

BATCH = "N"
"""Name of the free axis."""


def export_onnx(
    prefix: str | os.PathLike[str],
    variables: PyTree,
    config: ChineseClipConfig,
    *,
    precision: str = "fp32",
) -> list[Path]:
    """Writes `{prefix}.img.{precision}.onnx` and `{prefix}.txt.{precision}.onnx`.

    The inputs are `image` (N, 3, R, R) float32, normalised as by `image_transform`, and `text`
    (N, context_length) int64, as from `WordPieceTokenizer`, with any N; the outputs
    `unnorm_image_features` and `unnorm_text_features` (N, dim) float32. `metadata_props` hold what
    `describe` tells, as text.

    `fp16` halves the files and keeps float32 at the borders; its weights lie in a side file
    `....onnx.extra_file` that must stay beside the graph, as do those of any graph above 2 GB.
    `int8` quarters them: weights of products are int8 and their other factors are quantised as they
    come. Check its features on your own data: the towers of trained CLIP models have single large
    activations, which cost more there than random weights show.

    Args:
      prefix: path and beginning of the names, such as `deploy/vit-b-16`; the folder is made.
      variables: the variables of the model, or of whole towers.
      config: the model's config; its `context_length` becomes that of the text graph.
      precision: `fp32`, `fp16` or `int8`.

    Returns:
      The files written.

    Raises:
      ModuleNotFoundError: if the package `onnx` is not installed.
      ValueError: if the precision is unknown, a tower is not there as a whole, or the variables are
        not those of the config.
    """
    check_choice("precision", precision, PRECISIONS)
    import_onnx()
    prefix, towers = Path(prefix), complete_towers(variables)
    prefix.parent.mkdir(parents=True, exist_ok=True)
    metadata = as_text(describe(variables, config, precision))
    written: list[Path] = []
    for tower in towers:
        path = prefix.with_name(f"{prefix.name}.{TOWERS[tower].short}.{precision}.onnx")
        weights = tower_weights(variables, config, tower)
        written += _write_tower(path, weights, config, tower, precision, metadata)
    return written


def _write_tower(
    path: Path,
    weights: dict[str, np.ndarray],
    config: ChineseClipConfig,
    tower: TowerName,
    precision: str,
    metadata: dict[str, str],
) -> list[Path]:
    builder = GraphBuilder(precision)
    tree = unflatten(weights)
    if tower == "text":
        features = _text_tower(builder, config, tree["params"])
        dtype, shape = np.int64, (BATCH, config.context_length)
    else:
        features = _image_tower(builder, config, tree)
        size = config.vision.image_size
        dtype, shape = np.float32, (BATCH, 3, size, size)
    output = TOWERS[tower].output
    builder.output(features, output)
    return write_model(
        path,
        builder,
        {tower: (dtype, shape)},
        {output: (np.float32, (BATCH, config.embed_dim))},
        metadata,
    )


class _Attention(NamedTuple):
    """The weights of a multi-head attention and where they belong.

    Attributes:
      name: path of the weights.
      params: `query`, `key`, `value` and `out`, each a kernel and a bias.
      num_heads: number of heads.
    """

    name: str
    params: Any
    num_heads: int

    def project(self, builder: GraphBuilder, part: str, x: str) -> str:
        """One of the four projections of a value."""
        weights = self.params[part]
        return builder.product(x, f"{self.name}/{part}", weights["kernel"], weights["bias"])


def _attend(
    builder: GraphBuilder, attention: _Attention, x: str, context: str, bias: str | None = None
) -> str:
    """Multi-head attention from `x` to `context`, both (N, time, width).

    The queries are scaled, not the scores: a product of half precision stays farther from its
    largest number.
    """
    width = attention.params["query"]["kernel"].shape[1]
    heads, head_dim = attention.num_heads, width // attention.num_heads

    def split(part: str, source: str, *axes: int) -> str:
        y = attention.project(builder, part, source)
        return builder.transpose(builder.reshape(y, 0, -1, heads, head_dim), *axes)

    query = builder.add("Mul", split("query", x, 0, 2, 1, 3), builder.constant(head_dim**-0.5))
    scores = builder.add("MatMul", query, split("key", context, 0, 2, 3, 1))
    probabilities = builder.softmax(scores, bias)
    mixed = builder.add("MatMul", probabilities, split("value", context, 0, 2, 1, 3))
    joined = builder.reshape(builder.transpose(mixed, 0, 2, 1, 3), 0, -1, width)
    return attention.project(builder, "out", joined)


def _activation(builder: GraphBuilder, name: str, x: str) -> str:
    """One of `jaxlab.layers.activations.ACTIVATIONS`."""

    def times(a: str, b: str | float) -> str:
        return builder.add("Mul", a, b if isinstance(b, str) else builder.constant(b))

    def plus(a: str, b: str | float) -> str:
        return builder.add("Add", a, b if isinstance(b, str) else builder.constant(b))

    match name:
        case "relu":
            return builder.add("Relu", x)
        case "quick_gelu":
            return times(x, builder.add("Sigmoid", times(x, 1.702)))
        case "swish":
            return times(x, builder.add("Sigmoid", x))
        case "gelu":  # the operators in the order that ONNX Runtime fuses
            ratio = builder.add("Div", x, builder.constant(math.sqrt(2.0)))
            return times(times(x, plus(builder.add("Erf", ratio), 1.0)), 0.5)
        case "gelu_new":
            cube = times(times(times(x, x), x), 0.044715)
            inner = times(plus(x, cube), math.sqrt(2.0 / math.pi))
            return times(times(x, plus(builder.add("Tanh", inner), 1.0)), 0.5)
    raise ValueError(f"activation={name!r} has no ONNX form here; add one beside the others")


def _norm(builder: GraphBuilder, x: str, path: str, params: Any, epsilon: float) -> str:
    return builder.layer_norm(x, path, params["scale"], params["bias"], epsilon)


def _feed_forward(builder: GraphBuilder, x: str, path: str, params: Any, activation: str) -> str:
    inner, outer = params["mlp_in"], params["mlp_out"]
    h = builder.product(x, f"{path}/mlp_in", inner["kernel"], inner["bias"])
    h = _activation(builder, activation, h)
    return builder.product(h, f"{path}/mlp_out", outer["kernel"], outer["bias"])


def _text_tower(builder: GraphBuilder, config: ChineseClipConfig, params: Any) -> str:
    """`text` -> features."""
    text, bert = config.text, params["bert"]
    x = builder.rows("bert/word_embeddings", bert["word_embeddings"], "text")
    # Positions and the one segment are added once, here.
    places = bert["position_embeddings"][: config.context_length] + bert["type_embeddings"][:1]
    x = builder.add("Add", x, builder.weight("bert/position_and_type_embeddings", places))
    path = "bert/embeddings_norm"
    x = _norm(builder, x, path, bert["embeddings_norm"], text.layer_norm_epsilon)
    bias = _padding_bias(builder, text)
    for i in range(text.num_layers):
        name = f"{LAYER_PREFIX}{i}"
        x = _bert_layer(builder, x, bias, f"bert/{name}", bert[name], text)
    return builder.product(builder.take(x, 0, 1), "text_projection", params["text_projection"])


def _padding_bias(builder: GraphBuilder, text: BertConfig) -> str:
    """(N, 1, 1, time) float32: -10000 where `text` is padding."""
    is_padding = builder.add("Equal", "text", builder.constant(text.pad_id, np.int64))
    score = builder.constant(MASKED_SCORE, np.float32)
    bias = builder.add("Mul", builder.cast(is_padding, np.float32), score)
    return builder.add("Unsqueeze", bias, builder.constant((1, 2), np.int64))


def _bert_layer(
    builder: GraphBuilder, x: str, bias: str, path: str, params: Any, text: BertConfig
) -> str:
    attention = _Attention(f"{path}/attention", params["attention"], text.num_heads)
    epsilon = text.layer_norm_epsilon
    x = builder.add("Add", x, _attend(builder, attention, x, x, bias))
    x = _norm(builder, x, f"{path}/attention_norm", params["attention_norm"], epsilon)
    x = builder.add("Add", x, _feed_forward(builder, x, path, params, text.activation))
    return _norm(builder, x, f"{path}/output_norm", params["output_norm"], epsilon)


def _image_tower(builder: GraphBuilder, config: ChineseClipConfig, variables: Any) -> str:
    """`image` -> features."""
    params, image = variables["params"]["visual"], builder.narrow("image")
    if isinstance(config.vision, VisionTransformerConfig):
        return _vision_transformer(builder, image, params, config.vision)
    statistics = variables.get("batch_stats", {}).get("visual", {})
    return _ResNet(builder, params, statistics, config.vision).features(image)


def _vision_transformer(
    builder: GraphBuilder, image: str, params: Any, vision: VisionTransformerConfig
) -> str:
    kernel, epsilon = params["patch_embedding"], vision.layer_norm_epsilon
    x = builder.convolution(image, "visual/patch_embedding", kernel, None, vision.patch_size, 0)
    x = builder.transpose(builder.reshape(x, 0, vision.width, -1), 0, 2, 1)
    # The class token is a row of zeros before the patches whose position has the token added.
    before = builder.constant((0, 1, 0, 0, 0, 0), np.int64)
    x = builder.add("Pad", x, before, builder.constant(0.0))
    places = np.array(params["positional_embedding"])
    places[0] += params["class_embedding"]
    x = builder.add("Add", x, builder.weight("visual/class_and_positional_embedding", places))
    x = _norm(builder, x, "visual/ln_pre", params["ln_pre"], epsilon)
    for i in range(vision.num_layers):
        name = f"{LAYER_PREFIX}{i}"
        path, layer = f"visual/{name}", params[name]
        attention = _Attention(f"{path}/attention", layer["attention"], vision.num_heads)
        h = _norm(builder, x, f"{path}/ln_1", layer["ln_1"], epsilon)
        x = builder.add("Add", x, _attend(builder, attention, h, h))
        h = _norm(builder, x, f"{path}/ln_2", layer["ln_2"], epsilon)
        x = builder.add("Add", x, _feed_forward(builder, h, path, layer, vision.activation))
    x = _norm(builder, builder.take(x, 0, 1), "visual/ln_post", params["ln_post"], epsilon)
    return builder.product(x, "visual/projection", params["projection"])


class _ResNet(NamedTuple):
    """The modified ResNet, NCHW.

    Attributes:
      builder: where the nodes go.
      params: its parameters.
      statistics: its running means and variances; empty with group norm.
      config: its sizes.
    """

    builder: GraphBuilder
    params: Any
    statistics: Any
    config: ModifiedResNetConfig

    def features(self, image: str) -> str:
        """The whole tower."""
        config, x, size = self.config, image, self.config.image_size
        for i in (1, 2, 3):
            stride = config.stem_stride if i == 1 else 1
            size = (size - 1) // stride + 1
            x = self._relu(self._normed((), f"conv_{i}", f"bn_{i}", x, stride, size))
        x, size = self._pool(x, config.stem_pool), size // config.stem_pool
        for stage, num_blocks in enumerate(config.stages):
            for block in range(num_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x, size = self._block(f"stage_{stage}_block_{block}", x, stride, size)
        return self._attention_pool(x)

    def _block(self, name: str, x: str, stride: int, size: int) -> tuple[str, int]:
        """A bottleneck; also gives the size of its map."""
        h = self._relu(self._normed((name,), "conv_1", "bn_1", x, 1, size))
        h = self._relu(self._normed((name,), "conv_2", "bn_2", h, 1, size))
        size //= stride
        h = self._normed((name,), "conv_3", "bn_3", self._pool(h, stride), 1, size)
        if "shortcut_conv" in self.params[name]:
            pooled = self._pool(x, stride)
            x = self._normed((name,), "shortcut_conv", "shortcut_norm", pooled, 1, size)
        return self._relu(self.builder.add("Add", x, h)), size

    def _normed(
        self, block: tuple[str, ...], conv: str, norm: str, x: str, stride: int, size: int
    ) -> str:
        """A convolution and its norm; `size` is that of the map it gives."""
        params, statistics = self.params, self.statistics
        for name in block:
            params, statistics = params[name], statistics.get(name, {})
        kernel, path = params[conv]["kernel"], "/".join(("visual", *block, conv))
        pad = (kernel.shape[0] - 1) // 2
        if self.config.norm == "group":
            y = self.builder.convolution(x, path, kernel, None, stride, pad)
            return self._group_norm(y, "/".join(("visual", *block, norm)), params[norm], size)
        kernel, bias = fold_batch_norm(
            kernel, params[norm], statistics[norm], self.config.norm_epsilon
        )
        return self.builder.convolution(x, path, kernel, bias, stride, pad)

    def _group_norm(self, x: str, path: str, params: Any, size: int) -> str:
        """Norm of every 8 channels, in float32."""
        builder, channels = self.builder, params["scale"].shape[0]
        groups = channels // 8
        y = builder.add(
            "InstanceNormalization",
            builder.reshape(builder.wide(x), 0, groups, -1),
            builder.constant(np.ones(groups), np.float32),
            builder.constant(np.zeros(groups), np.float32),
            epsilon=self.config.norm_epsilon,
        )
        y = builder.reshape(y, 0, channels, size, size)
        for op, name in (("Mul", "scale"), ("Add", "bias")):
            values = np.reshape(params[name], (channels, 1, 1))
            y = builder.add(op, y, builder.weight(f"{path}/{name}", values, np.float32))
        return builder.narrow(y)

    def _relu(self, x: str) -> str:
        return self.builder.add("Relu", x)

    def _pool(self, x: str, window: int) -> str:
        if window == 1:
            return x
        shape = (window, window)
        return self.builder.add("AveragePool", x, kernel_shape=shape, strides=shape)

    def _attention_pool(self, x: str) -> str:
        builder, params = self.builder, self.params["attention_pool"]
        path = "visual/attention_pool"
        places = builder.reshape(x, 0, self.config.channels, -1)
        places = builder.transpose(places, 0, 2, 1)
        mean = builder.add("ReduceMean", places, axes=(1,), keepdims=1)
        tokens = builder.add("Concat", mean, places, axis=1)
        positions = builder.weight(f"{path}/positional_embedding", params["positional_embedding"])
        tokens = builder.add("Add", tokens, positions)
        first = builder.add("Slice", tokens, *(builder.constant((n,), np.int64) for n in (0, 1, 1)))
        attention = _Attention(f"{path}/attention", params["attention"], self.config.num_heads)
        return builder.take(_attend(builder, attention, first, tokens), 0, 1)


def fold_batch_norm(
    kernel: np.ndarray, norm: Any, statistics: Any, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """A convolution that does the batch norm after it too, by its stored statistics.

    Args:
      kernel: HWIO.
      norm: `scale` and `bias` of the norm, (channels,).
      statistics: its running `mean` and `var`.
      epsilon: added to the variance.

    Returns:
      Kernel and bias, float32.
    """
    deviation = np.sqrt(np.asarray(statistics["var"], np.float64) + epsilon)
    factor = norm["scale"] / deviation
    bias = norm["bias"] - statistics["mean"] * factor
    return (kernel * factor).astype(np.float32), bias.astype(np.float32)
