"""The state of a course, or of its server, as a tree that has bytes, and back.

Records and collections become `(name, content)`. What comes back is made of the records that are
named here, and of nothing else.
"""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxlab.federated.client import ClientState
from jaxlab.federated.messages import Message
from jaxlab.federated.server_state import (
    Aggregation,
    Evaluating,
    Evaluation,
    Received,
    Request,
    ServerState,
)
from jaxlab.federated.simulation import CourseState

_RECORDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        Aggregation, ClientState, CourseState, Evaluating, Evaluation, Message, Received, Request,
        ServerState,
    )
}  # fmt: skip
_COLLECTIONS: dict[str, type] = {
    "tuple": tuple, "set": set, "deque": collections.deque, "Counter": collections.Counter
}  # fmt: skip


def to_tree(value: Any) -> Any:
    """A state as a tree that `wire` writes, if what is in it has bytes.

    Args:
      value: a record, with records, collections, numbers, texts and arrays in it.
    """
    name = type(value).__name__
    if name in _RECORDS and type(value) is _RECORDS[name]:
        if dataclasses.is_dataclass(value):
            fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        else:
            fields = value._asdict()
        return name, {field: to_tree(content) for field, content in fields.items()}
    if isinstance(value, collections.Counter):
        return "Counter", dict(value)
    if isinstance(value, tuple | set | collections.deque):
        kind = next(kind for kind, known in _COLLECTIONS.items() if isinstance(value, known))
        return kind, [to_tree(part) for part in value]
    if isinstance(value, list):
        return [to_tree(part) for part in value]
    if isinstance(value, Mapping):
        return {key: to_tree(part) for key, part in value.items()}
    return value


def from_tree(value: Any) -> Any:
    """A state from its tree; arrays are copied.

    Args:
      value: what `to_tree` gave.

    Raises:
      KeyError: if a record is unknown.
      TypeError: if one has other fields.
    """
    if isinstance(value, list):
        return [from_tree(part) for part in value]
    if isinstance(value, dict):
        return {key: from_tree(part) for key, part in value.items()}
    if not isinstance(value, tuple):
        return np.array(value) if isinstance(value, np.ndarray) else value
    kind, content = value
    if kind in _RECORDS:
        return _RECORDS[kind](**{field: from_tree(part) for field, part in content.items()})
    return _COLLECTIONS[kind](from_tree(content))
