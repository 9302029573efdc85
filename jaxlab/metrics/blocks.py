"""Galleries and queries cut into blocks of one shape, and the scores of a block."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def block_scores(
    queries: Float[Array, "rows dim"],
    items: Float[Array, "items dim"],
    is_item: Bool[Array, " items"],
) -> Float[Array, "rows items"]:
    """Inner products in float32; -inf for the padding.

    Args:
      queries: a block of queries.
      items: a block of the gallery.
      is_item: False for its padding.
    """
    scores = jnp.matmul(queries, items.T, precision="highest", preferred_element_type=jnp.float32)
    # The sort of the device ranks -0 below 0; they are equal scores.
    scores = jnp.where(scores == 0, jnp.float32(0), scores)
    return jnp.where(is_item[None], scores, -jnp.inf)


def block_starts(num_blocks: int, size: int) -> Int[np.ndarray, " blocks"]:
    """Gallery position of the first item of every block, int32."""
    return np.arange(num_blocks, dtype=np.int32) * np.int32(size)


def fit_block(size: int, items: int, num_devices: int = 1) -> int:
    """The size of a block: no larger than one device's share of the items.

    All blocks of a search have one size, so that one program computes all scores and equal
    embeddings get equal ones.

    Args:
      size: wanted items of a block.
      items: how many there are.
      num_devices: how many devices share them.

    Raises:
      ValueError: if `size` is not positive.
    """
    if size < 1:
        raise ValueError(f"gallery_block={size} is not positive")
    return min(size, -(-items // num_devices))


def gallery_blocks(
    gallery: Float[np.ndarray, "items dim"], size: int, multiple: int = 1
) -> tuple[Float[np.ndarray, "blocks size dim"], Bool[np.ndarray, "blocks size"]]:
    """The gallery padded with zeros to whole blocks, and which rows are items.

    Args:
      gallery: embeddings.
      size: items of a block, see `fit_block`.
      multiple: the number of blocks is a multiple of it.
    """
    items, dim = gallery.shape
    num_blocks = -(-items // (size * multiple)) * multiple
    padded = np.zeros((num_blocks * size, dim), np.float32)
    padded[:items] = gallery
    valid = np.arange(num_blocks * size) < items
    return padded.reshape(num_blocks, size, dim), valid.reshape(num_blocks, size)


def query_blocks(
    queries: Float[np.ndarray, "queries dim"], extra: Int[np.ndarray, "queries numbers"], size: int
) -> Iterator[tuple[Float[np.ndarray, "rows dim"], Int[np.ndarray, "rows numbers"]]]:
    """Blocks of queries of one shape, the last one padded.

    Args:
      queries: embeddings.
      extra: numbers that go with every query; padded with -1.
      size: queries of a block; made smaller where there are fewer.

    Raises:
      ValueError: if `size` is not positive.
    """
    if size < 1:
        raise ValueError(f"query_block={size} is not positive")
    size = min(size, max(len(queries), 1))
    for start in range(0, len(queries), size):
        pad = ((0, max(0, start + size - len(queries))), (0, 0))
        yield (
            np.pad(np.asarray(queries[start : start + size], np.float32), pad),
            np.pad(extra[start : start + size], pad, constant_values=-1),
        )


def check_embeddings(
    queries: Float[np.ndarray | Array, "queries dim"],
    gallery: Float[np.ndarray | Array, "items gallery_dim"],
) -> tuple[Float[np.ndarray, "queries dim"], Float[np.ndarray, "items dim"]]:
    """Queries and gallery on the host, as float32, of one length.

    Raises:
      ValueError: if the lengths differ, the gallery is empty or a query is not finite. (The
        gallery, which may be a file mapped into memory, is checked where it is read.)
    """
    queries, gallery = np.asarray(queries, np.float32), np.asarray(gallery, np.float32)
    if queries.shape[1] != gallery.shape[1] or not len(gallery):
        raise ValueError(
            f"queries have shape {queries.shape} and the gallery {gallery.shape}; wanted "
            "embeddings of one length and at least one gallery item"
        )
    check_finite("queries", queries)
    return queries, gallery


def check_finite(name: str, values: Float[np.ndarray, "rows columns"], first: int = 0) -> None:
    """Refuse NaN and infinity.

    Args:
      name: of the values, for the error.
      values: checked row by row.
      first: position of the first row, for the error.

    Raises:
      ValueError: naming the first bad row.
    """
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        raise ValueError(
            f"{name}: {bad.size} of {len(values)} rows hold NaN or infinity, the first is row "
            f"{first + bad[0]}; the model has diverged or an input was broken"
        )
