"""Config dicts of ml_collections to the library's frozen dataclasses and back.

The library takes frozen, typed dataclasses and knows neither flags nor config dicts. A config file
builds its `ConfigDict` with `to_config_dict` from a dataclass instance, the command line changes
single values of it, and `run_config` makes the dataclass again: every key known, every value of the
field's type, every mistake in one error.
"""

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import numpy as np
from ml_collections import config_dict

T = TypeVar("T")
_SCALARS = (bool, int, float, str)


def to_config_dict(value: Any) -> config_dict.ConfigDict:
    """The config dict of a dataclass instance, nested dataclasses as nested config dicts.

    A field that is None becomes a typed placeholder, so that the command line can set it; integers
    in float fields become floats, paths become strings, sequences become tuples.

    Args:
      value: a dataclass instance.

    Returns:
      An unlocked config dict with one key a field.

    Raises:
      TypeError: if `value` is not a dataclass instance.
    """
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise TypeError(f"got {value!r}; wanted an instance of a config dataclass")
    hints = typing.get_type_hints(type(value))
    return config_dict.ConfigDict(
        {
            field.name: _encode(getattr(value, field.name), hints[field.name])
            for field in dataclasses.fields(value)
            if field.init
        }
    )


def _encode(value: Any, hint: Any) -> Any:
    """A field's value as the config dict stores it."""
    if value is None:
        return config_dict.placeholder(_flag_type(hint))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_config_dict(value)
    if isinstance(value, Mapping):
        return config_dict.ConfigDict({key: _encode(item, Any) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return tuple(_encode(item, Any) for item in value)
    if isinstance(value, int) and not isinstance(value, bool) and float in _arms(hint):
        return value if int in _arms(hint) else float(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, _SCALARS):
        return value
    return np.dtype(value).name


def _arms(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the one type that is none."""
    is_union = typing.get_origin(hint) in (Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _flag_type(hint: Any) -> type:
    """The type under which the command line parses a value of this annotation."""
    arm = next((arm for arm in _arms(hint) if arm is not types.NoneType), str)
    origin = typing.get_origin(arm) or arm
    if origin is Literal:
        return type(typing.get_args(arm)[0])
    if dataclasses.is_dataclass(origin) or origin in (dict, Mapping):
        return config_dict.ConfigDict
    if origin in (tuple, list) or origin is Sequence:
        return tuple
    return origin if origin in _SCALARS else str


def run_config(config: Mapping[str, Any], config_class: type[T], name: str = "config") -> T:
    """The dataclass that a config dict describes, with every value checked against its field.

    Args:
      config: a `ConfigDict` or plain mapping. A key that is missing takes the field's default.
      config_class: the (frozen) dataclass to build; its fields may be other dataclasses.
      name: name of the flag that holds the config, for the messages.

    Returns:
      An instance of `config_class`.

    Raises:
      ValueError: all unknown keys (each with the nearest valid one), values of a wrong type,
        missing values and what the dataclasses' own checks refuse, one a line.
    """
    errors: list[str] = []
    result = _build(config, config_class, name, errors, field_paths(config_class, name))
    if errors:
        raise ValueError("\n".join(errors))
    return result  # pyrefly: ignore[bad-return]


def field_paths(config_class: type, name: str = "config") -> list[str]:
    """The dotted path of every field of a config dataclass and of the dataclasses in it.

    Args:
      config_class: a dataclass.
      name: the first component of every path.

    Returns:
      Paths such as `config.optimizer.learning_rate`, a dataclass before its fields.
    """
    paths = []
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        path = f"{name}.{field.name}"
        paths.append(path)
        for arm in _arms(hints[field.name]):
            if dataclasses.is_dataclass(arm) and isinstance(arm, type):
                paths.extend(field_paths(arm, path))
    return paths


def nearest_path(path: str, valid: Sequence[str]) -> str | None:
    """The valid path that a mistyped one most likely means.

    Args:
      path: a dotted path that is not in `valid`.
      valid: dotted paths in the order of their fields.

    Returns:
      A path with the same last component if there is one (the right key at the wrong place; the
      first below the mistyped path's parent, else the one whose parent is spelt most alike), else
      the last component spelt most alike, of a neighbour before others (which must be nearly the
      same where there are neighbours), else None.
    """
    parent, _, last = path.rpartition(".")
    valid = [other for other in valid if not path.startswith(f"{other}.")]
    same_name = [other for other in valid if other.rsplit(".", 1)[-1] == last]
    if below := [other for other in same_name if other.startswith(f"{parent}.")]:
        return below[0]
    if same_name:
        return difflib.get_close_matches(path, same_name, n=1, cutoff=0.0)[0]
    neighbours = [other for other in valid if other.rpartition(".")[0] == parent]
    # Elsewhere only what is nearly the same: the neighbours are the better hint otherwise.
    for candidates, cutoff in ((neighbours, 0.6), (valid, 0.8 if neighbours else 0.6)):
        by_last = {other.rsplit(".", 1)[-1]: other for other in reversed(candidates)}
        if close := difflib.get_close_matches(last, by_last, n=1, cutoff=cutoff):
            return by_last[close[0]]
    return None


def unknown_key(path: str, valid: Sequence[str]) -> str:
    """The message for a key that does not exist: the nearest valid one, else its neighbours.

    Args:
      path: dotted path of the key.
      valid: dotted paths that exist.

    Returns:
      One sentence.
    """
    parents = [other for other in valid if path.startswith(f"{other}.")]
    if parents and not any(other.startswith(f"{parents[-1]}.") for other in valid):
        return (
            f"{path} does not exist: {parents[-1]} has no fields in this config, it is one value "
            "or None; begin with a config file that gives it some"
        )
    nearest = nearest_path(path, valid)
    if nearest is not None:
        return f"{path} does not exist; the nearest valid key is {nearest}"
    parent = path.rsplit(".", 1)[0]
    siblings = [other for other in valid if other.rsplit(".", 1)[0] == parent]
    return f"{path} does not exist; valid keys are {', '.join(siblings or valid)}"


def _build(config: Any, cls: type, path: str, errors: list[str], valid: Sequence[str]) -> Any:
    """An instance of `cls`, or None after appending what is wrong."""
    if isinstance(config, cls):
        return config
    if not isinstance(config, Mapping | config_dict.ConfigDict):
        errors.append(_wrong_type(path, config, cls))
        return None
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    num_errors = len(errors)
    values = {}
    for key, value in config.items():
        if key in fields and value is None and types.NoneType not in _arms(hints[key]):
            errors.append(_cannot_unset(f"{path}.{key}", fields[key], hints[key]))
        elif key in fields:
            values[key] = _decode(value, hints[key], f"{path}.{key}", errors, valid)
        else:
            errors.append(unknown_key(f"{path}.{key}", valid))
    for key, field in fields.items():
        has_default = not (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if key not in values and not has_default:
            wanted = inspect.formatannotation(hints[key])
            errors.append(f"{path}.{key} is missing; give it a value of type {wanted}")
    if len(errors) > num_errors:
        return None
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:
        errors.append(f"{path}: {error}")
        return None


def _decode(value: Any, hint: Any, path: str, errors: list[str], valid: Sequence[str]) -> Any:
    """The field's value from what the config dict stores, or None after appending an error."""
    arms = _arms(hint)
    if len(arms) == 1:
        return _decode_one(value, hint, path, errors, valid)
    if value is None and types.NoneType in arms:
        return None
    arms = tuple(arm for arm in arms if arm is not types.NoneType)
    attempts = []
    for arm in arms:
        attempt: list[str] = []
        result = _decode_one(value, arm, path, attempt, valid)
        if not attempt:
            return result
        attempts.append(attempt)
    is_mapping = isinstance(value, Mapping | config_dict.ConfigDict)
    nearest = min(attempts, key=len) if is_mapping or len(arms) == 1 else None
    errors.extend(nearest or [_wrong_type(path, value, hint)])
    return None


def _decode_one(value: Any, hint: Any, path: str, errors: list[str], valid: Sequence[str]) -> Any:
    """`_decode` for an annotation that is no union."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _build(value, hint, path, errors, valid)
    if origin is Literal:
        if value not in args:
            errors.append(_not_allowed(path, value, args))
        return value
    if hint is tuple or origin in (tuple, list, Sequence):
        return _decode_sequence(value, hint, path, errors, valid)
    if hint in (dict, Mapping) or origin in (dict, Mapping):
        if not isinstance(value, Mapping | config_dict.ConfigDict):
            errors.append(_wrong_type(path, value, hint))
            return None
        item = args[1] if args else Any
        return {
            key: _decode(each, item, f"{path}.{key}", errors, valid) for key, each in value.items()
        }
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    is_flag_as_number = isinstance(value, bool) and hint in (int, float)
    if hint in _SCALARS and (is_flag_as_number or not isinstance(value, hint)):
        errors.append(_wrong_type(path, value, hint))
    return value


def _decode_sequence(
    value: Any, hint: Any, path: str, errors: list[str], valid: Sequence[str]
) -> Any:
    """A tuple field: `tuple[int, ...]` of any length, `tuple[int, str]` of exactly these."""
    args = typing.get_args(hint)
    if not isinstance(value, list | tuple):
        errors.append(f"{_wrong_type(path, value, hint)}, written as (1,) or (1, 2)")
        return None
    any_length = typing.get_origin(hint) is not tuple or args[1:] == (Ellipsis,) or not args
    if not any_length and len(args) != len(value):
        errors.append(f"{path}={value!r} has {len(value)} items; wanted exactly {len(args)}")
        return None
    items = (args[:1] or (Any,)) * len(value) if any_length else args
    return tuple(
        _decode(each, item, f"{path}[{index}]", errors, valid)
        for index, (each, item) in enumerate(zip(value, items, strict=True))
    )


def _cannot_unset(path: str, field: dataclasses.Field[Any], hint: Any) -> str:
    wanted = f"{path}=None, and it has no state without a value; "
    if dataclasses.is_dataclass(hint):
        return f"{wanted}set single ones of its fields, {path}.NAME=VALUE"
    if field.default is dataclasses.MISSING:
        return f"{wanted}give a value of type {inspect.formatannotation(hint)}"
    return f"{wanted}its default is {path}={field.default!r}"


def _wrong_type(path: str, value: Any, hint: Any) -> str:
    wanted = inspect.formatannotation(hint)
    return f"{path}={value!r} is a {type(value).__name__}; wanted {wanted}"


def _not_allowed(path: str, value: Any, allowed: Sequence[Any]) -> str:
    close = difflib.get_close_matches(str(value), [str(item) for item in allowed], n=1)
    nearest = f"; the nearest is {close[0]!r}" if close else ""
    return f"{path}={value!r} is not one of {', '.join(map(repr, allowed))}{nearest}"
