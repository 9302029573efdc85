"""Module replacement: layers of the student take the place of blocks of teacher layers (Theseus).

The teacher's layers are cut into one block for every layer of the successor. In the first phase a
step runs a mixed stack, in which each successor layer stands for its block with probability p; the
loss is that of the task alone. Embeddings and head are the teacher's and frozen, as are its layers:
only successor layers train. In the second phase the successors, with the teacher's embeddings and
head, are a network of their own (`extract_successor`) and train as any other.

`mixed_stack` puts layers of any kind in a row; `theseus_features` runs one inside of a text model,
and `make_theseus_step` trains it.

References:
  Xu et al. 2020, arXiv:2002.02925.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key, PyTree

from jaxlab.distillation.initializers import count_layers
from jaxlab.distillation.knowledge import Features
from jaxlab.distillation.matching import match_layers
from jaxlab.distillation.model import TextModel
from jaxlab.distillation.objective import Objective
from jaxlab.distillation.train import (
    STUDENT,
    TEACHER,
    Batch,
    Parts,
    make_distillation_step,
    progress_at,
)
from jaxlab.layers.bert import BertLayer
from jaxlab.layers.mobilebert import MobileBertConfig, MobileBertLayer
from jaxlab.layers.stacking import LAYER_PREFIX, LayerOutput
from jaxlab.training.state import TrainState
from jaxlab.training.step import TrainStep

Hidden = Float[Array, "batch time width"]
RunLayer = Callable[[PyTree, Array, PyTree, Array | None], Array]
"""(parameters of a layer, hidden states, what all layers share, key of its dropout) -> hidden."""


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


def theseus_features(
    model: TextModel,
    teacher: Mapping[str, Any],
    successors: Mapping[str, Any],
    batch: Mapping[str, Any],
    replaced: Bool[Array, " student_layers"],
    *,
    key: Key[Array, ""] | None = None,
) -> Features:
    """What the mixed network of the first phase puts out.

    Args:
      model: the teacher's.
      teacher: its parameters; no gradient goes to them.
      successors: parameters of the successor's layers, `layer_i`: all that trains.
      batch: `ids`, `mask` and `types`.
      replaced: which blocks the successor's layers stand for (`draw_replaced`).
      key: of all dropout; `None` evaluates.

    Raises:
      ValueError: if the successor has more layers than the teacher.
    """
    ends, inner = (None, None) if key is None else jax.random.split(key)
    frozen = jax.lax.stop_gradient(dict(teacher))

    def run_blocks(hidden: Array, bias: Array) -> Array:
        return mixed_stack(
            layer_runner(model),
            _layers(frozen["encoder"], count_layers(teacher)),
            _layers(successors, len(successors)),
            hidden,
            bias,
            replaced,
            key=inner,
        )

    return cast(
        Features,
        model.apply(
            {"params": frozen},
            batch["ids"],
            mask=batch["mask"],
            types=batch.get("types"),
            train=key is not None,
            run_blocks=run_blocks,
            rngs={} if ends is None else {"dropout": ends},
        ),
    )


def make_theseus_step(
    objective: Objective,
    model: TextModel,
    tx: optax.GradientTransformation,
    num_steps: int,
    *,
    start: float = 0.3,
    num_microbatches: int = 1,
) -> TrainStep:
    """`step(state, frozen, batch, key) -> (state, metrics)` of the first phase.

    Blocks are drawn once a step, from its key. `state.params` are those of `distillation_params`
    with the successor's layers as the student, `frozen` holds the `teacher`. Metrics are those of a
    distillation, `replacing_probability`, and `replaced`, the share of the blocks of this step.

    Args:
      objective: of labels alone.
      model: the teacher's.
      tx: the optimizer over the successor's layers.
      num_steps: updates of the phase.
      start: probability of a block to be replaced at the beginning.
      num_microbatches: parts that a batch goes through in.

    Raises:
      ValueError: if the objective compares with a teacher.
    """
    if objective.needs_teacher:
        raise ValueError(
            f"module replacement learns from labels alone, and the objective has "
            f"{', '.join(objective.names)}; leave out matches and the response"
        )

    def step(
        state: TrainState, frozen: PyTree, batch: Batch, key: Key[Array, ""]
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        draw_key, run_key = jax.random.split(key)
        probability = replacing_probability(progress_at(state.step, num_steps), start)
        replaced = draw_replaced(draw_key, probability, len(state.params[STUDENT]))

        def forward(params: PyTree, batch: Batch, *, key: Any, **_: Any) -> Features:
            return theseus_features(model, frozen[TEACHER], params, batch, replaced, key=key)

        inner = make_distillation_step(
            Parts(objective, forward), tx, num_steps, num_microbatches=num_microbatches
        )
        state, metrics = inner(state, {}, batch, run_key)
        share = replaced.mean(dtype=jnp.float32)
        return state, {**metrics, "replaced": share, "replacing_probability": probability}

    return step


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


def layer_runner(model: TextModel) -> RunLayer:
    """Runs layers of a text model; what they share is the additive bias of the scores.

    Args:
      model: of these sizes; the number of layers does not matter.
    """

    def run(params: PyTree, hidden: Array, shared: PyTree, key: Array | None) -> Array:
        is_mobile = isinstance(model.config.encoder, MobileBertConfig)
        make: Callable[..., Any] = MobileBertLayer if is_mobile else BertLayer
        layer = make(
            model.config.encoder,
            train=key is not None,
            implementation=model.implementation,
            dtype=model.dtype,
            parent=None,  # not a part of the network that is running
        )
        rngs = {} if key is None else {"dropout": key}
        output = layer.apply({"params": params}, hidden, shared, rngs=rngs)
        return cast(LayerOutput, output).hidden

    return jax.checkpoint(run) if model.remat else run


def _layers(params: Mapping[str, Any], num_layers: int) -> list[PyTree]:
    return [params[f"{LAYER_PREFIX}{i}"] for i in range(num_layers)]
