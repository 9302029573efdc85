"""The device mesh: a `data` axis for the batch and FSDP, a `model` axis for tensor sharding."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

DATA_AXIS = "data"
MODEL_AXIS = "model"
MESH_AXES = (DATA_AXIS, MODEL_AXIS)


def make_mesh(data: int = -1, model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh of shape (data, model) over all devices of all processes.

    Both axes are of type `Auto`: the compiler places the collectives, and Linen layers work
    unchanged. The order of the devices is the one `jax.make_mesh` finds best for the hardware.

    Args:
      data: number of devices along `data`; -1 takes all that `model` leaves.
      model: number of devices along `model`.
      devices: the devices to use, all of them by default. To leave some unused, pass a slice.

    Returns:
      The mesh, with axes named `data` and `model`.

    Raises:
      ValueError: if the two sizes do not use exactly the devices; the message names the nearest
        sizes that do.

    Example:
      >>> mesh = make_mesh(devices=jax.devices()[:1])
      >>> dict(mesh.shape)
      {'data': 1, 'model': 1}
    """
    devices = jax.devices() if devices is None else list(devices)
    data, model = fit_mesh_shape(data, model, len(devices))
    axis_types = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh((data, model), MESH_AXES, axis_types=axis_types, devices=devices)


def fit_mesh_shape(data: int, model: int, num_devices: int) -> tuple[int, int]:
    """Sizes of the two axes with `data=-1` filled in.

    Args:
      data: wanted size of `data`, or -1 for what `model` leaves.
      model: wanted size of `model`, at least 1.
      num_devices: number of devices to use up.

    Returns:
      (data, model), whose product is `num_devices`.

    Raises:
      ValueError: if no such sizes exist, or a size is not positive.

    Example:
      >>> fit_mesh_shape(-1, 2, 8)
      (4, 2)
    """
    if num_devices < 1:
        raise ValueError("got no devices for the mesh, expected at least 1; pass devices=None")
    if model < 1 or num_devices % model:
        raise ValueError(
            f"model={model} does not divide the {num_devices} devices; nearest valid model sizes: "
            f"{_nearest_divisors(num_devices, model)}"
        )
    rest = num_devices // model
    if data not in (-1, rest):
        raise ValueError(
            f"data={data} with model={model} needs {max(data, 0) * model} devices and there are "
            f"{num_devices}; the valid data size is {rest} (or -1 to fill); to leave devices "
            f"unused pass devices=jax.devices()[:n]"
        )
    return rest, model


def data_process(mesh: Mesh) -> tuple[int, int]:
    """Which share of the global batch this process loads: (index, count).

    Usually the process index and the number of processes. When the `model` axis spans processes,
    those on the same rows of the `data` axis need the same examples: they get the same index.

    Args:
      mesh: a mesh with a `data` axis.

    Returns:
      The index of the share and the number of shares; row i of the data goes to share i % count.

    Raises:
      ValueError: if this process has no device in the mesh, or the processes' rows overlap in part.

    Example:
      >>> data_process(make_mesh())
      (0, 1)
    """
    axis = mesh.axis_names.index(DATA_AXIS)
    devices = np.moveaxis(mesh.devices, axis, 0).reshape(mesh.shape[DATA_AXIS], -1)
    owners = [[device.process_index for device in row] for row in devices]
    return share_of_rows(owners, jax.process_index())


def share_of_rows(owners: Sequence[Sequence[int]], process: int) -> tuple[int, int]:
    """Share of the rows of the `data` axis that a process holds: (index, count).

    Args:
      owners: for each row of the `data` axis, the process index of each of its devices.
      process: the process asked about.

    Returns:
      Index among the distinct shares, in the order of their rows, and their number.

    Raises:
      ValueError: if the process holds no row, or the shares are uneven or overlap in part.

    Example:
      >>> share_of_rows([[0, 1], [2, 3]], process=3)
      (1, 2)
    """
    rows: dict[int, list[int]] = {}
    for row, row_owners in enumerate(owners):
        for owner in sorted(set(row_owners)):
            rows.setdefault(owner, []).append(row)
    if process not in rows:
        raise ValueError(
            f"process {process} has no device in the mesh, whose devices are of processes "
            f"{sorted(rows)}; make the mesh from the devices of all processes"
        )
    shares = sorted({tuple(found) for found in rows.values()})
    sizes = {len(share) for share in shares}
    if len(sizes) > 1 or len(shares) * sizes.pop() != len(owners):
        raise ValueError(
            f"the processes hold uneven or overlapping rows of the data axis: {rows}; choose a "
            "model size that divides, or is a multiple of, the devices of one process"
        )
    return shares.index(tuple(rows[process])), len(shares)


def _nearest_divisors(number: int, wanted: int) -> str:
    """The divisors of `number` next below and next above `wanted`, as words."""
    divisors = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    divisors = sorted({*divisors, *(number // d for d in divisors)})
    below = [d for d in divisors if d < wanted][-1:]
    above = [d for d in divisors if d > wanted][:1]
    return " and ".join(str(d) for d in below + above)
