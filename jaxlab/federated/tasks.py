"""What clients learn: a model with its loss, as pure functions of variables and a batch.

Variables are `{"params": ...}` and whatever else the model keeps (`batch_stats`): parameters are
optimised, the rest is what the forward pass leaves behind, and both are exchanged.

The last batch of a client may be padded. Losses and scores leave padded rows out; a module that
normalises over the batch must do so too, and is given the mask of the rows (`masked`).
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Key, PyTree

from jaxlab.federated.checks import describe
from jaxlab.federated.strategy import ConfigError

MASK = "mask"
"""Field of a batch that says which of its rows are examples."""

Batch = Mapping[str, Any]
Sums = dict[str, Float[Array, " two"]]
"""Name -> (sum, count), so that batches, clients and devices add up to means."""

NUM_STARTS = 64
"""Programs that make the variables of modules and are kept for other tasks of the same module."""

OF_CLIENT = "@client"
"""What the names of sums end with whose mean over examples is a number of a client as a whole."""


class LossOutput(NamedTuple):
    """The loss of a batch, and what comes with it.

    Attributes:
      per_example: loss of every example, float32; those that the mask leaves out are not used.
      model_state: the other variables after the forward pass, such as `batch_stats`.
      scores: per example, metric name -> number, such as `correct`; or (sum, count) where a mean is
        not over examples, such as the F1 score of a class.
      kept: per example, what `Task.score_all` takes of it.
    """

    per_example: Float[Array, " batch"]
    model_state: dict[str, Any]
    scores: dict[str, Float[Array, "batch *pair"]]
    kept: Mapping[str, Array] | None = None


ScoreAll = Callable[[Mapping[str, Array], Bool[Array, " examples"]], Sums]
"""From what was kept of all examples of a client to scores, see `Task.score_all`."""


class Task(NamedTuple):
    """A learning problem.

    Attributes:
      init: `key -> variables`.
      loss: `(variables, batch, key, train) -> LossOutput`; the batch holds the arrays of the
        examples, `train` is static.
      mix: `(variables of models, every leaf (models, ...); shares (models,); batch) -> LossOutput`
        of the mixture of their predictions; None if there is none.
      score_all: `(LossOutput.kept of all examples of a client, which of them are examples) -> name
        -> (number, 1), or (0, 0) if there is none`: scores that are no sums over examples, such as
        the area under a ROC curve. Evaluations have them, trainings have not.
      check: `examples, name -> (examples, ...), on the host -> None`; raises a ConfigError for
        those that the task cannot learn from. Asked once, when a course is made; None looks at
        nothing.
    """

    init: Callable[[Key[Array, ""]], PyTree]
    loss: Callable[[PyTree, Batch, Key[Array, ""], bool], LossOutput]
    mix: Callable[[PyTree, Float[Array, " models"], Batch], LossOutput] | None = None
    score_all: ScoreAll | None = None
    check: Callable[[Mapping[str, Any]], None] | None = None


def compute_loss(
    task: Task, variables: PyTree, batch: Batch, key: Key[Array, ""], train: bool
) -> LossOutput:
    """`task.loss`, whose output is looked at: only shapes are, while a program is traced.

    Args:
      task: the learning problem.
      variables: of the model.
      batch: the examples.
      key: for what the model draws.
      train: whether this is training.

    Raises:
      ConfigError: (a ValueError) if the output is no `LossOutput` with a number for every example.
    """
    output = task.loss(variables, batch, key, train)
    _check_output(output, jax.tree.leaves(dict(batch))[0].shape[0])
    if train and isinstance(variables, Mapping):
        kept, found = variables.keys() - {"params"}, set(output.model_state)
        if kept != found:
            raise ConfigError(
                f"the loss of the task must give the other variables of the model after the "
                f"forward pass as model_state, {sorted(kept)}, and gave {sorted(found)}"
            )
    return output


_WANTED = "LossOutput(per_example, model_state, scores), with a loss for every example of the batch"


def _check_output(output: Any, num_rows: int) -> None:
    if not isinstance(output, LossOutput):
        raise ConfigError(f"the loss of the task gave {describe(output)}; wanted {_WANTED}")
    form = getattr(output.per_example, "shape", None)
    if form != (num_rows,):
        hint = ": the mean is taken later, over the examples that are no padding"
        raise ConfigError(
            f"per_example must have shape (batch,), here {(num_rows,)}, and the loss of the task "
            f"gave {describe(output.per_example)}{hint if form in ((), (1,)) else ''}; wanted "
            f"{_WANTED}"
        )
    if not jnp.issubdtype(output.per_example.dtype, jnp.floating):
        raise ConfigError(f"per_example must be floats, and is {describe(output.per_example)}")
    for what, value in (("model_state", output.model_state), ("scores", output.scores)):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{what} of a LossOutput must be a dict, and is {describe(value)}")
    for name, value in output.scores.items():
        if getattr(value, "shape", None) not in ((num_rows,), (num_rows, 2)):
            raise ConfigError(
                f"the score {name!r} must have shape (batch,), or (batch, 2) for a sum and a "
                f"count, with a batch of {num_rows}, and is {describe(value)}"
            )


Score = Callable[
    [Array, Batch], tuple[Float[Array, " batch"], dict[str, Float[Array, "batch *pair"]]]
]
"""`(output of the module, batch) -> (loss of every example, scores of every example)`, float32."""

Combine = Callable[[Array, Float[Array, " models"]], Array]
"""`(outputs (models, batch, ...), shares (models,)) -> output (batch, ...)` of the mixture."""


def supervised(
    module: nn.Module,
    example: jax.ShapeDtypeStruct,
    score: Score,
    *,
    prepare: Callable[[Array], Array] = lambda x: x,
    masked: bool = False,
    combine: Combine | None = None,
    score_all: Callable[[Array, Array, Array], Sums] | None = None,
    check: Callable[[Mapping[str, Any], jax.ShapeDtypeStruct], None] | None = None,
) -> Task:
    """A module that is called with `x`, and a loss of its output.

    Args:
      module: called with `(x, train=...)`; it may keep `batch_stats` and draw from the stream
        `dropout`.
      example: shape and type of one `x`, as `prepare` gives it, without the batch axis.
      score: from the output and the batch to loss and scores.
      prepare: from `x` of the batch to the input of the module, on the device.
      masked: the module is also called with `mask=`, True for rows that are examples.
      combine: from the outputs of several models to that of their mixture; None for a task that
        mixes none.
      score_all: `(outputs, y, mask) -> name -> pair` of all examples of a client at once, see
        `Task.score_all`.
      check: `(examples, form of the output for one of them) -> None`, beside what is looked at
        anyway, see `Task.check`.

    Raises:
      ConfigError: (a ValueError) if the module cannot be called so.
    """
    form = _output_form(module, example, masked)

    def check_examples(examples: Mapping[str, Any]) -> None:
        _check_inputs(examples, example, prepare)
        if check is not None:
            check(examples, form)

    def describe_output(output: Array, batch: Batch, model_state: dict[str, Any]) -> LossOutput:
        losses, scores = score(output, batch)
        kept = None if score_all is None else {"output": output, "y": batch["y"]}
        return LossOutput(losses, model_state, scores, kept)

    init = _make_init(module, tuple(example.shape), np.dtype(example.dtype), masked)

    def loss(variables: PyTree, batch: Batch, key: Key[Array, ""], train: bool) -> LossOutput:
        mask = batch[MASK] if masked else None
        output, model_state = apply(module, variables, prepare(batch["x"]), key, train, mask)
        return describe_output(output, batch, model_state)

    def mix(models: PyTree, shares: Float[Array, " models"], batch: Batch) -> LossOutput:
        mask, inputs = batch[MASK] if masked else None, prepare(batch["x"])

        def one(variables: PyTree) -> Array:
            return apply(module, variables, inputs, jax.random.key(0), False, mask)[0]

        return describe_output(cast(Combine, combine)(jax.vmap(one)(models), shares), batch, {})

    def over_all(kept: Mapping[str, Array], mask: Array) -> Sums:
        return cast(Any, score_all)(kept["output"], kept["y"], mask)

    return Task(
        init,
        loss,
        mix if combine is not None else None,
        over_all if score_all is not None else None,
        check_examples,
    )


def _make_init(
    module: nn.Module, shape: tuple[int, ...], dtype: np.dtype, masked: bool
) -> Callable[[Key[Array, ""]], PyTree]:
    """The start of a module as one program; operation by operation each would be compiled."""
    try:
        return _compiled_init(module, shape, dtype, masked)
    except TypeError:  # a module with fields that have no hash
        return _compiled_init.__wrapped__(module, shape, dtype, masked)


@functools.lru_cache(maxsize=NUM_STARTS)
def _compiled_init(
    module: nn.Module, shape: tuple[int, ...], dtype: np.dtype, masked: bool
) -> Callable[[Key[Array, ""]], PyTree]:
    @jax.jit
    def init(key: Key[Array, ""]) -> PyTree:
        return dict(
            module.init(key, jnp.zeros((1, *shape), dtype), train=False, **_whole_batch(masked))
        )

    return init


def takes(module: nn.Module, name: str) -> bool:
    """Whether a module can be called with an argument of some name.

    Args:
      module: any.
      name: of the argument.
    """
    parameters = inspect.signature(type(module).__call__).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _whole_batch(masked: bool) -> dict[str, Any]:
    """The mask of one example, for a module that takes one."""
    return {MASK: jnp.ones(1, bool)} if masked else {}


def _output_form(module: Any, example: Any, masked: bool) -> jax.ShapeDtypeStruct:
    """Shape and type of the output for one example, without the batch axis; nothing is computed."""
    name = type(module).__name__
    if not isinstance(module, nn.Module) or not callable(module):
        raise ConfigError(f"module must be a flax.linen module, such as MyNet(), and is {name}")
    wanted = "x, *, train, mask" if masked else "x, *, train"
    missing = [w for w in ("train", *(["mask"] if masked else [])) if not takes(module, w)]
    if missing:
        taken = inspect.signature(type(module).__call__).parameters
        raise ConfigError(
            f"{name}.__call__ takes {list(taken)[1:]} and no {' and no '.join(missing)}; wanted "
            f"__call__(self, {wanted}): train says whether dropout and statistics are those of "
            "training" + (", mask which rows are examples" if masked else "")
        )
    if not hasattr(example, "shape") or not hasattr(example, "dtype"):
        raise ConfigError(
            "example must be the shape and type of one x, such as jax.ShapeDtypeStruct((784,), "
            f"jnp.float32), and is {describe(example)}"
        )
    inputs = jax.ShapeDtypeStruct((1, *example.shape), example.dtype)
    try:
        output, _ = jax.eval_shape(
            lambda key, x: module.init_with_output(key, x, train=False, **_whole_batch(masked)),
            jax.random.key(0),
            inputs,
        )
    except Exception as error:
        raise ConfigError(
            f"{name} cannot be called with x of {describe(inputs)}, one example behind the axis of "
            f"the batch: {_first_line(error)}. Wanted __call__(self, {wanted}) for x of "
            "(batch, *example.shape); example is one x without the batch"
        ) from error
    if not hasattr(output, "shape"):
        raise ConfigError(f"{name} gives {describe(output)}; wanted one array")
    return jax.ShapeDtypeStruct(output.shape[1:], output.dtype)


def _check_inputs(
    examples: Mapping[str, Any], example: jax.ShapeDtypeStruct, prepare: Callable[[Array], Array]
) -> None:
    x = field_of(examples, "x")
    try:
        given = jax.eval_shape(prepare, jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype))
    except Exception as error:
        raise ConfigError(
            f"prepare cannot take x of {describe(x)}: {_first_line(error)}"
        ) from error
    if given.shape[1:] != tuple(example.shape):
        raise ConfigError(
            f"x has the shape {tuple(given.shape[1:])} for an example, and the task was made for "
            f"{tuple(example.shape)}; give that shape as example, or change x by prepare"
        )


def field_of(examples: Mapping[str, Any], name: str) -> Any:
    """A field of examples, or a ConfigError that lists those that there are."""
    if name not in examples:
        raise ConfigError(f"there are {sorted(examples)} and no {name!r}")
    return examples[name]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def apply(
    module: nn.Module,
    variables: PyTree,
    inputs: Array,
    key: Key[Array, ""],
    train: bool,
    mask: Bool[Array, " batch"] | None = None,
) -> tuple[Array, dict[str, Any]]:
    """The output of a module, and the variables other than parameters after it.

    Args:
      module: called with `(inputs, train=...)`.
      variables: its variables.
      inputs: a batch.
      key: of the stream `dropout`.
      train: update what the module keeps, and draw.
      mask: which rows are examples, for a module that takes it.

    Raises:
      ConfigError: (a ValueError) if the module keeps `batch_stats` and is trained without a mask:
        padded rows would count in them.
    """
    kept = {name: value for name, value in variables.items() if name != "params"}
    options: dict[str, Any] = {} if mask is None else {"mask": mask}
    if not train:
        return cast(Array, module.apply(variables, inputs, train=False, **options)), kept
    if "batch_stats" in kept and mask is None:
        raise ConfigError(
            f"{type(module).__name__} normalises over the batch, whose last rows may be padding; "
            "give it an argument mask for its normalisation layers, and use masked=True"
        )
    rngs = {"dropout": key}
    out, changed = module.apply(
        variables, inputs, train=True, mutable=list(kept), rngs=rngs, **options
    )
    return cast(Array, out), dict(changed)


def masked_mean(values: Float[Array, " batch"], mask: Bool[Array, " batch"]) -> Float[Array, ""]:
    """Mean over the examples that the mask keeps; 0 if it keeps none."""
    kept = jnp.where(mask, values, 0.0)
    return kept.sum() / jnp.maximum(mask.sum(), 1)


def masked_sums(output: LossOutput, mask: Bool[Array, " batch"]) -> Sums:
    """Sums and counts of the loss and of every score over the examples that the mask keeps."""
    count = mask.sum().astype(jnp.float32)

    def add(value: Array) -> Array:
        if value.ndim == 2:
            return jnp.where(mask[:, None], value, 0.0).sum(axis=0)
        return jnp.stack([jnp.where(mask, value, 0.0).sum(), count])

    values = {"loss": output.per_example, **output.scores}
    return {name: add(value) for name, value in values.items()}
