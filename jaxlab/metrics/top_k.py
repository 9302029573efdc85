"""Exact search of the k best gallery items of many queries, in blocks, on one device or a mesh.

References:
  `cn_clip/eval/make_topk_predictions.py` of Chinese-CLIP 1.6.0, which loops over the queries.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from jaxlab.metrics.blocks import (
    block_scores,
    block_starts,
    check_embeddings,
    check_finite,
    fit_block,
    gallery_blocks,
    query_blocks,
)
from jaxlab.parallel import DATA_AXIS, batch_sharding, place, replicated, shard_map, to_host

RESIDENT_ITEMS = 2**20


class TopK(NamedTuple):
    """The best gallery items of every query, best first.

    Attributes:
      scores: inner products.
      indices: gallery positions.
    """

    scores: Float[np.ndarray, "queries k"]
    indices: Int[np.ndarray, "queries k"]


def top_k_blockwise(
    queries: Float[np.ndarray | Array, "queries dim"],
    gallery: Float[np.ndarray | Array, "items gallery_dim"],
    k: int,
    *,
    query_block: int = 1024,
    gallery_block: int = 8192,
    resident_items: int = RESIDENT_ITEMS,
    mesh: Mesh | None = None,
) -> TopK:
    """The exact k best gallery items of every query by inner product.

    The gallery is streamed: a part of `resident_items` is put on the devices (each device of the
    mesh holds consecutive items of it), and there searched in blocks with a running merge, so that
    a device holds at most `query_block` times `gallery_block` scores. A gallery that is a file
    mapped into memory is read a part at a time. Equal scores: the lower gallery position first,
    whatever the blocks, parts and devices.

    Args:
      queries: embeddings of the queries.
      gallery: embeddings of the gallery, fewer than 2^31.
      k: how many items; a gallery with fewer gives all of them.
      query_block: queries at a time.
      gallery_block: gallery items at a time on a device.
      resident_items: gallery items on all devices together at a time.
      mesh: devices that share the gallery over their `data` axis; None takes one device.

    Returns:
      Scores (float32) and positions (int32), of shape (queries, min(k, items)).

    Raises:
      ValueError: if an embedding is not finite, shapes differ, the gallery is empty, or k or a size
        is not positive.

    Example:
      >>> gallery = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], np.float32)
      >>> top_k_blockwise(np.array([[2.0, 1.0]], np.float32), gallery, k=2).indices
      array([[0, 2]], dtype=int32)
    """
    if k < 1:
        raise ValueError(f"k={k} is not positive; ask for at least the best item")
    if resident_items < 1:
        raise ValueError(f"resident_items={resident_items} is not positive")
    queries, gallery = check_embeddings(queries, gallery)
    k = min(k, len(gallery))
    search, best = _make_search(mesh, k), _nothing_found(len(queries), query_block, k)
    num_devices = 1 if mesh is None else mesh.shape[DATA_AXIS]
    size = fit_block(gallery_block, min(len(gallery), resident_items), num_devices)
    nothing = np.zeros((len(queries), 0), np.int32)
    for first in range(0, len(gallery), resident_items):
        part = gallery[first : first + resident_items]
        check_finite("gallery", part, first)
        blocks, valid = gallery_blocks(part, size, num_devices)
        starts = np.int32(first) + block_starts(*valid.shape)
        placed = _place_blocks(mesh, (blocks, valid, starts))
        best = [
            search(found, block, *placed)
            for found, (block, _) in zip(
                best, query_blocks(queries, nothing, query_block), strict=True
            )
        ]
    if not best:
        return TopK(np.zeros((0, k), np.float32), np.zeros((0, k), np.int32))
    scores, indices = (np.concatenate(parts) for parts in zip(*to_host(best), strict=True))
    return TopK(scores[: len(queries)], indices[: len(queries)])


def search_blocks(
    queries: Float[Array, "rows dim"],
    blocks: Float[Array, "blocks items dim"],
    valid: Bool[Array, "blocks items"],
    starts: Int[Array, " blocks"],
    k: int,
) -> tuple[Float[Array, "rows k"], Int[Array, "rows k"]]:
    """The k best items of the blocks of one device: scores and gallery positions.

    Args:
      queries: a block of queries.
      blocks: gallery items.
      valid: False for padding.
      starts: gallery position of the first item of every block.
      k: how many; -inf stands where there are fewer items.
    """

    def merge(best, block):
        items, is_item, start = block
        # What was found before comes first: top_k keeps the earlier of equal scores.
        scores = jnp.concatenate([best[0], block_scores(queries, items, is_item)], axis=1)
        top, where = jax.lax.top_k(scores, k)
        known = jnp.take_along_axis(best[1], jnp.minimum(where, k - 1), axis=1)
        return (top, jnp.where(where < k, known, start + where - k)), None

    # Made from the blocks, so that under `shard_map` it belongs to their device.
    nowhere = jnp.zeros((queries.shape[0], k), jnp.int32) + 0 * starts[0]
    empty = nowhere.astype(jnp.float32) - jnp.inf, nowhere
    return jax.lax.scan(merge, empty, (blocks, valid, starts))[0]


@functools.lru_cache(maxsize=32)
def _make_search(mesh: Mesh | None, k: int) -> Callable[..., tuple[Array, Array]]:
    """`(best so far, queries, blocks, valid, starts) -> best`, compiled."""
    find = functools.partial(search_blocks, k=k)
    if mesh is not None:
        rows, columns = P(DATA_AXIS), P(None, DATA_AXIS)
        # Side by side in the order of the devices, which is the order of the gallery.
        find = shard_map(
            find, mesh=mesh, in_specs=(P(), rows, rows, rows), out_specs=(columns, columns)
        )

    def search(best, queries, blocks, valid, starts):
        found = find(queries, blocks, valid, starts)
        scores, positions = (jnp.concatenate(both, 1) for both in zip(best, found, strict=True))
        top, where = jax.lax.top_k(scores, k)
        return top, jnp.take_along_axis(positions, where, axis=1)

    return jax.jit(search, out_shardings=None if mesh is None else replicated(mesh))


def _nothing_found(
    num_queries: int, query_block: int, k: int
) -> list[tuple[Float[np.ndarray, "rows k"], Int[np.ndarray, "rows k"]]]:
    """Nothing found, for every block of queries."""
    if query_block < 1:
        raise ValueError(f"query_block={query_block} is not positive")
    rows = min(query_block, max(num_queries, 1))
    nothing = np.full((rows, k), -np.inf, np.float32), np.zeros((rows, k), np.int32)
    return [nothing] * -(-num_queries // rows)


def _place_blocks(mesh: Mesh | None, arrays: tuple[np.ndarray, ...]) -> tuple[Any, ...]:
    if mesh is None:
        return tuple(jnp.asarray(array) for array in arrays)
    return tuple(place(batch_sharding(mesh), array) for array in arrays)
