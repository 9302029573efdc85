"""Arguments as users give them: lists become arrays, and what is no number is named at once.

Without these, text, None and lists would come to light as errors of NumPy or JAX somewhere inside.
"""

import difflib
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, Shaped


def check_number(value: Any, name: str, wanted: str = "a number") -> None:
    """Refuse what is neither a number nor an array of no dimension.

    Args:
      value: what was given.
      name: of the argument.
      wanted: ends the sentence "...; wanted".

    Raises:
      TypeError: naming the argument, the value and its type.
    """
    is_scalar = (
        hasattr(value, "dtype") and np.ndim(value) == 0 and np.dtype(value.dtype).kind in "fiu"
    )
    if not is_scalar and not isinstance(value, numbers.Real):
        raise TypeError(f"{_named(name, value)}; wanted {wanted}")


def check_integer(value: Any, name: str, wanted: str = "a whole number") -> None:
    """Refuse what is no integer.

    Args:
      value: what was given.
      name: of the argument.
      wanted: ends the sentence "...; wanted".

    Raises:
      TypeError: naming the argument, the value and its type.
    """
    if not isinstance(value, numbers.Integral):
        raise TypeError(f"{_named(name, value)}; wanted {wanted}")


def check_instance(value: Any, kind: type, name: str, hint: str) -> None:
    """Refuse what is not of a type.

    Args:
      value: what was given.
      kind: what is wanted.
      name: of the argument.
      hint: how such a thing is made.

    Raises:
      TypeError: naming the argument and both types.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {_type_of(value)}; wanted a {kind.__name__}: {hint}")


def as_vector(values: Any, name: str) -> Shaped[np.ndarray, " entries"]:
    """A list or array of one dimension as an array of NumPy.

    Args:
      values: sequence, array of NumPy, JAX or Arrow, or column of pandas; without nulls.
      name: of the argument.

    Raises:
      TypeError: if it is None, a text or a single value, or a list of texts and others.
      ValueError: if it has another number of dimensions or holds a null.
    """
    if isinstance(values, (str, bytes, dict)) or not hasattr(values, "__len__"):
        raise TypeError(f"{name} is {_type_of(values)}; wanted a list or an array of one dimension")
    num_nulls = getattr(values, "null_count", 0)
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} is no array of one dimension: {error}") from error
    if isinstance(values, (list, tuple)):
        array = _without_losses(array, values, name)
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}; wanted one column, a vector")
    if num_nulls or (array.dtype.kind == "O" and any(value is None for value in array.tolist())):
        raise ValueError(f"{name} has nulls; leave them out, they are no values")
    return array


def as_integers(values: Any, name: str) -> Int64[np.ndarray, " entries"]:
    """A list or array of whole numbers as int64.

    Args:
      values: of `as_vector`.
      name: of the argument.

    Raises:
      TypeError: if it holds something else than numbers, or is nothing of `as_vector`.
      ValueError: if a number is not whole, or as `as_vector`.
    """
    array = as_vector(values, name)
    if not len(array):
        return np.zeros(0, np.int64)
    _check_numeric(array, name)
    if array.dtype.kind == "f" and (bad := array[array != np.rint(array)]).size:
        raise ValueError(f"{name} has the entry {bad[0]}; wanted whole numbers")
    return array.astype(np.int64)


def as_reals(values: Any, name: str) -> Float64[np.ndarray, " entries"]:
    """A list or array of numbers as float64.

    Args:
      values: of `as_vector`.
      name: of the argument.

    Raises:
      TypeError: if it holds something else than numbers, or is nothing of `as_vector`.
      ValueError: as `as_vector`.
    """
    array = as_vector(values, name)
    if len(array):
        _check_numeric(array, name)
    return array.astype(np.float64)


def known_name(name: Any, known: Iterable[str]) -> str | None:
    """The name as it is written, for any case of letters; None if there is none.

    Args:
      name: what was given.
      known: names in capitals.
    """
    if not isinstance(name, str):
        return None
    return name.upper() if name.upper() in known else None


def list_names(name: Any, known: Iterable[str]) -> str:
    """The end of a message about a name that does not exist: the nearest one, and all.

    Args:
      name: what was given.
      known: names in capitals.
    """
    names = list(known)
    near = difflib.get_close_matches(str(name).upper(), names, n=1)
    start = f"; did you mean {near[0]}? There are " if near else "; there are "
    return start + ", ".join(names)


def _without_losses(array: np.ndarray, values: list | tuple, name: str) -> np.ndarray:
    """The array of a list, unless NumPy made different entries equal to give them one type."""
    if array.dtype.kind in "US" and len({type(value) for value in values}) > 1:
        raise TypeError(f"{name} has texts and entries of other types; convert them to one")
    if array.dtype.kind == "f" and all(isinstance(value, numbers.Integral) for value in values):
        return np.fromiter(values, object, len(values))  # integers from 2^63 on among others
    return array


def _check_numeric(array: np.ndarray, name: str) -> None:
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} holds {array.tolist()[0]!r}; wanted numbers")


def _type_of(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _named(name: str, value: Any) -> str:
    return f"{name} is None" if value is None else f"{name}={value!r} is {_type_of(value)}"
