"""Small checks that settings share: a sentence for every mistake, all in one error."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxlab.federated import ConfigError


def misplaced(config: Any, key: str, uses: Mapping[str, Sequence[str]]) -> list[str]:
    """A sentence for every setting that is changed and that nothing reads.

    Args:
      config: an instance of a config dataclass.
      key: the setting that says which others are read.
      uses: setting -> the values of `key` with which it is read.
    """
    chosen = getattr(config, key)
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    return [
        f"{name}={getattr(config, name)!r} changes nothing with {key}={chosen!r}; it is for "
        f"{' and '.join((', '.join(names[:-1]), names[-1])) if len(names) > 1 else names[0]}: "
        f"leave it at {defaults[name]!r}, or choose another {key}"
        for name, names in uses.items()
        if chosen not in names and getattr(config, name) != defaults[name]
    ]


def below(config: Any, **least: float) -> list[str]:
    """A sentence for every number that is too small.

    Args:
      config: an instance of a config dataclass.
      least: setting -> what it must be at least; 0 means that it must be positive.
    """
    return [
        f"{name}={getattr(config, name)} must be {'positive' if not low else f'at least {low:g}'}"
        for name, low in least.items()
        if not (getattr(config, name) >= low if low else getattr(config, name) > 0)
    ]


def negative(config: Any, *names: str) -> list[str]:
    """A sentence for every one of these settings that is negative."""
    return [
        f"{name}={getattr(config, name)} must not be negative"
        for name in names
        if not getattr(config, name) >= 0
    ]


def not_a_factory(name: str, value: str, example: str) -> list[str]:
    """A sentence if a text does not name a function as `package.module:function`.

    Args:
      name: of the setting.
      value: its value.
      example: what it might be.
    """
    if re.fullmatch(r"\w+(\.\w+)*:\w+", value):
        return []
    return [f"{name}={value!r} must name a function, such as {example!r}"]


def refuse(problems: Sequence[str]) -> None:
    """Raises ConfigError (a ValueError) with all sentences, if there are any."""
    if problems:
        raise ConfigError("; ".join(problems))
