"""Optimizer and learning-rate schedule from one configuration."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxlab.parallel import path_name

OPTIMIZERS = ("adamw", "lamb", "lion", "sgd")
SCHEDULES = ("cosine", "linear", "constant")
DECAY_RULES = ("standard", "all")

DecayMask = Callable[[PyTree], PyTree]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """How parameters are updated.

    Attributes:
      name: "adamw", "lion", "sgd", or "lamb" for very large batches: AdamW whose step, decay
        included, has the norm of the parameter (of those that decay).
      learning_rate: highest rate, reached at the end of the warm-up.
      warmup_steps: steps of linear warm-up; step t of them has the rate (t + 1) / warmup_steps of
        the highest. 0 starts at the highest.
      schedule: what follows the warm-up: "cosine" or "linear" down to `final_learning_rate` at
        num_steps, or "constant".
      final_learning_rate: rate that the schedule ends at.
      b1: decay of the first moment; momentum for "sgd" (0 is plain gradient descent).
      b2: decay of the second moment; not used by "sgd".
      eps: added to the root of the second moment by "adamw" and "lamb".
      weight_decay: decoupled weight decay; each step takes learning_rate * weight_decay of the
        parameter away.
      decay_rule: which parameters decay: "standard" spares vectors and scalars (biases, norms,
        temperatures), "all" spares none.
      no_decay: regular expressions, searched in parameter paths such as `text/layer_0/mlp/bias`;
        what any of them is found in is spared too.
      clip_norm: gradients with a larger global norm are scaled down to it; 0 is no clipping.
      ema_decay: decay of a moving average of the parameters (`ema_params` reads it); 0 keeps none.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    warmup_steps: int = 0
    schedule: str = "cosine"
    final_learning_rate: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay_rule: str = "standard"
    no_decay: tuple[str, ...] = ()
    clip_norm: float = 0.0
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
          ValueError: listing every field that is out of range.
        """
        errors = [
            f"{field}={getattr(self, field)!r} is not one of {', '.join(allowed)}"
            for field, allowed in (
                ("name", OPTIMIZERS),
                ("schedule", SCHEDULES),
                ("decay_rule", DECAY_RULES),
            )
            if getattr(self, field) not in allowed
        ]
        for field in ("b1", "b2", "ema_decay"):
            if not 0 <= getattr(self, field) < 1:
                errors.append(f"{field}={getattr(self, field)} is not in [0, 1)")
        for field in (
            "learning_rate",
            "warmup_steps",
            "final_learning_rate",
            "eps",
            "weight_decay",
            "clip_norm",
        ):
            if not getattr(self, field) >= 0:
                errors.append(f"{field}={getattr(self, field)} is negative")
        for pattern in self.no_decay:
            try:
                re.compile(pattern)
            except re.error as error:
                errors.append(f"no_decay pattern {pattern!r} is not a regular expression: {error}")
        if errors:
            raise ValueError("OptimizerConfig: " + "; ".join(errors))


class RateState(NamedTuple):
    """State of the last link of the chain: updates done, and the rate of the last one."""

    count: Int[Array, ""]
    learning_rate: Float[Array, ""]


class EmaState(NamedTuple):
    """Moving average of the parameters, a tree like them."""

    average: PyTree


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Learning rate of each step, counted from 0.

    With peak lr, final rate f, w warm-up steps and T steps in all, step t has
    lr * (t + 1) / w while t < w, then f + (lr - f) * s((t - w) / (T - w)), where s(x) is
    (1 + cos(pi x)) / 2 for "cosine", 1 - x for "linear" and 1 for "constant". The cosine is
    computed as the square of a sine, so that it keeps its digits near the end.

    Args:
      config: the optimizer's configuration.
      num_steps: T, the number of updates of the whole run.

    Returns:
      A function from the step, an int32 scalar, to a float32 scalar. After num_steps it stays at
      the final rate.

    Raises:
      ValueError: if the warm-up is not shorter than the run.

    Example:
      >>> schedule = make_schedule(OptimizerConfig(learning_rate=5e-5, warmup_steps=100), 735)
      >>> [f"{schedule(t):.6e}" for t in (0, 100, 417, 734)]
      ['5.000000e-07', '5.000000e-05', '2.506184e-05', '3.059577e-10']

    References:
      The rule of Chinese CLIP's training code (cn_clip/training/scheduler.py, cosine_lr).
    """
    warmup, peak, final = config.warmup_steps, config.learning_rate, config.final_learning_rate
    if not warmup < num_steps:
        raise ValueError(
            f"warmup_steps={warmup} does not fit into num_steps={num_steps}: the rate would never "
            f"reach learning_rate={peak}; use at most {max(num_steps - 1, 0)}"
        )

    def schedule(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.int32)
        left = jnp.clip((num_steps - step) / (num_steps - warmup), 0.0, 1.0)
        if config.schedule == "cosine":
            share = jnp.square(jnp.sin(jnp.pi / 2 * left))
        elif config.schedule == "linear":
            share = left
        else:
            share = jnp.ones_like(left)
        after = final + (peak - final) * share
        return jnp.where(step < warmup, peak * (step + 1) / max(warmup, 1), after)

    return schedule


