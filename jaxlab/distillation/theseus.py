"""Module replacement: layers of the student take the place of blocks of teacher layers (Theseus).

The teacher's layers are cut into one block for every layer of the successor. In the first phase a
step runs a mixed stack, in which each successor layer stands for its block with probability p; the
loss is that of the task alone. Embeddings and head are the teacher's and frozen, as are its layers:
only successor layers train. In the second phase the successors, with the teacher's embeddings and
head, are a network of their own (`extract_successor`) and train as any other.

How the parts of a network are run is handed in (`Runners`); this module only puts them in a row.

References:
  Xu et al. 2020, arXiv:2002.02925.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from jaxlab.distillation.initializers import count_layers
from jaxlab.distillation.matching import match_layers
from jaxlab.layers.bert import BertConfig, BertLayer
from jaxlab.layers.stacking import LAYER_PREFIX, LayerOutput

Hidden = Float[Array, "batch time width"]
RunLayer = Callable[[PyTree, Array, PyTree, Array | None], Array]
"""(parameters of a layer, hidden states, what all layers share, key of its dropout) -> hidden."""


class Runners(NamedTuple):
    """How the parts of a network are run.

    Attributes:
      embed: (parameters, batch, key) -> the hidden states before the first layer, and what all
        layers share (a bias of the scores).
      layer: runs one layer.
      head: (parameters, last hidden states, batch, key) -> outputs.
    """

    embed: Callable[[PyTree, PyTree, Array | None], tuple[Array, PyTree]]
    layer: RunLayer
    head: Callable[[PyTree, Array, PyTree, Array | None], Array]


def replacing_probability(
    progress: Float[Array, ""], start: float = 0.3, until: float = 0.66
) -> Float[Array, ""]:
    """Probability with which a block is replaced, `p_0 + (1 - p_0) x / 0.66`, then 1.

    Args:
      progress: x of the first phase, in [0, 1].
      start: p_0.
      until: progress at which it is 1.

    Raises:
      ValueError: if the numbers are no probability and no progress.
    """
    if not (0.0 <= start <= 1.0 and 0.0 < until <= 1.0):
        raise ValueError(f"start={start} must be in [0, 1] and until={until} in (0, 1]")
    return start + (1.0 - start) * jnp.minimum(progress / until, 1.0)


def draw_replaced(
    key: Key[Array, ""], probability: Float[Array, ""], num_student_layers: int
) -> Bool[Array, " student_layers"]:
    """Which blocks are replaced: each with a probability, and at least one.

    Where none was drawn one is chosen, each as likely: a block is replaced with probability
    `p + (1 - p)^N / N` in all.

    Args:
      key: of the draw, one a step; all examples of a batch go through one stack.
      probability: p.
      num_student_layers: N.
    """
    each_key, one_key = jax.random.split(key)
    drawn = jax.random.bernoulli(each_key, probability, (num_student_layers,))
    chosen = jax.random.randint(one_key, (), 0, num_student_layers)
    return drawn | (~drawn.any() & (jnp.arange(num_student_layers) == chosen))


def teacher_blocks(num_teacher_layers: int, num_student_layers: int) -> tuple[range, ...]:
    """The teacher layers that every student layer stands for.

    Blocks of equal size where one number divides the other, else of sizes that differ by one.

    Args:
      num_teacher_layers: layers of the teacher.
      num_student_layers: layers of the successor.

    Raises:
      ValueError: if the successor has more layers.

    Example:
      >>> teacher_blocks(6, 2)
      (range(0, 3), range(3, 6))
    """
    tops = [top for top, _ in match_layers("uniform_top", num_teacher_layers, num_student_layers)]
    starts = [0, *(top + 1 for top in tops[:-1])]
    return tuple(range(start, top + 1) for start, top in zip(starts, tops, strict=True))


def mixed_stack(
    run_layer: RunLayer,
    teacher_layers: Sequence[PyTree],
    student_layers: Sequence[PyTree],
    hidden: Hidden,
    shared: PyTree,
    replaced: Bool[Array, " student_layers"],
    *,
    key: Key[Array, ""] | None = None,
) -> Hidden:
    """Runs layers of both networks: of every block the successor's, or the teacher's.

    Only the layers that are asked for are computed (unless this is `vmap`ped over `replaced`). The
    gradient passes through the teacher's layers down to successors below, not into them.

    Args:
      run_layer: runs one layer.
      teacher_layers: parameters of the teacher's layers.
      student_layers: parameters of the successor's layers.
      hidden: what the first layer takes.
      shared: what all layers take.
      replaced: which blocks the successor's layers stand for.
      key: of the dropout of both; `None` evaluates.

    Returns:
      The last hidden states.

    Raises:
      ValueError: if the successor has more layers.
    """
    frozen = jax.lax.stop_gradient(list(teacher_layers))
    blocks = teacher_blocks(len(teacher_layers), len(student_layers))

    def own_key(layer: int) -> Array | None:
        return None if key is None else jax.random.fold_in(key, layer)

    for i, block in enumerate(blocks):

        def by_successor(x: Array, i: int = i) -> Array:
            return run_layer(student_layers[i], x, shared, own_key(len(frozen) + i))

        def by_teacher(x: Array, block: range = block) -> Array:
            for layer in block:
                x = run_layer(frozen[layer], x, shared, own_key(layer))
            return x

        hidden = jax.lax.cond(replaced[i], by_successor, by_teacher, hidden)
    return hidden


def theseus_outputs(
    runners: Runners,
    teacher: Mapping[str, Any],
    successors: Mapping[str, Any],
    batch: PyTree,
    replaced: Bool[Array, " student_layers"],
    *,
    key: Key[Array, ""] | None = None,
) -> Float[Array, "batch *outputs"]:
    """Outputs of the mixed network of the first phase.

    Args:
      runners: how its parts are run.
      teacher: parameters of the teacher, with `encoder/layer_i`; no gradient goes to them.
      successors: parameters of the successor's layers, `layer_i`: all that trains.
      batch: what the network eats.
      replaced: which blocks the successor's layers stand for (`draw_replaced`).
      key: of all dropout; `None` evaluates.

    Raises:
      ValueError: if the successor has more layers than the teacher.
    """
    keys = (None,) * 3 if key is None else tuple(jax.random.split(key, 3))
    frozen = jax.lax.stop_gradient(teacher)
    hidden, shared = runners.embed(frozen, batch, keys[0])
    hidden = mixed_stack(
        runners.layer,
        _layers(frozen["encoder"], count_layers(teacher)),
        _layers(successors, len(successors)),
        hidden,
        shared,
        replaced,
        key=keys[1],
    )
    return runners.head(frozen, hidden, batch, keys[2])


def init_successors(
    teacher: Mapping[str, Any], num_layers: int, strategy: str = "first"
) -> dict[str, Any]:
    """The successor's layers before the first step: copies of teacher layers.

    Args:
      teacher: parameters of the teacher.
      num_layers: layers of the successor.
      strategy: which ones, see `match_layers`; the published code takes the first.

    Raises:
      ValueError: if the strategy does not give every layer one.
    """
    pairs = match_layers(strategy, count_layers(teacher), num_layers)
    if [student for _, student in pairs] != list(range(num_layers)):
        raise ValueError(
            f"{strategy!r} gives layers {[s for _, s in pairs]} of {num_layers} one of the "
            "teacher's; use first, last, gap or uniform_top, which give every layer one"
        )
    return {
        f"{LAYER_PREFIX}{i}": jax.tree.map(
            lambda leaf: jnp.array(leaf, copy=True), teacher["encoder"][f"{LAYER_PREFIX}{layer}"]
        )
        for layer, i in pairs
    }


def extract_successor(teacher: Mapping[str, Any], successors: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of the successor as a network of its own, to be trained on and exported.

    Args:
      teacher: gives embeddings, pooler and head. The arrays are copied, so that donating them
        leaves the teacher as it is.
      successors: the trained layers, `layer_i`.

    Raises:
      ValueError: if there is no teacher layer 0, or the successors have gaps.
    """
    count_layers(teacher)
    count_layers({"encoder": successors})
    kept = {k: v for k, v in teacher["encoder"].items() if not k.startswith(LAYER_PREFIX)}
    tree = {**teacher, "encoder": {**kept, **successors}}
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)


def bert_layer_runner(config: BertConfig) -> RunLayer:
    """Runs layers of a BERT body; what they share is the additive bias of the scores.

    Args:
      config: sizes; the number of layers does not matter.
    """

    def run(params: PyTree, hidden: Array, shared: PyTree, key: Array | None) -> Array:
        rngs = {} if key is None else {"dropout": key}
        layer = BertLayer(config, train=key is not None)
        output = layer.apply({"params": params}, hidden, shared, rngs=rngs)
        return cast(LayerOutput, output).hidden

    return run


def _layers(params: Mapping[str, Any], num_layers: int) -> list[PyTree]:
    return [params[f"{LAYER_PREFIX}{i}"] for i in range(num_layers)]
