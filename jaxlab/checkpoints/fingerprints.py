"""Checksums of parameter trees: what tells the weights that stored results were made with."""

import hashlib
from collections.abc import Callable

import numpy as np
from jaxtyping import PyTree

from jaxlab.checkpoints.foreign.names import flatten


def tree_sha256(tree: PyTree, keep: Callable[[str], bool] | None = None) -> str:
    """SHA-256 of names, types, shapes and values of the arrays of a tree.

    Args:
      tree: nested dicts of arrays.
      keep: which paths count, joined by `/`; `None` is all.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(tree).items()):
        if keep is None or keep(path):
            array = np.ascontiguousarray(leaf)
            digest.update(f"{path} {array.dtype} {array.shape}".encode())
            digest.update(array.data)
    return digest.hexdigest()
