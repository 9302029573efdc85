"""The state of a run, and the separation of trained from frozen parameters."""

import re
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree


@flax.struct.dataclass
class TrainState:
    """Everything that a step reads and replaces, and that a checkpoint holds.

    Attributes:
      step: number of updates done, int32 scalar. It is also the position in the input.
      params: parameters that are trained, float32.
      extra: arrays that change without a gradient (batch statistics, queues); `{}` if none.
      opt_state: state of the optimizer over `params`.
      key: typed key of the run, never changed; step s draws from `fold_in(key, s)`.
    """

    step: Any
    params: PyTree
    extra: PyTree
    opt_state: PyTree
    key: Any

    @classmethod
    def create(
        cls,
        params: PyTree,
        tx: optax.GradientTransformation,
        key: jax.Array,
        extra: PyTree | None = None,
    ) -> "TrainState":
        """The state before the first update. Jittable.

        Args:
          params: parameters to train.
          tx: the optimizer.
          key: typed key (`jax.random.key`), used for nothing else.
          extra: arrays that change without a gradient.
        """
        return cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            extra={} if extra is None else extra,
            opt_state=tx.init(params),
            key=key,
        )


def split_params(params: PyTree, pattern: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separates the parameters that train from those that stay as they are.

    Args:
      params: nested dictionaries of arrays.
      pattern: regular expression, searched in paths such as `image/layer_0/kernel`: what it is
        found in is frozen. "" freezes nothing.

    Returns:
      (trained, frozen), two trees without each other's leaves; `merge_params` joins them again.

    Raises:
      ValueError: if the pattern freezes nothing, or everything.

    Example:
      >>> split_params({"image": {"w": 1}, "text": {"w": 2}}, "^image/")
      ({'text': {'w': 2}}, {'image': {'w': 1}})
    """
    flat = flatten_dict(params)
    frozen = {path for path in flat if pattern and re.search(pattern, "/".join(path))}
    if pattern and len(frozen) in (0, len(flat)):
        raise ValueError(
            f"the pattern {pattern!r} freezes {'all' if frozen else 'none'} of {len(flat)} "
            f"parameters; their paths start with {sorted({path[0] for path in flat})}"
        )
    return (
        unflatten_dict({path: leaf for path, leaf in flat.items() if path not in frozen}),
        unflatten_dict({path: leaf for path, leaf in flat.items() if path in frozen}),
    )


def merge_params(trained: PyTree, frozen: PyTree) -> dict[str, Any]:
    """One tree of parameters from the two that `split_params` made.

    Raises:
      ValueError: if both have the same leaf.

    Example:
      >>> merge_params({"text": {"w": 2}}, {"image": {"w": 1}})
      {'text': {'w': 2}, 'image': {'w': 1}}
    """
    left, right = flatten_dict(trained), flatten_dict(frozen)
    if both := sorted("/".join(path) for path in left.keys() & right.keys()):
        raise ValueError(f"parameters are both trained and frozen: {', '.join(both)}")
    return unflatten_dict({**left, **right})
