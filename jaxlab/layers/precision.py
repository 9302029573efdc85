"""Precision of matrix products: float32 means float32 on every device."""

import contextlib

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def full_precision(dtype: DTypeLike) -> contextlib.AbstractContextManager[None]:
    """What is traced inside multiplies float32 in float32.

    By default JAX multiplies float32 matrices in TF32 on recent GPUs (10 bits of the 23) and in
    bfloat16 on TPUs (7 bits), torch in float32: features of a ViT-B/16 then differ by 1e-4 on a
    GPU. Whoever wants the faster product computes in bfloat16, or chooses one of JAX's for himself:
    what `jax.default_matmul_precision` or its environment variable says stands.

    Args:
      dtype: type of the computation; any but float32 leaves JAX's products as they are.

    Returns:
      A context manager. On CPUs it does nothing: they know one product of float32.

    Example:
      >>> with full_precision("float32"):
      ...     y = jnp.ones((2, 3)) @ jnp.ones((3, 2))
    """
    chosen = jax.config.jax_default_matmul_precision  # pyrefly: ignore[missing-attribute]
    if chosen is not None or jnp.dtype(dtype) != jnp.float32 or jax.default_backend() == "cpu":
        return contextlib.nullcontext()
    return jax.default_matmul_precision("highest")
