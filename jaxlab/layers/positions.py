"""Position tables: a square grid resized to another grid, a table of text positions stretched."""

import math

import numpy as np
from jaxtyping import Float


def bicubic_matrix(
    source: int, target: int, a: float = -0.75
) -> Float[np.ndarray, "target source"]:
    """The linear map of a 1-D bicubic resize with aligned corners, as torch computes it.

    Output i samples the input at i * (source - 1) / (target - 1); of the four taps around it those
    beyond the borders repeat the border. No antialiasing.

    Args:
      source: length of the input.
      target: length of the output.
      a: the kernel's parameter; torch uses -0.75 (image libraries often -0.5).

    Returns:
      float64 rows that sum to 1.

    References:
      Keys 1981, "Cubic convolution interpolation for digital image processing", eq. 4.
    """
    matrix = np.zeros((target, source))
    step = (source - 1) / (target - 1) if target > 1 else 0.0
    for row in range(target):
        first = math.floor(row * step)
        fraction = row * step - first
        for offset in range(-1, 3):
            weight = _cubic_kernel(abs(fraction - offset), a)
            matrix[row, min(max(first + offset, 0), source - 1)] += weight
    return matrix


def _cubic_kernel(distance: float, a: float) -> float:
    """Keys' kernel at a distance from its centre."""
    if distance <= 1.0:
        return ((a + 2.0) * distance - (a + 3.0)) * distance * distance + 1.0
    if distance < 2.0:
        return ((a * distance - 5.0 * a) * distance + 8.0 * a) * distance - 4.0 * a
    return 0.0


def resize_positions(
    table: Float[np.ndarray, "positions width"], grid: int
) -> Float[np.ndarray, "new_positions width"]:
    """Resize a vision transformer's position table to another square grid of patches.

    Row 0 (class token) is kept; the rest is a row-major square grid, resized bicubically with
    aligned corners, a = -0.75, no antialiasing. A table of the right size is returned unchanged.

    Args:
      table: 1 + g*g rows.
      grid: number of patches along one side of the new grid.

    Returns:
      1 + grid*grid rows, in the table's dtype.

    Raises:
      ValueError: if the table does not have 1 + g*g rows, or `grid` is not positive.

    Example:
      >>> table = np.array([[9.0], [0.0], [1.0], [2.0], [3.0]])
      >>> resize_positions(table, 3)[1:].ravel().tolist()
      [0.0, 0.5, 1.0, 1.0, 1.5, 2.0, 2.0, 2.5, 3.0]
    """
    old = math.isqrt(max(table.shape[0] - 1, 0))
    if old < 1 or old * old + 1 != table.shape[0]:
        raise ValueError(
            f"a position table of {table.shape[0]} rows is not one class token and a square grid; "
            "wanted 1 + g*g rows, such as 50 or 197"
        )
    if grid < 1:
        raise ValueError(f"grid={grid} must be a positive number of patches along one side")
    if old == grid:
        return table
    matrix = bicubic_matrix(old, grid)
    square = table[1:].astype(np.float64).reshape(old, old, -1)
    resized = np.einsum("pi,qj,ijc->pqc", matrix, matrix, square, optimize=True)
    rows = np.concatenate([table[:1], resized.reshape(grid * grid, -1)])
    return rows.astype(table.dtype)


def stretch_positions(
    table: Float[np.ndarray, "positions width"], length: int, kept: int = 20
) -> Float[np.ndarray, "new_positions width"]:
    """Stretch a table of text positions to more rows.

    The first rows, which every text uses, are kept; the others are interpolated linearly with
    aligned ends. A table that is long enough is returned unchanged.

    Args:
      table: one row a position.
      length: number of rows wanted.
      kept: first rows that stay as they are.

    Returns:
      `length` rows (those of the table if it has more), in the table's dtype.

    Raises:
      ValueError: if `kept` leaves fewer than two rows to stretch.

    Example:
      >>> stretch_positions(np.array([[5.0], [0.0], [2.0]]), 6, kept=1).ravel().tolist()
      [5.0, 0.0, 0.5, 1.0, 1.5, 2.0]

    References:
      Zhang et al. 2024, "Long-CLIP: Unlocking the Long-Text Capability of CLIP", arXiv:2403.15378,
      whose ratio is 4 and whose last rows extrapolate.
    """
    if length <= table.shape[0]:
        return table
    if not 0 <= kept <= table.shape[0] - 2:
        raise ValueError(
            f"kept={kept} of {table.shape[0]} positions leaves fewer than two to stretch; use a "
            "smaller kept"
        )
    rest = table[kept:].astype(np.float64)
    at = np.linspace(0.0, len(rest) - 1, length - kept)
    first = np.minimum(at.astype(np.int64), len(rest) - 2)
    share = (at - first)[:, None]
    stretched = rest[first] * (1.0 - share) + rest[first + 1] * share
    return np.concatenate([table[:kept], stretched]).astype(table.dtype)
