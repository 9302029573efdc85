"""Rules that say how each parameter is laid out on the mesh, and trees of shardings made from them.

Networks carry no sharding annotations. A `ShardingRules` is applied to the abstract tree (shapes by
`jax.eval_shape`), so that parameters, moments and averages are never all on one device.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jaxlab.parallel.mesh import DATA_AXIS, MESH_AXES

AxisNames = tuple[str | None, ...]


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """How parameters are laid out: a table of path patterns, then FSDP for what it leaves.

    Made by `ShardingRules.replicated()`, `.fsdp(...)` or `.from_table(...)`.

    Attributes:
      table: pairs of a regular expression, searched in the parameter's path (`layer_0/mlp/kernel`),
        and a mesh axis or None for each dimension. The first match decides.
      fsdp_min_size: parameters of at least this many elements have their largest divisible
        dimension sharded over `data`, also where the table took another one; None for no FSDP.
    """

    table: tuple[tuple[str, AxisNames], ...] = ()
    fsdp_min_size: int | None = None

    def __post_init__(self) -> None:
        """Check the patterns and axis names.

        Raises:
          ValueError: listing every bad pattern, axis name or size.
        """
        errors = []
        if self.fsdp_min_size is not None and self.fsdp_min_size < 1:
            errors.append(f"fsdp_min_size={self.fsdp_min_size} is not positive; use 1 or more")
        for pattern, axes in self.table:
            try:
                re.compile(pattern)
            except re.error as error:
                errors.append(f"pattern {pattern!r} is not a regular expression: {error}")
            used = [axis for axis in axes if axis is not None]
            if unknown := sorted(set(used) - set(MESH_AXES)):
                errors.append(f"{pattern!r} names axes {unknown}; the mesh has {MESH_AXES}")
            if len(used) != len(set(used)):
                errors.append(f"{pattern!r} uses an axis twice: {axes}; a mesh axis splits once")
        if errors:
            raise ValueError("sharding rules: " + "; ".join(errors))

    @classmethod
    def replicated(cls) -> "ShardingRules":
        """Every device holds every parameter."""
        return cls()

    @classmethod
    def fsdp(cls, min_size: int = 2**16) -> "ShardingRules":
        """Parameters of at least `min_size` elements are sharded over `data`.

        Args:
          min_size: below it gathering costs more than the memory saved.
        """
        return cls(fsdp_min_size=min_size)

    @classmethod
    def from_table(
        cls, table: Mapping[str, AxisNames], fsdp_min_size: int | None = None
    ) -> "ShardingRules":
        """Explicit layouts by path pattern, for the `model` axis.

        Args:
          table: regular expression -> mesh axis or None for each dimension, in order of priority.
          fsdp_min_size: as in `fsdp`, for what the table leaves free.

        Example:
          >>> rules = ShardingRules.from_table({r"mlp/up/kernel$": (None, "model")})
          >>> rules.table
          (('mlp/up/kernel$', (None, 'model')),)
        """
        return cls(table=tuple(table.items()), fsdp_min_size=fsdp_min_size)


def param_shardings(
    mesh: Mesh, abstract_params: PyTree, rules: ShardingRules
) -> PyTree[NamedSharding]:
    """Sharding of every parameter under the rules.

    Args:
      mesh: the mesh.
      abstract_params: tree of arrays or `jax.ShapeDtypeStruct`s.
      rules: the rules.

    Returns:
      A tree of the same structure with a `NamedSharding` for every leaf.

    Raises:
      ValueError: one error for all parameters whose table entry does not fit (more axes than
        dimensions, dimension not divisible) and all patterns that match no parameter.

    Example:
      >>> from jaxlab.parallel import make_mesh
      >>> params = {"kernel": jax.ShapeDtypeStruct((4, 8), "float32")}
      >>> mesh = make_mesh(devices=jax.devices()[:1])
      >>> spec = param_shardings(mesh, params, ShardingRules.fsdp(min_size=16))["kernel"].spec
      >>> tuple(spec)
      (None, 'data')
    """
    leaves, treedef = jax.tree.flatten_with_path(abstract_params)
    errors: list[str] = []
    matches: Counter[str] = Counter()
    shardings = []
    for path, leaf in leaves:
        axes, problems = _axes_of(mesh, path_name(path), leaf.shape, rules, matches)
        errors.extend(problems)
        shardings.append(NamedSharding(mesh, PartitionSpec(*axes)))
    errors.extend(
        f"pattern {pattern!r} matches no parameter; remove or correct it"
        for pattern, _ in rules.table
        if not matches[pattern]
    )
    if errors:
        raise ValueError("sharding rules do not fit the parameters: " + "; ".join(errors))
    return jax.tree.unflatten(treedef, shardings)


def state_shardings(
    mesh: Mesh, abstract_state: PyTree, abstract_params: PyTree, rules: ShardingRules
) -> PyTree[NamedSharding]:
    """Sharding of every leaf of a training state that contains copies of the parameter tree.

    A leaf whose path ends in the path of a parameter and has its shape (the parameter itself, an
    optimizer moment, a moving average) is laid out like that parameter. The others follow the FSDP
    rule by size; scalars and small arrays are replicated.

    Args:
      mesh: the mesh.
      abstract_state: tree of arrays or `jax.ShapeDtypeStruct`s (an optimizer state, a train state).
      abstract_params: the parameters.
      rules: the rules.

    Returns:
      A tree of the structure of `abstract_state` with a `NamedSharding` for every leaf.

    Raises:
      ValueError: as `param_shardings`.
    """
    shardings = jax.tree.leaves(param_shardings(mesh, abstract_params, rules))
    params = jax.tree.leaves_with_path(abstract_params)
    like = {
        (path_name(path), leaf.shape): sharding
        for (path, leaf), sharding in zip(params, shardings, strict=True)
    }

    def choose(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        for start in range(len(path) + 1):
            if (found := like.get((path_name(path[start:]), leaf.shape))) is not None:
                return found
        axes = _with_fsdp(mesh, (None,) * len(leaf.shape), leaf.shape, rules.fsdp_min_size)
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map_with_path(choose, abstract_state)


def with_shardings(abstract: PyTree, shardings: PyTree[NamedSharding]) -> PyTree:
    """The abstract tree with its shardings attached: what a checkpoint is restored into.

    Args:
      abstract: tree of arrays or `jax.ShapeDtypeStruct`s.
      shardings: tree of the same structure.

    Returns:
      A tree of `jax.ShapeDtypeStruct` with shape, dtype and sharding.
    """

    def attach(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(attach, abstract, shardings)


def path_name(path: tuple[Any, ...]) -> str:
    """A key path of `jax.tree` as text.

    Example:
      >>> [(path, _)] = jax.tree.leaves_with_path({"layer_0": {"kernel": 1}})
      >>> path_name(path)
      'layer_0/kernel'
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _axes_of(
    mesh: Mesh,
    name: str,
    shape: tuple[int, ...],
    rules: ShardingRules,
    matches: Counter[str],
) -> tuple[AxisNames, list[str]]:
    """Mesh axis of each dimension, and what is wrong with the table entry; counts the matches."""
    axes: AxisNames = (None,) * len(shape)
    hits = [entry for entry in rules.table if re.search(entry[0], name)]
    matches.update(pattern for pattern, _ in hits)
    if hits:
        pattern, given = hits[0]
        if len(given) > len(shape):
            return axes, [f"{name} of shape {shape} has fewer dimensions than {pattern!r}: {given}"]
        axes = given + (None,) * (len(shape) - len(given))
        problems = [
            f"{name} of shape {shape}: dimension {size} is not divisible by {mesh.shape[axis]}, "
            f"the size of the mesh axis {axis!r} that {pattern!r} gives it"
            for axis, size in zip(axes, shape, strict=True)
            if axis is not None and size % mesh.shape[axis]
        ]
        if problems:
            return axes, problems
    return _with_fsdp(mesh, axes, shape, rules.fsdp_min_size), []


def _with_fsdp(
    mesh: Mesh, axes: AxisNames, shape: tuple[int, ...], min_size: int | None
) -> AxisNames:
    """`axes` with the largest free divisible dimension over `data`, if the array is big enough."""
    if min_size is None or DATA_AXIS in axes or math.prod(shape) < min_size:
        return axes
    free = [
        i for i, size in enumerate(shape) if axes[i] is None and size % mesh.shape[DATA_AXIS] == 0
    ]
    if not free:
        return axes
    chosen = max(free, key=lambda i: shape[i])
    return tuple(DATA_AXIS if i == chosen else axis for i, axis in enumerate(axes))
