"""What clients keep from one round to the next, for all of them, in arrays.

Control variates and personal models of thousands of clients may be larger than the memory of a
device: they lie in host memory, or in files that are mapped, one row a client, and the rows of a
cohort go to the device and back.
"""

import mmap
import os
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int, PyTree


class ClientStore:
    """One row of every leaf for each client; all begin equal."""

    def __init__(
        self, initial: PyTree, num_clients: int, folder: str | os.PathLike[str] | None = None
    ) -> None:
        """Make the rows.

        Args:
          initial: state of a client before its first round; `{}` keeps nothing.
          num_clients: rows.
          folder: where the rows are kept in files of the size of the store; None keeps them in
            memory.
        """
        leaves, self._structure = jax.tree.flatten(initial)
        self._num_clients = num_clients
        self._folder = Path(folder) if folder is not None else None
        self._leaves = [
            self._allocate(number, np.asarray(leaf), num_clients)
            for number, leaf in enumerate(leaves)
        ]

    @property
    def is_empty(self) -> bool:
        """Whether clients keep nothing."""
        return not self._leaves

    @property
    def num_bytes(self) -> int:
        """Size of all rows."""
        return sum(leaf.nbytes for leaf in self._leaves)

    @property
    def row_bytes(self) -> int:
        """Size of what one client keeps."""
        return self.num_bytes // max(1, self._num_clients)

    def gather(self, clients: Int[np.ndarray, " cohort"]) -> PyTree:
        """The rows of some clients, every leaf (cohort, ...)."""
        rows = [np.asarray(leaf[clients]) for leaf in self._leaves]
        self._let_go()
        return jax.tree.unflatten(self._structure, rows)

    def scatter(self, clients: Int[np.ndarray, " cohort"], rows: PyTree) -> None:
        """Replace the rows of some clients.

        Args:
          clients: which; none twice.
          rows: every leaf (cohort, ...).
        """
        for leaf, new in zip(self._leaves, jax.tree.leaves(rows), strict=True):
            leaf[clients] = np.asarray(new)
        self._let_go()

    def rows(self) -> PyTree:
        """All rows, for a checkpoint; not a copy."""
        return jax.tree.unflatten(self._structure, self._leaves)

    def restore(self, rows: PyTree) -> None:
        """Replace all rows by those of a checkpoint, of the same structure and shapes."""
        for leaf, saved in zip(self._leaves, jax.tree.leaves(rows), strict=True):
            leaf[:] = saved
        self._let_go()

    def _let_go(self) -> None:
        """Leave the pages of files that were looked at to the system, so that memory stays free."""
        if self._folder is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        for leaf in self._leaves:
            if isinstance(leaf.base, mmap.mmap):
                leaf.base.madvise(mmap.MADV_DONTNEED)

    def _allocate(self, number: int, leaf: np.ndarray, num_clients: int) -> np.ndarray:
        shape = (num_clients, *leaf.shape)
        if self._folder is None:
            rows = np.empty(shape, leaf.dtype)
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"leaf_{number}.npy"
            rows = np.lib.format.open_memmap(path, "w+", leaf.dtype, shape)
            if not leaf.any():  # a new file is all zeros, and takes no room before it is written to
                return rows
        rows[:] = leaf
        return rows
