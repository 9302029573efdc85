"""What the numbers and optimizers of an algorithm must be, said before anything is computed."""

import math
import numbers
from typing import Any

import jax
import numpy as np

from jaxlab.federated.strategy import ConfigError


def check_rate(name: str, value: Any, factory: str) -> None:
    """Looks whether the rate of plain gradient steps is a positive number.

    Args:
      name: of the argument.
      value: that was given.
      factory: of the algorithm, which counts on such steps.

    Raises:
      ConfigError: (a ValueError) if it is something else, such as an optimizer.
    """
    if not is_number(value):
        raise ConfigError(
            f"{factory} takes {name}, a number such as 0.1, and got {describe(value)}: its "
            "formulas hold for plain gradient steps, whose optimizer it makes by itself"
        )
    check_positive(factory, **{name: value})


def check_optimizer(name: str, value: Any, factory: str, *, optional: bool = False) -> None:
    """Looks whether something is an optimizer of optax.

    Args:
      name: of the argument.
      value: that was given.
      factory: of the algorithm.
      optional: None is right, too.

    Raises:
      ConfigError: (a ValueError) if it is something else, such as a learning rate.
    """
    if (optional and value is None) or (hasattr(value, "init") and hasattr(value, "update")):
        return
    raise ConfigError(
        f"{factory} takes {name}, an optimizer of optax such as optax.sgd(0.1), and got "
        f"{describe(value)}"
    )


def check_positive(factory: str, **given: Any) -> None:
    """Looks whether numbers are finite and above 0.

    Raises:
      ConfigError: (a ValueError) naming those that are not.
    """
    _check(factory, given, lambda value: value > 0, "a positive number")


def check_not_negative(factory: str, **given: Any) -> None:
    """Looks whether numbers are finite and 0 or more.

    Raises:
      ConfigError: (a ValueError) naming those that are not.
    """
    _check(factory, given, lambda value: value >= 0, "a number, 0 or more")


def is_number(value: Any) -> bool:
    """Whether a value is one real number: of Python, of NumPy, or an array without axes."""
    if isinstance(value, bool):
        return False
    if isinstance(value, numbers.Real):
        return True
    is_plain = getattr(value, "shape", None) == () and hasattr(value, "dtype")
    return is_plain and np.issubdtype(np.dtype(value.dtype), np.number)


def describe(value: Any) -> str:
    """A value in a few words, for errors."""
    if hasattr(value, "init") and hasattr(value, "update"):
        return "an optimizer (init, update)"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    if callable(value):
        return f"the function {getattr(value, '__name__', type(value).__name__)}"
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"


def describe_tree(tree: Any) -> str:
    """The entries of a tree in a few words, for errors."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    told = [
        f"{jax.tree_util.keystr(path, simple=True, separator='/') or 'one array'}: {describe(leaf)}"
        for path, leaf in leaves[:5]
    ]
    more = [f"and {len(leaves) - 5} more"] if len(leaves) > 5 else []
    return "{" + ", ".join(told + more) + "}" if leaves else "nothing"


def _check(factory: str, given: dict[str, Any], holds: Any, wanted: str) -> None:
    wrong = [
        f"{name}={describe(value)}"
        for name, value in given.items()
        if not (is_number(value) and math.isfinite(value) and holds(value))
    ]
    if wrong:
        raise ConfigError(f"{factory}: {' and '.join(wrong)} must be {wanted}")
