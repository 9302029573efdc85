"""The one `shard_map` of the library, and what goes wrong inside it.

The default way to use many devices is the global view: a batch sharded over `data`, one
`jax.jit`, no collective written by hand. `shard_map` is for algorithms that *are* a collective:
chunked or ring losses, merges of sketches, cohorts of clients. The function then sees one device's
block.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh

Result = TypeVar("Result")


def shard_map(
    function: Callable[..., Result], *, mesh: Mesh, in_specs: Any, out_specs: Any
) -> Callable[..., Result]:
    """Run `function` on every device of the mesh, on that device's block of each argument.

    The replication check is always on (`check_vma=True`): an output that is declared replicated and
    is not, for lack of a `psum` or `pmean`, is an error while tracing and not a wrong number.

    Two pitfalls when a gradient is taken inside:

    * Differentiate a loss that is already averaged: `grad(lambda w: pmean(loss(w), "data"))`. The
      gradient with respect to a replicated input is *summed* over the devices for you, so a `pmean`
      put after `grad` changes nothing and the step is too large by the number of devices.
    * A mean of per-device means is the global mean only when all blocks have the same number of
      valid rows. With masks, `psum` the numerator and the denominator and divide once.

    Args:
      function: what one device does; it may call `jax.lax.psum` and friends over the axis names.
      mesh: the mesh whose axes are split.
      in_specs: a `PartitionSpec` per argument (or pytrees of them): how it is cut into blocks.
      out_specs: the same for the results: how the blocks are put together.

    Returns:
      A function of global arrays; call it under `jax.jit`.

    Raises:
      ValueError: from JAX, while tracing, if a dimension is not divisible by its mesh axis or a
        replicated output is not provably replicated.

    Example:
      >>> import jax.numpy as jnp
      >>> from jax.sharding import PartitionSpec as P
      >>> from jaxlab.parallel import make_mesh
      >>> def gradient(w, x):
      ...     return jax.grad(lambda w: jax.lax.pmean(jnp.mean(x * w), "data"))(w)
      >>> mapped = shard_map(
      ...     gradient, mesh=make_mesh(), in_specs=(P(), P("data")), out_specs=P()
      ... )
      >>> float(jax.jit(mapped)(jnp.float32(1), jnp.full(8 * jax.device_count(), 3.0)))
      3.0

    References:
      The JAX documentation of `jax.shard_map`, section on varying manual axes.
    """
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=True
    )
