"""Updates and models in fewer bytes: quantised, thinned out, rotated first, or all of it.

A codec writes an array as other arrays that take fewer bytes, and reads it again; codecs are pure
functions that may be jitted, and chained. `compressed` lets any algorithm exchange what a codec
makes of its trees. A simulation computes with what would arrive, and counts what would be sent::

    eight_bits = quantize(8, stochastic=True)
    algorithm = compressed(fed_avg(...), up=chain(top_k(0.1), eight_bits), error_feedback=True)

An array with a number that is not finite is read as one that has such numbers, too: the update is
refused as it would be without compression, and nothing hides behind a scale of infinity.

References:
  Alistarh et al. 2017, "QSGD", arXiv:1610.02132; Suresh et al. 2017, "Distributed Mean Estimation
  with Limited Communication", arXiv:1611.00429 (rotation); Karimireddy et al. 2019, "Error Feedback
  Fixes SignSGD and other Gradient Compression Schemes", arXiv:1901.09847;
  `federatedscope/core/compression/utils.py` of FederatedScope 0.3.0 (the scale).
"""

import fractions
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from jaxlab.federated.algorithm import Algorithm, EvaluationInput, LocalResult, Tree, difference
from jaxlab.federated.algorithms.entries import IsEntry, named
from jaxlab.federated.client_data import ClientView
from jaxlab.federated.local import Limits
from jaxlab.federated.strategy import ConfigError
from jaxlab.federated.tasks import Sums
from jaxlab.federated.wire import name_leaves, packed_size

_logger = logging.getLogger(__name__)

Side = dict[str, Array]

QUANTIZED = {8: jnp.int8, 16: jnp.int16}
is_original_entry: IsEntry = named(r"(fc|conv)[^/]*/kernel$", form="regex")
"""The entries that the original quantises: kernels of layers that are named fc or conv."""

_UP, _DOWN, _EVALUATION = 0x75700000, 0x64770000, 0x65760000
"""Purposes of keys that no algorithm uses."""


class Codec(NamedTuple):
    """How an array of floats is written in fewer bytes.

    Attributes:
      encode: `(array, key) -> (values, side)`: what the next codec of a chain goes on with, and
        what goes beside it.
      decode: `(values, side, form of the array) -> array`, float32.
      names: of what goes beside the values.
    """

    encode: Callable[[Array, Key[Array, ""]], tuple[Array, Side]]
    decode: Callable[[Array, Side, jax.ShapeDtypeStruct], Array]
    names: tuple[str, ...]


class Encoded(NamedTuple):
    """An array as it is sent.

    Attributes:
      like: an empty array (0, ...) that has the shape and the type of the original one: it costs a
        place in the text of the wire and no numbers.
      values: what the codec has made of it.
      side: what goes beside, such as a scale.
    """

    like: Array
    values: Array
    side: Side


def quantize(bits: int = 8, *, stochastic: bool = False, per_channel: bool = False) -> Codec:
    """Integers times a scale, `max |x| / (2 ** (bits - 1) - 1)`.

    The error is at most half a scale, a whole one if rounding is stochastic. What is all zero is
    sent as zeros.

    Args:
      bits: 8 or 16.
      stochastic: round up with a probability of what is cut off, so that the mean is right, instead
        of to the nearest.
      per_channel: a scale for every index of the last axis, of arrays that have two axes or more.

    Raises:
      ConfigError: (a ValueError) if bits is neither.
    """
    if bits not in QUANTIZED:
        raise ConfigError(f"bits={bits} must be one of {', '.join(map(str, QUANTIZED))}")
    levels = 2 ** (bits - 1) - 1

    def encode(array: Array, key: Key[Array, ""]) -> tuple[Array, Side]:
        array = array.astype(jnp.float32)
        axes = tuple(range(array.ndim - 1)) if per_channel and array.ndim > 1 else None
        largest = jnp.abs(array).max(axis=axes, keepdims=axes is not None, initial=0.0)
        scale = largest / levels
        steps = array / jnp.where(scale > 0, scale, 1.0)
        if stochastic:
            below = jnp.floor(steps)
            steps = below + (jax.random.uniform(key, array.shape) < steps - below)
        rounded = jnp.clip(jnp.round(steps), -levels, levels)
        return rounded.astype(QUANTIZED[bits]), {"scale": scale}

    def decode(values: Array, side: Side, like: jax.ShapeDtypeStruct) -> Array:
        del like
        # A scale that is not finite makes all numbers so: zero times infinity is none.
        return values.astype(jnp.float32) * side["scale"]

    return Codec(encode, decode, ("scale",))


