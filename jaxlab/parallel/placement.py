"""Moving arrays between the host and the mesh: batches, parameters, whole states, and back."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jaxlab.parallel.mesh import DATA_AXIS, data_process
from jaxlab.parallel.sharding import ShardingRules, path_name, state_shardings

HOST_FIELDS = ("example_id",)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of an array whose first dimension, the batch, is split over `data`."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def split_host_fields(
    batch: Mapping[str, Any], host_fields: tuple[str, ...] = HOST_FIELDS
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a batch into the fields a device can hold and those that stay on the host.

    On the host stay the named fields and every field whose type a device would change or refuse:
    64-bit numbers (a device would cut an int64 id to 32 bits), text, objects.

    Args:
      batch: field name -> array of this process's rows.
      host_fields: names that stay on the host whatever their type.

    Returns:
      (device fields, host fields), together the batch.

    Example:
      >>> batch = {"image": np.zeros((2, 3), np.float32), "example_id": np.arange(2)}
      >>> [sorted(part) for part in split_host_fields(batch)]
      [['image'], ['example_id']]
    """
    stays = {name for name in batch if name in host_fields or not _fits_device(batch[name])}
    device = {name: value for name, value in batch.items() if name not in stays}
    host = {name: value for name, value in batch.items() if name in stays}
    return device, host


def shard_batch(mesh: Mesh, batch: PyTree) -> PyTree[jax.Array]:
    """Global arrays, split over `data`, from the rows that each process has loaded.

    Args:
      mesh: the mesh.
      batch: tree of host arrays of shape (rows of this process, ...), with the same number of rows
        in every leaf and in every process. `data_process` tells which rows a process loads.

    Returns:
      The same tree of arrays of shape (rows of all processes, ...).

    Raises:
      TypeError: if a leaf is of a type that stays on the host (see `split_host_fields`).
      ValueError: if the leaves differ in rows, or the rows do not divide over the devices.
    """
    leaves = jax.tree.leaves_with_path(batch)
    rows = _common_rows(leaves)
    _, num_shares = data_process(mesh)
    local_devices = mesh.shape[DATA_AXIS] // num_shares
    if rows % local_devices:
        low = rows // local_devices * local_devices
        raise ValueError(
            f"a batch of {rows} rows in this process ({rows * num_shares} in all) does not divide "
            f"over its {local_devices} devices of the data axis; nearest valid global batch sizes: "
            f"{' and '.join(str(n * num_shares) for n in (low, low + local_devices) if n)}"
        )
    sharding = batch_sharding(mesh)

    def put(leaf: Any) -> jax.Array:
        local = np.asarray(leaf)
        shape = (rows * num_shares, *local.shape[1:])
        return jax.make_array_from_process_local_data(sharding, local, shape)

    return jax.tree.map(put, batch)


def place(target: Mesh | PyTree[NamedSharding], tree: PyTree) -> PyTree[jax.Array]:
    """Put a tree of arrays on the mesh.

    Args:
      target: one sharding for all leaves, or a tree of them with the structure of `tree`, or a mesh
        to replicate over.
      tree: host arrays, the same in every process, or device arrays of this or another mesh of this
        process (this is how a state moves between numbers of devices), or global arrays.

    Returns:
      The tree of global arrays. A leaf that is already in place may share its memory with the
      input: donating the one deletes the other.

    Example:
      >>> from jaxlab.parallel import make_mesh
      >>> place(make_mesh(), {"w": np.ones(3, np.float32)})["w"].sharding.is_fully_replicated
      True
    """
    if isinstance(target, Mesh):
        target = replicated(target)
    if isinstance(target, NamedSharding):
        sharding = target
        return jax.tree.map(lambda leaf: _place_leaf(leaf, sharding), tree)
    return jax.tree.map(_place_leaf, tree, target)


def init_sharded(
    init: Callable[..., PyTree],
    mesh: Mesh,
    rules: ShardingRules,
    *args: Any,
    params_of: Callable[[PyTree], PyTree] = lambda tree: tree,
) -> tuple[PyTree[jax.Array], PyTree[NamedSharding]]:
    """Run `init(*args)` so that its results are born sharded: no device ever holds them whole.

    Args:
      init: jittable function that makes a tree, such as parameters or a whole train state. It gives
        the same numbers on any mesh.
      mesh: the mesh.
      rules: how parameters are laid out.
      *args: arguments of `init` (keys, small arrays).
      params_of: picks the parameters out of the tree; what has their paths and shapes (moments,
        averages) is laid out like them, see `state_shardings`.

    Returns:
      (the tree, the tree of its shardings).

    Raises:
      ValueError: if the rules do not fit the parameters.
    """
    abstract = jax.eval_shape(init, *args)
    shardings = state_shardings(mesh, abstract, params_of(abstract), rules)
    return jax.jit(init, out_shardings=shardings)(*args), shardings


def to_host(tree: PyTree) -> PyTree[np.ndarray]:
    """The whole of every array as NumPy, in every process.

    Collective when an array is spread over processes: all of them must call it.

    Args:
      tree: tree of arrays.

    Returns:
      The same tree of NumPy arrays with the global shapes.
    """

    def fetch(leaf: Any) -> np.ndarray:
        spread = isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        )
        if spread:
            from jax.experimental import multihost_utils

            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        return np.asarray(leaf)

    return jax.tree.map(fetch, tree)


def _place_leaf(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """One array on its sharding; without communication when every process has the values."""
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if not isinstance(leaf, jax.Array):
        values = np.asarray(leaf)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])
    if not leaf.is_fully_addressable:
        return jax.jit(lambda x: x, out_shardings=sharding)(leaf)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        bits = _place_leaf(np.asarray(jax.random.key_data(leaf)), sharding)
        return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf))
    return _place_leaf(np.asarray(leaf), sharding)


def _fits_device(value: Any) -> bool:
    """Whether a device holds the values of this array unchanged."""
    dtype = value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype
    kinds = (np.bool_, np.number, jax.dtypes.prng_key)
    if not any(jax.dtypes.issubdtype(dtype, kind) for kind in kinds):
        return False
    return jax.dtypes.canonicalize_dtype(dtype, allow_extended_dtype=True) == dtype


def _common_rows(leaves: list[tuple[Any, Any]]) -> int:
    """Number of rows that all leaves share; says everything that is wrong with the batch."""
    if unfit := [path_name(path) for path, leaf in leaves if not _fits_device(leaf)]:
        raise TypeError(
            f"batch fields {unfit} are 64-bit, text or objects, which a device cannot hold; keep "
            "them on the host with split_host_fields, or convert to 32 bits"
        )
    rows = {path_name(path): np.shape(leaf)[:1] for path, leaf in leaves}
    if len(set(rows.values())) != 1 or () in rows.values():
        raise ValueError(
            f"batch fields must be arrays with the same number of rows; got {rows}; every field "
            "has the batch as its first dimension"
        )
    return next(iter(rows.values()))[0]
