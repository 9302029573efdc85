"""Inputs of closed form, and the values that independent programs gave for them."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def wave(shape: tuple[int, ...], phase: float, size: float = 1.0) -> Array:
    """`size * sin(0.37 i + phase)` over the flat index i, computed in float64."""
    index = np.arange(np.prod(shape))
    return jnp.asarray((size * np.sin(0.37 * index + phase)).reshape(shape), jnp.float32)


MASK = jnp.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
STUDENT_LOGITS, TEACHER_LOGITS = wave((2, 3), 0.1, 2), wave((2, 3), 1.3, 3)
STUDENT_SCORES, TEACHER_SCORES = wave((2, 2, 5, 5), 0.2, 2), wave((2, 2, 5, 5), 0.9, 2)
STUDENT_HIDDEN = wave((2, 5, 8), 0.3), wave((2, 5, 8), 1.1)
TEACHER_HIDDEN = wave((2, 5, 8), 0.7), wave((2, 5, 8), 1.9)
NARROW_HIDDEN = wave((2, 5, 6), 0.4), wave((2, 5, 6), 1.4)
STUDENT_PROJECTED = tuple(wave((2, 5, 12), phase) for phase in (0.5, 0.8, 1.2))
TEACHER_PROJECTED = tuple(wave((2, 5, 24), phase) for phase in (0.15, 0.45, 0.95))
