"""A number of what functions compute, by which a checkpoint knows its algorithm again.

Functions cannot be compared, but what JAX traces of them can: every operation with its shapes and
numbers. A learning rate, a penalty or a layer that differs makes another text. How the text looks
depends on the version of JAX, and on nothing else: no addresses, no order of tracing.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")


def fingerprint(*traced: Any) -> str:
    """A number of some programs, the same in every process.

    Args:
      traced: what `jax.make_jaxpr` gives.

    Returns:
      64 hexadecimal digits: equal for equal programs over equal constants.
    """
    digest = hashlib.sha256()
    for program in traced:
        text = program.pretty_print(source_info=False, use_color=False, name_stack=False)
        digest.update(_ADDRESS.sub("0x", text).encode())
        for constant in _constants(program):
            digest.update(_bytes(constant))
    return digest.hexdigest()


def _constants(program: Any) -> Iterator[Any]:
    """Arrays that the text of a program only names, those of programs inside it included."""
    yield from getattr(program, "consts", ())
    for equation in getattr(program, "jaxpr", program).eqns:
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, list | tuple) else (parameter,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from _constants(inner)


def _bytes(constant: Any) -> bytes:
    if isinstance(constant, jax.Array) and jax.dtypes.issubdtype(
        constant.dtype, jax.dtypes.prng_key
    ):
        constant = jax.random.key_data(constant)
    array = np.asarray(constant)
    return f"{array.dtype}{array.shape}".encode() + array.tobytes()