def make_optimizer(
    config: OptimizerConfig, num_steps: int, decay_mask: DecayMask | None = None
) -> optax.GradientTransformation:
    """The optimizer of a configuration, with its schedule, decay, clipping and average.

    Args:
      config: what to build.
      num_steps: number of updates of the whole run, where the schedule ends.
      decay_mask: from the parameters to a tree of booleans like them, True where weights decay;
        None takes the rule of the config.

    Returns:
      An optax transformation. Its state holds one float32 tree like the parameters per moment (and
      one for the average), the count and the last learning rate.

    Raises:
      ValueError: if the warm-up is not shorter than the run.

    References:
      Adam with decoupled decay: Loshchilov & Hutter 2019, arXiv:1711.05101. Lion: Chen et al. 2023,
      arXiv:2302.06675. LAMB: You et al. 2020, arXiv:1904.00962; like BERT's code, parameters that
      do not decay have AdamW's step.
    """
    links: list[optax.GradientTransformation] = []
    if config.clip_norm > 0:
        links.append(optax.clip_by_global_norm(config.clip_norm))
    mask = decay_mask or (lambda params: decays(params, config.decay_rule, config.no_decay))
    if config.name in ("adamw", "lamb"):
        links.append(optax.scale_by_adam(config.b1, config.b2, config.eps))
    elif config.name == "lion":
        links.append(optax.scale_by_lion(config.b1, config.b2))
    elif config.b1 > 0:
        links.append(optax.trace(config.b1))
    if config.name == "lamb":
        links.append(optax.masked(scale_like_params(config.weight_decay), mask))
    elif config.weight_decay > 0:
        links.append(optax.add_decayed_weights(config.weight_decay, mask))
    links.append(scale_by_schedule(make_schedule(config, num_steps)))
    if config.ema_decay > 0:
        links.append(average_params(config.ema_decay))
    return optax.chain(*links)


def decays(params: PyTree, rule: str = "standard", no_decay: Sequence[str] = ()) -> PyTree:
    """Which parameters the weight decay applies to.

    Args:
      params: the parameters, arrays or abstract.
      rule: "standard" spares arrays of fewer than two dimensions, "all" spares none.
      no_decay: regular expressions; parameters whose path any of them is found in are spared.

    Returns:
      A tree like `params` of booleans, True where weights decay.

    Example:
      >>> decays({"bias": jnp.ones(2), "kernel": jnp.ones((2, 2)), "lookup": jnp.ones((2, 2))},
      ...        no_decay=("^lookup",))
      {'bias': False, 'kernel': True, 'lookup': False}
    """

    def decide(path: tuple[Any, ...], leaf: Any) -> bool:
        spared = any(re.search(pattern, path_name(path)) for pattern in no_decay)
        return not spared and (rule == "all" or len(leaf.shape) > 1)

    return jax.tree.map_with_path(decide, params)


