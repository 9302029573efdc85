"""Layers in a row: unrolled in the public tree, stacked when the compiler should see one layer.

The public parameter tree has one entry a layer (`layer_0`, `layer_1`, ...). Scanning over layers
compiles one layer instead of all, and wants them stacked along a leading axis: `stack_layers` and
`unstack_layers` go from one form to the other. `run_layers` runs either way on the public tree.
"""

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, PyTree

LAYER_PREFIX = "layer_"


class Taps(NamedTuple):
    """Intermediate states of a stack of layers, for distillation and parity.

    Attributes:
      hidden: the input of the first layer, then the output of every layer (for a residual network:
        the output of the stem, then of every stage).
      scores: attention scores after bias, one (batch, heads, queries, keys) a layer; empty for
        networks without attention layers.
      probabilities: their softmax before dropout.
      queries: what the scores are made of, (batch, time, width) with the heads one after the other.
      keys: likewise.
      values: what the probabilities weight, likewise.
    """

    hidden: tuple[Array, ...] = ()
    scores: tuple[Array, ...] = ()
    probabilities: tuple[Array, ...] = ()
    queries: tuple[Array, ...] = ()
    keys: tuple[Array, ...] = ()
    values: tuple[Array, ...] = ()


DEFAULT_TAPS = frozenset({"hidden", "scores", "probabilities"})
"""What `return_taps=True` stands for."""


class LayerOutput(NamedTuple):
    """Output of one layer; what was not asked for is `None`.

    Attributes:
      hidden: (batch, time, width).
      scores: attention scores.
      probabilities: their softmax.
      queries: all heads one after the other.
      keys: likewise.
      values: likewise.
    """

    hidden: Float[Array, "batch time width"]
    scores: Float[Array, "batch heads time time"] | None = None
    probabilities: Float[Array, "batch heads time time"] | None = None
    queries: Float[Array, "batch time width"] | None = None
    keys: Float[Array, "batch time width"] | None = None
    values: Float[Array, "batch time width"] | None = None


def check_taps(taps: Collection[str]) -> frozenset[str]:
    """Taps as a set, if all of them exist.

    Args:
      taps: names of fields of `Taps`.

    Raises:
      ValueError: naming those that do not exist, and all that do.
    """
    if unknown := sorted(set(taps) - set(Taps._fields)):
        raise ValueError(
            f"taps={sorted(taps)}: {', '.join(unknown)} cannot be tapped; "
            f"use some of {', '.join(Taps._fields)}"
        )
    return frozenset(taps)


def stack_layers(params: Mapping[str, PyTree], num_layers: int) -> PyTree:
    """Stack the subtrees `layer_0` ... of a parameter tree along a new leading axis.

    Args:
      params: a tree with the entries `layer_0` ... `layer_{num_layers - 1}`; others are ignored.
      num_layers: number of layers.

    Returns:
      One layer's tree whose leaves have a leading axis of size `num_layers`.

    Raises:
      KeyError: if a layer is missing.
    """
    names = [f"{LAYER_PREFIX}{i}" for i in range(num_layers)]
    missing = [name for name in names if name not in params]
    if missing:
        raise KeyError(f"parameters of {missing} are missing; the tree has {sorted(params)}")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[name] for name in names))


def unstack_layers(stacked: PyTree) -> dict[str, PyTree]:
    """Split a stacked tree into `layer_0`, `layer_1`, ...: the inverse of `stack_layers`.

    Args:
      stacked: a tree whose leaves share the size of their leading axis.

    Returns:
      One entry a layer.

    Raises:
      ValueError: if the leading sizes differ, or there are no leaves.
    """
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(stacked)}
    if len(sizes) != 1:
        raise ValueError(
            f"a stacked tree needs one leading size, got {sorted(sizes)}; pass the output of "
            "stack_layers"
        )
    return {
        f"{LAYER_PREFIX}{i}": jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
        for i in range(sizes.pop())
    }