def top_k(share: float) -> Codec:
    """The largest numbers and their places; the others are read as zeros.

    Args:
      share: of the numbers of an array that are sent, in (0, 1]; at least one is.

    Raises:
      ConfigError: (a ValueError) if the share is out of range.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share={share} must be in (0, 1]")

    def encode(array: Array, key: Key[Array, ""]) -> tuple[Array, Side]:
        del key
        flat = array.astype(jnp.float32).reshape(-1)
        # In exact arithmetic: 0.29 of 100 is 29.
        count = max(1, math.floor(fractions.Fraction(str(share)) * flat.size))
        _, places = jax.lax.top_k(jnp.abs(flat), count)
        values = jnp.where(jnp.isfinite(flat).all(), flat[places], jnp.nan)
        return values, {"places": places.astype(jnp.uint16 if flat.size <= 2**16 else jnp.uint32)}

    def decode(values: Array, side: Side, like: jax.ShapeDtypeStruct) -> Array:
        flat = jnp.zeros(math.prod(like.shape), jnp.float32)
        return flat.at[side["places"].astype(jnp.int32)].set(values).reshape(like.shape)

    return Codec(encode, decode, ("places",))


def rotate(block_size: int = 1024) -> Codec:
    """Random signs, then a Hadamard transform of blocks: what was large in few is spread over all.

    The rotation keeps lengths, and is undone after reading. Before `quantize` it makes the scale
    small; by itself it saves nothing. Arrays are filled up with zeros to whole blocks, small ones
    to a power of two.

    Args:
      block_size: numbers that are mixed with each other, a power of two.

    Raises:
      ConfigError: (a ValueError) if it is none.
    """
    if block_size < 1 or block_size & (block_size - 1):
        raise ConfigError(f"block_size={block_size} must be a power of two")

    def blocks_of(size: int) -> tuple[int, int]:
        block = min(block_size, 1 << max(size - 1, 0).bit_length())
        return -(-size // block), block

    def signs(seed: Array, shape: tuple[int, ...]) -> Float[Array, "blocks block"]:
        key = jax.random.wrap_key_data(seed, impl="threefry2x32")
        return jax.random.rademacher(key, shape, jnp.float32)

    def encode(array: Array, key: Key[Array, ""]) -> tuple[Array, Side]:
        shape = blocks_of(array.size)
        flat = array.astype(jnp.float32).reshape(-1)
        filled = jnp.pad(flat, (0, math.prod(shape) - array.size)).reshape(shape)
        seed = jax.random.bits(key, (2,), jnp.uint32)
        return hadamard(filled * signs(seed, shape)), {"seed": seed}

    def decode(values: Array, side: Side, like: jax.ShapeDtypeStruct) -> Array:
        back = hadamard(values) * signs(side["seed"], values.shape)
        return back.reshape(-1)[: math.prod(like.shape)].reshape(like.shape)

    return Codec(encode, decode, ("seed",))


def hadamard(rows: Float[Array, "rows size"]) -> Float[Array, "rows size"]:
    """The orthonormal Hadamard transform of every row; it is its own inverse.

    Args:
      rows: of a power of two of numbers.
    """
    num_rows, size = rows.shape
    width = 1
    while width < size:
        pairs = rows.reshape(num_rows, -1, 2, width)
        a, b = pairs[:, :, 0], pairs[:, :, 1]
        rows = jnp.stack([a + b, a - b], axis=2).reshape(num_rows, size)
        width *= 2
    return rows * size**-0.5


def chain(*codecs: Codec) -> Codec:
    """One codec after another: `chain(top_k(0.1), rotate(), quantize(8))`.

    Raises:
      ConfigError: (a ValueError) if there is none, or one of a kind twice.
    """
    names = [name for codec in codecs for name in codec.names]
    if not codecs or len(set(names)) < len(names):
        raise ConfigError(f"a chain of codecs that send {names}; give at least one, none twice")

    def encode(array: Array, key: Key[Array, ""]) -> tuple[Array, Side]:
        side: Side = {}
        for codec, own_key in zip(codecs, jax.random.split(key, len(codecs)), strict=True):
            array, more = codec.encode(array, own_key)
            side |= more
        return array, side

    def decode(values: Array, side: Side, like: jax.ShapeDtypeStruct) -> Array:
        forms = [like]
        for codec in codecs[:-1]:
            forms.append(jax.eval_shape(codec.encode, forms[-1], jax.random.key(0))[0])
        for codec, form in zip(reversed(codecs), reversed(forms), strict=True):
            values = codec.decode(values, side, form)
        return values

    return Codec(encode, decode, tuple(names))


def encode_tree(
    codec: Codec, tree: PyTree, key: Key[Array, ""], is_entry: IsEntry = lambda name: True
) -> PyTree:
    """A tree as it is sent: `Encoded` for its arrays of floats, all else as it is.

    Args:
      codec: how arrays are written.
      tree: of arrays.
      key: for what the codec draws; every entry makes its own of it.
      is_entry: which entries are encoded, by name, see `named`.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    encoded: list[Any] = []
    for number, (path, leaf) in enumerate(leaves):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.size and is_entry(name):
            values, side = codec.encode(leaf, jax.random.fold_in(key, number))
            leaf = Encoded(jnp.zeros((0, *leaf.shape), leaf.dtype), values, side)
        encoded.append(leaf)
    return jax.tree.unflatten(structure, encoded)