def scale_like_params(weight_decay: float) -> optax.GradientTransformation:
    """Gives every update, with the decay of its parameter, the norm of the parameter (LAMB).

    A parameter without an update stays as it is: its decay alone, of the parameter's norm, would
    be no decay but the end of it.

    Args:
      weight_decay: share of the parameter that is added to its update.
    """

    def scale(update: Any, param: Any) -> jax.Array:
        decayed = update + jnp.asarray(weight_decay, update.dtype) * param
        wanted, own = (jnp.linalg.norm(array.ravel()) for array in (param, decayed))
        has_both = (wanted > 0) & (own > 0)
        ratio = jnp.where(has_both, wanted / jnp.where(has_both, own, 1.0), 1.0)
        return jnp.where((update != 0).any(), ratio.astype(update.dtype) * decayed, update)

    return optax.stateless_with_tree_map(scale)


def scale_by_schedule(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Multiplies updates by minus the learning rate and remembers it, for `learning_rate`."""

    def init(params: PyTree) -> RateState:
        del params
        return RateState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, RateState]:
        del params
        rate = jnp.asarray(schedule(state.count), jnp.float32)
        scaled = jax.tree.map(lambda u: jnp.asarray(-rate, u.dtype) * u, updates)
        return scaled, RateState(state.count + 1, rate)

    return optax.GradientTransformation(init, update)


def average_params(decay: float) -> optax.GradientTransformation:
    """Keeps a moving average of the updated parameters; updates pass unchanged.

    The average starts as a copy of the first parameters and is float32. It must be the last link
    of a chain, where updates are what is added to the parameters.

    Args:
      decay: share of the old average that each step keeps.
    """

    def init(params: PyTree) -> EmaState:
        return EmaState(jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, EmaState]:
        if params is None:
            raise ValueError("got params=None; the average needs them: tx.update(g, state, params)")

        def blend(average: jax.Array, param: jax.Array, change: jax.Array) -> jax.Array:
            return decay * average + (1 - decay) * (param + change).astype(jnp.float32)

        return updates, EmaState(jax.tree.map(blend, state.average, params, updates))

    return optax.GradientTransformation(init, update)


def learning_rate(opt_state: PyTree) -> Float[Array, ""] | None:
    """Rate of the last update, 0 before the first; None for an optimizer not made here."""
    found = _links(opt_state, RateState)
    return found[0].learning_rate if found else None


def at_step(opt_state: PyTree, step: int) -> PyTree:
    """The optimizer's state with its schedule at another step; moments and averages stay.

    Args:
      opt_state: state of an optimizer of `make_optimizer`.
      step: number of updates after which the schedule goes on.

    Returns:
      A tree like `opt_state`.
    """

    def move(node: Any) -> Any:
        if not isinstance(node, RateState):
            return node
        return node._replace(count=jnp.full_like(node.count, step))

    return jax.tree.map(move, opt_state, is_leaf=lambda node: isinstance(node, RateState))


def ema_params(opt_state: PyTree) -> PyTree:
    """Moving average of the parameters, a tree like them.

    Raises:
      ValueError: if the optimizer keeps none.
    """
    found = _links(opt_state, EmaState)
    if not found:
        raise ValueError("the optimizer keeps no average of the parameters; set ema_decay > 0")
    return found[0].average


def evaluation_params(state: Any, post_update: Callable[[PyTree], PyTree] | None = None) -> PyTree:
    """The parameters to measure and to publish: the average where the optimizer keeps one.

    Args:
      state: a `TrainState`.
      post_update: what the step does to the parameters after an update; the average is of
        parameters before it.

    Returns:
      A tree like `state.params`: its average, or itself.
    """
    found = _links(state.opt_state, EmaState)
    if not found:
        return state.params
    average = found[0].average
    return average if post_update is None else post_update(average)


def _links(opt_state: PyTree, kind: type) -> list[Any]:
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]
