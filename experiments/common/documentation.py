"""The documentation of a config's fields, read from the `Attributes:` sections of its classes."""

import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

_ENTRY = re.compile(r"^(\w+)(?: \([^)]*\))?:\s*(.*)$")


def field_documentation(config_class: type) -> dict[str, str]:
    """The text of every field that the `Attributes:` sections of a class and its bases describe.

    Args:
      config_class: a dataclass with Google docstrings.

    Returns:
      Field name -> its text on one line, in the order of the docstrings; a class's own text wins
      over that of a base. Fields without a text are absent.
    """
    texts: dict[str, str] = {}
    for cls in reversed(config_class.__mro__):
        if cls is not object and cls.__doc__:
            texts.update(_attributes(inspect.cleandoc(cls.__doc__)))
    names = {field.name for field in dataclasses.fields(config_class)}
    return {name: text for name, text in texts.items() if name in names}


def _attributes(docstring: str) -> dict[str, str]:
    """Entries of the `Attributes:` section: an entry begins at the section's first indentation."""
    lines = iter(docstring.splitlines())
    if not any(line.strip() == "Attributes:" for line in lines):
        return {}
    entries: dict[str, list[str]] = {}
    name, entry_indent = None, None
    for line in lines:
        text, indent = line.strip(), len(line) - len(line.lstrip())
        if not text:
            continue
        if indent == 0:
            break
        entry_indent = indent if entry_indent is None else entry_indent
        match = _ENTRY.match(text) if indent == entry_indent else None
        if match:
            name = match.group(1)
            entries[name] = [match.group(2)]
        elif name is not None:
            entries[name].append(text)
    return {name: " ".join(parts).strip() for name, parts in entries.items()}


def describe_config(config: Any, name: str = "config") -> str:
    """A resolved config as text: every value as the flag that sets it, its documentation below.

    Args:
      config: an instance of a config dataclass; dataclasses in its fields are described in place.
      name: name of the flag that holds the config.

    Returns:
      One line `name.field = value` a field, each followed by its indented text, its default and its
      possible values; at most 100 columns except for long values.
    """
    return "\n".join(_describe(config, name))


def _describe(config: Any, path: str) -> Iterator[str]:
    summary = inspect.cleandoc(type(config).__doc__ or "").split("\n\n")[0].replace("\n", " ")
    yield f"{path}: {type(config).__name__}"
    yield from _indented(summary)
    texts = field_documentation(type(config))
    hints, nested = typing.get_type_hints(type(config)), []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            nested.append((f"{path}.{field.name}", value))
            continue
        yield f"{path}.{field.name} = {_literal(value)}"
        yield from _indented(texts.get(field.name, ""))
        yield from _indented(_possible(field, hints[field.name]))
    for nested_path, value in nested:
        yield ""
        yield from _describe(value, nested_path)


def _possible(field: dataclasses.Field[Any], hint: Any) -> str:
    """The default of a field, and the values that it may have where they are few."""
    parts = []
    if field.default is not dataclasses.MISSING:
        parts.append(f"Default: {_literal(field.default)}.")
    elif field.default_factory is not dataclasses.MISSING:
        parts.append(f"Default: {_literal(field.default_factory())}.")
    for arm in (hint, *typing.get_args(hint)):
        if typing.get_origin(arm) is Literal:
            number = "One" if arm is hint else "Each one"
            parts.append(f"{number} of {', '.join(map(repr, typing.get_args(arm)))}.")
    return " ".join(parts)


def _literal(value: Any) -> str:
    """A value as it is written in a config file; mappings as plain dicts."""
    return repr(dict(value)) if isinstance(value, Mapping) else repr(value)


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, 96, initial_indent="    ", subsequent_indent="    ")