def run_layers(
    parent: nn.Module,
    layer: type[nn.Module],
    fields: Mapping[str, Any],
    x: Float[Array, "batch time width"],
    *shared: Any,
    num_layers: int,
    remat: bool,
    scan: bool,
    dropout: bool,
    num_outputs: int | None,
    taps: frozenset[str],
    taps_type: type[Any] = Taps,
) -> tuple[Float[Array, "batch outputs width"], Any]:
    """Run equal layers one after the other inside a compact method of `parent`.

    The layers are children `layer_0` ... of `parent` in every mode, so that parameters do not
    depend on how they are run.

    Args:
      parent: the module whose compact method calls this.
      layer: module class, called as `layer(**fields)(x, *shared)`, returning a `LayerOutput`.
      fields: the layers' fields but `num_outputs`, which says how many tokens one computes.
      x: hidden states.
      *shared: further arguments, the same for all layers (a mask, a bias).
      num_layers: number of layers.
      remat: recompute a layer in the backward pass instead of keeping its activations.
      scan: run as one `jax.lax.scan` over stacked parameters, which compiles in the time of one
        layer. Dropout then draws other keys than the unrolled form; everything else is equal.
      dropout: the layers draw from the `dropout` stream.
      num_outputs: how many of the last hidden states are wanted, from the first token on; `None`
        is all. The last layer computes no others unless there are taps: of a tower of twelve
        layers that gives the state of one token, this saves a fifteenth.
      taps: names of the fields of `taps_type` to fill, which the layers return; the others stay
        empty.
      taps_type: `Taps`, or a named tuple with further fields.

    Returns:
      The last hidden states of the first tokens, and the taps.
    """
    first, tapped = x, []
    last = {**fields, "num_outputs": None if taps else num_outputs}
    num_equal = num_layers if last["num_outputs"] is None else num_layers - 1
    if scan and not parent.is_initializing():
        layers = [layer(**fields, parent=None)] * num_equal
        layers += [layer(**last, parent=None)] * (num_layers - num_equal)
        x, stacked = _scan_layers(parent, layers, num_equal, x, shared, remat, dropout, taps)
        if taps:
            tapped = [{tap: a[i] for tap, a in stacked.items()} for i in range(num_layers)]
    else:
        layer_class = nn.remat(layer) if remat else layer
        for i in range(num_layers):
            own = fields if i < num_equal else last
            output = layer_class(**own, name=f"{LAYER_PREFIX}{i}")(x, *shared)
            x = output.hidden
            tapped.append(_tapped(output, taps))
    filled = {tap: tuple(of_layer[tap] for of_layer in tapped) for tap in taps}
    if "hidden" in taps:
        filled["hidden"] = (first, *filled["hidden"])
    return x[:, :num_outputs], taps_type(**filled)


def _tapped(output: tuple[Any, ...], taps: frozenset[str]) -> dict[str, Array]:
    """The wanted fields of a layer's output, a named tuple."""
    return {tap: getattr(output, tap) for tap in taps}


def _scan_layers(
    parent: nn.Module,
    layers: Sequence[nn.Module],
    num_equal: int,
    x: Array,
    shared: Sequence[Any],
    remat: bool,
    dropout: bool,
    taps: frozenset[str],
) -> tuple[Array, dict[str, Array]]:
    """Scan one detached layer over the stacked parameters of the parent's layers.

    Only the first `num_equal` are; a last one that differs from them runs after the scan.
    """

    def run(
        layer: nn.Module, x: Array, xs: tuple[PyTree, Array | None]
    ) -> tuple[Array, dict[str, Array]]:
        params, key = xs
        rngs = {} if key is None else {"dropout": key}
        output = cast(LayerOutput, layer.apply({"params": params}, x, *shared, rngs=rngs))
        return output.hidden, _tapped(output, taps)

    params, outputs = parent.variables["params"], {}
    keys = jax.random.split(parent.make_rng("dropout"), len(layers)) if dropout else None
    steps = [functools.partial(run, layer) for layer in layers]
    if remat:
        steps = [jax.checkpoint(step, prevent_cse=False) for step in steps]
    if num_equal:
        own_keys = None if keys is None else keys[:num_equal]
        x, outputs = jax.lax.scan(steps[0], x, (stack_layers(params, num_equal), own_keys))
    if num_equal < len(layers):
        own_key = None if keys is None else keys[-1]
        x, _ = steps[-1](x, (params[f"{LAYER_PREFIX}{num_equal}"], own_key))
    return x, outputs