def decode_tree(codec: Codec, tree: PyTree) -> PyTree:
    """The tree that arrives, with the types that it had."""

    def decode(leaf: Any) -> Any:
        if not isinstance(leaf, Encoded):
            return leaf
        like = jax.ShapeDtypeStruct(leaf.like.shape[1:], leaf.like.dtype)
        return codec.decode(leaf.values, leaf.side, like).astype(like.dtype)

    return jax.tree.map(decode, tree, is_leaf=lambda leaf: isinstance(leaf, Encoded))


def compressed(
    algorithm: Algorithm,
    *,
    up: Codec | None = None,
    down: Codec | None = None,
    error_feedback: bool = False,
    is_entry: IsEntry = lambda name: True,
    seed: int = 0,
) -> Algorithm:
    """An algorithm whose updates, or whose models on their way to clients, are compressed.

    It goes around all else: `compressed(keep_local(...), ...)`. What clients train and evaluate is
    what has arrived; the server keeps the model in full.

    Args:
      algorithm: any one.
      up: how clients write their updates, which are differences in all algorithms here; None as
        they are.
      down: how the server writes what it sends; None as it is. A client may have missed any number
        of models, so that they are written whole, and `top_k` is of no use here.
      error_feedback: a client keeps what was lost on the way up, and adds it to its next update.
      is_entry: which entries are compressed, by name, such as `is_original_entry`.
      seed: of what the server draws; clients draw from the keys of the course.

    Returns:
      The algorithm; with error feedback a client keeps `residual`, and what it kept before as
      `state`.

    Raises:
      ConfigError: (a ValueError) if there is nothing to feed back, or, once shapes are known, if
        updates have another form than what is sent, so that no residual fits.
    """
    if error_feedback and up is None:
        raise ConfigError("error_feedback=True without up: nothing is lost on the way up")
    if up is not None:
        algorithm = _compressed_up(algorithm, up, error_feedback, is_entry)
    return algorithm if down is None else _compressed_down(algorithm, down, is_entry, seed)


def _make_teller(what: str) -> Callable[[Tree, Tree], None]:
    """Tells once, while programs are traced, if a message has become larger."""
    told: set[tuple[int, int]] = set()

    def tell(plain: Tree, encoded: Tree) -> None:
        sizes = _num_bytes(plain), _num_bytes(encoded)
        if sizes[1] > sizes[0] and sizes not in told:
            told.add(sizes)
            _logger.warning(
                "compressed: %s takes %d bytes, and %d without the codec: every tensor sends a "
                "name, a shape and what goes beside the numbers. Leave small ones out by is_entry=",
                what, sizes[1], sizes[0],
            )  # fmt: skip

    return tell


def _num_bytes(tree: Tree) -> int:
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    return packed_size(name_leaves(shapes))


def _compressed_up(
    algorithm: Algorithm, codec: Codec, error_feedback: bool, is_entry: IsEntry
) -> Algorithm:
    tell_size = _make_teller("an update")

    def init_client(variables: PyTree) -> Tree:
        state = algorithm.init_client(variables)
        if not error_feedback:
            return state
        sent = algorithm.broadcast(algorithm.init_server(variables))
        return {"state": state, "residual": jax.tree.map(_no_residual, sent)}

    def local(
        received: Tree, state: Tree, view: ClientView, limits: Limits, key: Key[Array, ""]
    ) -> LocalResult:
        own_key = jax.random.fold_in(key, _UP)
        if not error_feedback:
            result = algorithm.local(received, state, view, limits, key)
            sent = encode_tree(codec, result.update, own_key, is_entry)
            tell_size(result.update, sent)
            return result._replace(update=sent)
        result = algorithm.local(received, state["state"], view, limits, key)
        _check_residual(result.update, state["residual"])
        wanted = jax.tree.map(_add_residual, result.update, state["residual"])
        sent = encode_tree(codec, wanted, own_key, is_entry)
        tell_size(result.update, sent)
        lost = difference(wanted, decode_tree(codec, sent))
        residual = jax.tree.map(lambda old, new: new.astype(old.dtype), state["residual"], lost)
        kept = {"state": result.client_state, "residual": residual}
        return result._replace(update=sent, client_state=kept)

    def evaluate(received: Tree, state: Tree, given: EvaluationInput) -> Sums:
        return algorithm.evaluate(received, state["state"] if error_feedback else state, given)

    return algorithm._replace(
        init_client=init_client,
        local=local,
        evaluate=evaluate,
        receive=lambda sent: algorithm.receive(decode_tree(codec, sent)),
    )


