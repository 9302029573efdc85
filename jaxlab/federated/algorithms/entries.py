"""Entries of a model by name: which are shared with the server, and which stay with a client.

The name of an entry is its path: `params/Dense_0/kernel`, `batch_stats/BatchNorm_0/mean`.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import PyTree

from jaxlab.federated.strategy import ConfigError

IsEntry = Callable[[str], bool]
"""`name -> whether the entry is meant`."""

FORMS = ("part", "prefix", "substring", "regex")


def named(*patterns: str, form: str = "part") -> IsEntry:
    """Entries by name.

    Args:
      patterns: any of them may match.
      form: `part`, a whole part of the path (`Dense_1` but not `Dense_10`); `prefix`, the parts
        that the path begins with (`params/Dense_1`); `substring`, anywhere, as the original
        matches (`Dense_1` is in `Dense_10`, too); `regex`, a regular expression, anywhere.

    Raises:
      ConfigError: (a ValueError) if there is no pattern or no such form.

    Example:
      >>> is_head = named("Dense_1")
      >>> is_head("params/Dense_1/kernel"), is_head("params/Dense_10/kernel")
      (True, False)
    """
    if not patterns or form not in FORMS:
        raise ConfigError(
            f"named{patterns} with form={form!r}: give at least one pattern, and a form of "
            f"{', '.join(FORMS)}"
        )
    matches: dict[str, Callable[[str, str], bool]] = {
        "part": lambda pattern, name: pattern in name.split("/"),
        "prefix": lambda pattern, name: f"{name}/".startswith(f"{pattern.rstrip('/')}/"),
        "substring": lambda pattern, name: pattern in name,
        "regex": lambda pattern, name: re.search(pattern, name) is not None,
    }
    match = matches[form]
    return lambda name: any(match(pattern, name) for pattern in patterns)


def is_normalization(name: str) -> bool:
    """Entries of normalisation layers, as flax names them: what FedBN keeps local."""
    return named(
        r"(^|/)((Batch|Layer|Group|RMS|Instance)Norm(_\d+)?|bn\d*|norm\d*)/", form="regex"
    )(name)


def entry_names(tree: PyTree) -> list[str]:
    """The names of all entries of a tree, in the order of its leaves."""
    return [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def pick(tree: PyTree, is_entry: IsEntry) -> PyTree:
    """The tree with only some of its entries, and None, which is no leaf, for the others."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if is_entry(_name(path)) else None, tree
    )


def split(tree: PyTree, is_entry: IsEntry) -> tuple[PyTree, PyTree]:
    """The entries that are meant, and the others; `merge` puts them together again."""
    return pick(tree, is_entry), pick(tree, lambda name: not is_entry(name))


def merge(one: PyTree, other: PyTree) -> PyTree:
    """Two trees of which each has what the other leaves out."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, one, other, is_leaf=lambda leaf: leaf is None
    )


def check_named(tree: PyTree, is_entry: IsEntry, what: str) -> None:
    """Looks whether a name means some entries, and not all.

    Raises:
      ConfigError: (a ValueError) if it means none, or leaves none.
    """
    names = entry_names(tree)
    meant = [name for name in names if is_entry(name)]
    if not meant or len(meant) == len(names):
        raise ConfigError(
            f"{what}: {len(meant)} of {len(names)} entries match; wanted some, but not all, of "
            f"{', '.join(names)}"
        )


def train_only(
    tx: optax.GradientTransformation, is_trained: IsEntry
) -> optax.GradientTransformation:
    """The optimizer for some parameters, and none for the others.

    Args:
      tx: optimizer.
      is_trained: which are trained; names begin with `params/` here, too.
    """

    def label(params: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "trained" if is_trained(f"params/{_name(path)}") else "frozen", params
        )

    return optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, label)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