def _compressed_down(algorithm: Algorithm, codec: Codec, is_entry: IsEntry, seed: int) -> Algorithm:
    tell_size = _make_teller("the model")

    def write(tree: Tree, server: Tree, purpose: int) -> Tree:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), server["round"])
        encoded = encode_tree(codec, tree, key, is_entry)
        tell_size(tree, encoded)
        return encoded

    def local(
        received: Tree, state: Tree, view: ClientView, limits: Limits, key: Key[Array, ""]
    ) -> LocalResult:
        return algorithm.local(decode_tree(codec, received), state, view, limits, key)

    def evaluate(received: Tree, state: Tree, given: EvaluationInput) -> Sums:
        return algorithm.evaluate(decode_tree(codec, received), state, given)

    return algorithm._replace(
        init_server=lambda variables: {
            "server": algorithm.init_server(variables),
            "round": jnp.int32(0),
        },
        broadcast=lambda server: write(algorithm.broadcast(server["server"]), server, _DOWN),
        local=local,
        update_server=lambda server, mean, num_updates: {
            "server": algorithm.update_server(server["server"], mean, num_updates),
            "round": server["round"] + 1,
        },
        evaluation=lambda server: write(
            algorithm.evaluation(server["server"]), server, _EVALUATION
        ),
        evaluate=evaluate,
        variables=lambda server: algorithm.variables(server["server"]),
    )


def _no_residual(leaf: Array) -> Array:
    """What has been lost so far; an entry that is no float loses nothing."""
    is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
    return jnp.zeros(leaf.shape, jnp.float32 if is_float else leaf.dtype)


def _add_residual(update: Array, residual: Array) -> Array:
    return (update + residual).astype(update.dtype)


def _check_residual(update: Tree, residual: Tree) -> None:
    forms = [
        (jax.tree.structure(tree), [leaf.shape for leaf in jax.tree.leaves(tree)])
        for tree in (update, residual)
    ]
    if forms[0] != forms[1]:
        raise ConfigError(
            f"the algorithm sends {forms[0][0]} and is sent {forms[1][0]}; error feedback needs "
            "one whose updates have the form of what it is sent, such as fed_avg"
        )


def quantize_state_dict(tensors: Mapping[str, np.ndarray], bits: int = 8) -> dict[str, Any]:
    """Tensors by their original names, quantised as the original sends them.

    Of `X.weight` of layers that are named fc or conv it makes `X.weight_quant` and
    `X.weight_scale`; all else is as it was.

    Args:
      tensors: name -> array, such as `models.save_original` gives.
      bits: 8 or 16.

    Raises:
      ValueError: naming a tensor that has numbers that are not finite.
    """
    codec, key = quantize(bits), jax.random.key(0)
    quantized: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if not _is_original_tensor(name):
            quantized[name] = tensor
            continue
        if not np.isfinite(tensor).all():
            raise ValueError(f"{name} has numbers that are not finite; they have no quantised form")
        values, side = codec.encode(jnp.asarray(tensor), key)
        quantized[f"{name}_quant"] = np.asarray(values)
        quantized[f"{name}_scale"] = np.asarray(side["scale"])
    return quantized


def dequantize_state_dict(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The tensors that the receiver of `quantize_state_dict` has, float32.

    Raises:
      ValueError: naming a quantised tensor that has no scale.
    """
    plain: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        base = name.removesuffix("_quant")
        if name != base and _is_original_tensor(base):
            if f"{base}_scale" not in tensors:
                raise ValueError(f"{name} has no {base}_scale beside it")
            plain[base] = tensor.astype(np.float32) * np.float32(tensors[f"{base}_scale"])
        elif not (name.endswith("_scale") and _is_original_tensor(name.removesuffix("_scale"))):
            plain[name] = tensor
    return plain


def _is_original_tensor(name: str) -> bool:
    return name.endswith(".weight") and ("fc" in name or "conv" in name)
