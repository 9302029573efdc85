"""Retrieval: exact top-k search in blocks, ranks of the truth, recall@k and mean recall.

A query finds a gallery item by the inner product of their embeddings. A query may have several true
items; it counts as found within k if any of them is among the k best. Recalls are in percent.

Equal scores: `ties="stable"` ranks the lower gallery position first (the protocol of Chinese CLIP);
`ties="against"` ranks every other item of the same score before a true one, so that a model that
gives one score to everything gets no credit.

Everything that a model gave is checked for NaN first: NaN compares false with everything, and would
otherwise count as a perfect rank.

References:
  `cn_clip/eval/make_topk_predictions.py` and `evaluation.py` of Chinese-CLIP 1.6.0.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

KS = (1, 5, 10)
Positives = Sequence[Sequence[int] | Int[np.ndarray, " positives"]]
"""For every query the gallery positions that are true; may be empty."""


class TopK(NamedTuple):
    """The best gallery items of every query, best first.

    Attributes:
      scores: inner products.
      indices: gallery positions.
    """

    scores: Float[np.ndarray, "queries k"]
    indices: Int[np.ndarray, "queries k"]


def recall_at_k(ranks: Int[np.ndarray, " queries"], k: int, *, missing: str = "miss") -> float:
    """Share of queries, in percent, with a true item among the k best.

    Args:
      ranks: for every query the number of gallery items before its best true one (0 is best); -1
        for a query without true items, as `ranks_from_similarity` and `ranks_blockwise` give them.
      k: how many of the best count.
      missing: "miss" counts a query without true items as not found, as the original; "skip" leaves
        it out.

    Raises:
      ValueError: if no query is left, k is not positive or `missing` is unknown.

    Example:
      >>> recall_at_k(np.array([0, 3, 7, -1]), 5)
      50.0
    """
    if k < 1:
        raise ValueError(f"k={k} is not positive; recall is counted within the k best")
    if missing not in ("miss", "skip"):
        raise ValueError(f"missing={missing!r} is not one of 'miss', 'skip'")
    counted = ranks[ranks >= 0] if missing == "skip" else ranks
    if not counted.size:
        raise ValueError(f"no query left of {ranks.size} to count recall over")
    return 100.0 * float(np.mean((counted >= 0) & (counted < k)))


def mean_recall(
    ranks: Int[np.ndarray, " queries"], ks: Sequence[int] = KS, *, missing: str = "miss"
) -> float:
    """Mean of recall@k over `ks`, in percent."""
    return float(np.mean([recall_at_k(ranks, k, missing=missing) for k in ks]))


def recall_table(
    ranks: Int[np.ndarray, " queries"], ks: Sequence[int] = KS, *, missing: str = "miss"
) -> dict[str, float]:
    """Recalls by name: `r1`, `r5`, `r10` for the default `ks`, and `mean_recall`; in percent."""
    table = {f"r{k}": recall_at_k(ranks, k, missing=missing) for k in ks}
    return {**table, "mean_recall": float(np.mean(list(table.values())))}


def two_way_recalls(
    images: Float[np.ndarray | Array, "images dim"],
    texts: Float[np.ndarray | Array, "texts dim"],
    text_positives: Positives,
    ks: Sequence[int] = KS,
    *,
    ties: str = "stable",
    missing: str = "miss",
) -> dict[str, float]:
    """Recalls of both directions and their mean, in percent.

    Args:
      images: embeddings, normalised if cosines are meant.
      texts: embeddings, normalised if cosines are meant.
      text_positives: for every text the positions of its true images; the other direction follows.
      ks: numbers of best items.
      ties: "stable" or "against".
      missing: "miss" or "skip", for queries without true items.

    Returns:
      `text_to_image_r1` ..., `image_to_text_r1` ..., and `mean_recall` over all of them.
    """
    image_positives = transpose_positives(text_positives, len(images))
    directions = {
        "text_to_image": ranks_blockwise(texts, images, text_positives, ties=ties),
        "image_to_text": ranks_blockwise(images, texts, image_positives, ties=ties),
    }
    table = {
        f"{name}_r{k}": recall_at_k(ranks, k, missing=missing)
        for name, ranks in directions.items()
        for k in ks
    }
    return {**table, "mean_recall": float(np.mean(list(table.values())))}


def positives_from_ids(
    query_ids: Iterable[object], gallery_ids: Iterable[object]
) -> list[list[int]]:
    """For every query the gallery positions that carry its id.

    Example:
      >>> positives_from_ids(["a", "b", "c"], ["b", "a", "b"])
      [[1], [0, 2], []]
    """
    places: dict[object, list[int]] = {}
    for position, item in enumerate(gallery_ids):
        places.setdefault(item, []).append(position)
    return [list(places.get(query, ())) for query in query_ids]


def transpose_positives(positives: Positives, num_items: int) -> list[list[int]]:
    """For every gallery item the queries that it is true for.

    Raises:
      ValueError: if a position is not in [0, num_items).
    """
    _check_positions(positives, num_items)
    queries: list[list[int]] = [[] for _ in range(num_items)]
    for query, items in enumerate(positives):
        for item in items:
            queries[int(item)].append(query)
    return queries


def ranks_from_similarity(
    similarity: Float[np.ndarray | Array, "queries items"],
    positives: Positives,
    *,
    ties: str = "stable",
) -> Int[np.ndarray, " queries"]:
    """For every query the number of gallery items before its best true one; -1 without a true one.

    Args:
      similarity: score of every item for every query.
      positives: for every query the positions of its true items.
      ties: "stable" or "against", see the module.

    Raises:
      ValueError: if a score is NaN, lengths differ, a position is out of range or `ties` is
        unknown.
    """
    scores = np.asarray(similarity)
    _check_finite("similarity", scores)
    _check_positives(positives, scores.shape[0], scores.shape[1], ties)
    ranks = np.full(len(scores), -1, np.int64)
    for query, (row, true) in enumerate(zip(scores, positives, strict=True)):
        if len(true):
            ranks[query] = _rank_of_best(row, np.unique(np.asarray(true, np.int64)), ties)
    return ranks


def ranks_blockwise(
    queries: Float[np.ndarray | Array, "queries dim"],
    gallery: Float[np.ndarray | Array, "items gallery_dim"],
    positives: Positives,
    *,
    ties: str = "stable",
    query_block: int = 1024,
    gallery_block: int = 4096,
) -> Int[np.ndarray, " queries"]:
    """As `ranks_from_similarity` of the inner products, with one block of them at a time in memory.

    Two passes over the gallery: the best true score of every query, then the items before it. Both
    compute each block by the same program, so that equal scores stay equal.

    Args:
      queries: embeddings of the queries.
      gallery: embeddings of the gallery.
      positives: for every query the positions of its true items.
      ties: "stable" or "against", see the module.
      query_block: queries at a time.
      gallery_block: gallery items at a time.

    Raises:
      ValueError: if an embedding is not finite, shapes differ, a position is out of range or `ties`
        is unknown.
    """
    queries, gallery = _check_embeddings(queries, gallery)
    _check_positives(positives, len(queries), len(gallery), ties)
    blocks, valid = _gallery_blocks(gallery, gallery_block)
    width = max((len(true) for true in positives), default=0)
    padded = np.full((len(queries), max(width, 1)), -1, np.int32)
    for query, true in enumerate(positives):
        padded[query, : len(true)] = true
    ranks = [
        np.asarray(_block_ranks(block, blocks, valid, true, ties == "against"))
        for block, true in _query_blocks(queries, padded, query_block)
    ]
    found = np.array([len(true) > 0 for true in positives], bool)
    joined = np.concatenate([np.zeros(0, np.int64), *ranks])[: len(queries)]
    return np.where(found, joined, -1).astype(np.int64)


def top_k_blockwise(
    queries: Float[np.ndarray | Array, "queries dim"],
    gallery: Float[np.ndarray | Array, "items gallery_dim"],
    k: int,
    *,
    query_block: int = 1024,
    gallery_block: int = 4096,
) -> TopK:
    """The exact k best gallery items of every query by inner product.

    The gallery is streamed in blocks with a running merge: at most `query_block` times
    `gallery_block` scores exist at a time. Equal scores: the lower gallery position first.

    Args:
      queries: embeddings of the queries.
      gallery: embeddings of the gallery.
      k: how many items; a gallery with fewer gives all of them.
      query_block: queries at a time.
      gallery_block: gallery items at a time.

    Returns:
      Scores (float32) and positions (int32), of shape (queries, min(k, items)).

    Raises:
      ValueError: if an embedding is not finite, shapes differ, the gallery is empty or k is not
        positive.
    """
    if k < 1:
        raise ValueError(f"k={k} is not positive; ask for at least the best item")
    queries, gallery = _check_embeddings(queries, gallery)
    k = min(k, len(gallery))
    blocks, valid = _gallery_blocks(gallery, gallery_block)
    parts = [
        _block_top_k(block, blocks, valid, k)
        for block, _ in _query_blocks(queries, np.zeros((len(queries), 0), np.int32), query_block)
    ]
    if not parts:
        return TopK(np.zeros((0, k), np.float32), np.zeros((0, k), np.int32))
    scores, indices = (np.concatenate([np.asarray(part[i]) for part in parts]) for i in (0, 1))
    return TopK(scores[: len(queries)], indices[: len(queries)])


@functools.partial(jax.jit, static_argnames="k")
def _block_top_k(
    queries: Float[Array, "rows dim"],
    blocks: Float[Array, "blocks items dim"],
    valid: Bool[Array, "blocks items"],
    k: int,
) -> tuple[Float[Array, "rows k"], Int[Array, "rows k"]]:
    def merge(best, block):
        items, is_item, start = block
        scores = _block_scores(queries, items, is_item)
        positions = start + jnp.arange(items.shape[0], dtype=jnp.int32)
        positions = jnp.broadcast_to(positions[None], scores.shape)
        # What was found before comes first: top_k keeps the earlier of equal scores.
        scores = jnp.concatenate([best[0], scores], axis=1)
        positions = jnp.concatenate([best[1], positions], axis=1)
        top, where = jax.lax.top_k(scores, k)
        return (top, jnp.take_along_axis(positions, where, axis=1)), None

    rows = queries.shape[0]
    empty = jnp.full((rows, k), -jnp.inf), jnp.zeros((rows, k), jnp.int32)
    (scores, positions), _ = jax.lax.scan(merge, empty, (blocks, valid, _block_starts(blocks)))
    return scores, positions


@functools.partial(jax.jit, static_argnames="against")
def _block_ranks(
    queries: Float[Array, "rows dim"],
    blocks: Float[Array, "blocks items dim"],
    valid: Bool[Array, "blocks items"],
    true: Int[Array, "rows positives"],
    against: bool,
) -> Int[Array, " rows"]:
    rows, size = queries.shape[0], blocks.shape[1]
    row_ids = jnp.arange(rows)[:, None]

    def scores_and_truth(block):
        items, is_item, start = block
        local = true - start
        local = jnp.where((local >= 0) & (local < size), local, size)
        is_true = jnp.zeros((rows, size), bool).at[row_ids, local].set(True, mode="drop")
        return _block_scores(queries, items, is_item), is_true

    def find_best(best, block):
        scores, is_true = scores_and_truth(block)
        score = jnp.max(jnp.where(is_true, scores, -jnp.inf), axis=1)
        first = jnp.argmax(is_true & (scores == score[:, None]), axis=1).astype(jnp.int32)
        better = score > best[0]  # of equal true scores the earlier position stays
        return (jnp.maximum(score, best[0]), jnp.where(better, block[2] + first, best[1])), None

    def count_before(count, block):
        scores, is_true = scores_and_truth(block)
        tied = scores == best_score[:, None]
        if not against:
            positions = block[2] + jnp.arange(size, dtype=jnp.int32)
            tied = tied & (positions[None] < best_position[:, None])
        before = ~is_true & ((scores > best_score[:, None]) | tied)
        return count + jnp.sum(before, axis=1, dtype=jnp.int32), None

    stream = (blocks, valid, _block_starts(blocks))
    start = jnp.full(rows, -jnp.inf), jnp.zeros(rows, jnp.int32)
    (best_score, best_position), _ = jax.lax.scan(find_best, start, stream)
    count, _ = jax.lax.scan(count_before, jnp.zeros(rows, jnp.int32), stream)
    return count


def _block_scores(
    queries: Float[Array, "rows dim"],
    items: Float[Array, "items dim"],
    is_item: Bool[Array, " items"],
) -> Float[Array, "rows items"]:
    scores = jnp.matmul(queries, items.T, precision="highest", preferred_element_type=jnp.float32)
    return jnp.where(is_item[None], scores, -jnp.inf)


def _block_starts(blocks: Float[Array, "blocks items dim"]) -> Int[Array, " blocks"]:
    return jnp.arange(blocks.shape[0], dtype=jnp.int32) * blocks.shape[1]


def _gallery_blocks(
    gallery: Float[np.ndarray, "items dim"], size: int
) -> tuple[Float[Array, "blocks size dim"], Bool[Array, "blocks size"]]:
    """The gallery padded with zeros to whole blocks, and which rows are items."""
    if size < 1:
        raise ValueError(f"gallery_block={size} is not positive")
    items, dim = gallery.shape
    size = min(size, items)
    num_blocks = -(-items // size)
    padded = np.zeros((num_blocks * size, dim), np.float32)
    padded[:items] = gallery
    valid = np.arange(num_blocks * size) < items
    return jnp.asarray(padded.reshape(num_blocks, size, dim)), jnp.asarray(
        valid.reshape(num_blocks, size)
    )


def _query_blocks(
    queries: Float[np.ndarray, "queries dim"], extra: Int[np.ndarray, "queries numbers"], size: int
) -> Iterable[tuple[Float[Array, "rows dim"], Int[Array, "rows numbers"]]]:
    """Blocks of queries of one shape, the last one padded."""
    if size < 1:
        raise ValueError(f"query_block={size} is not positive")
    size = min(size, max(len(queries), 1))
    for start in range(0, len(queries), size):
        pad = ((0, max(0, start + size - len(queries))), (0, 0))
        yield (
            jnp.asarray(np.pad(queries[start : start + size], pad)),
            jnp.asarray(np.pad(extra[start : start + size], pad, constant_values=-1)),
        )


def _rank_of_best(
    scores: Float[np.ndarray, " items"], true: Int[np.ndarray, " positives"], ties: str
) -> int:
    best = true[np.argmax(scores[true])]
    before = int(np.count_nonzero(scores > scores[best]))
    if ties == "against":
        equal = scores == scores[best]
        return before + int(np.count_nonzero(equal)) - int(np.count_nonzero(equal[true]))
    return before + int(np.count_nonzero(scores[:best] == scores[best]))


def _check_embeddings(
    queries: Float[np.ndarray | Array, "queries dim"],
    gallery: Float[np.ndarray | Array, "items gallery_dim"],
) -> tuple[Float[np.ndarray, "queries dim"], Float[np.ndarray, "items dim"]]:
    queries, gallery = np.asarray(queries, np.float32), np.asarray(gallery, np.float32)
    if queries.shape[1] != gallery.shape[1] or not len(gallery):
        raise ValueError(
            f"queries have shape {queries.shape} and the gallery {gallery.shape}; wanted "
            "embeddings of one length and at least one gallery item"
        )
    _check_finite("queries", queries)
    _check_finite("gallery", gallery)
    return queries, gallery


def _check_finite(name: str, values: Float[np.ndarray, "rows columns"]) -> None:
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        raise ValueError(
            f"{name}: {bad.size} of {len(values)} rows hold NaN or infinity, the first is row "
            f"{bad[0]}; the model has diverged or an input was broken"
        )


def _check_positives(positives: Positives, num_queries: int, num_items: int, ties: str) -> None:
    if ties not in ("stable", "against"):
        raise ValueError(f"ties={ties!r} is not one of 'stable', 'against'")
    if len(positives) != num_queries:
        raise ValueError(
            f"positives of {len(positives)} queries for {num_queries} queries; give one sequence "
            "of gallery positions for every query, empty where nothing is true"
        )
    _check_positions(positives, num_items)


def _check_positions(positives: Positives, num_items: int) -> None:
    for query, items in enumerate(positives):
        for item in items:
            if not 0 <= item < num_items:
                raise ValueError(
                    f"positives[{query}] holds position {item} in a gallery of {num_items} items; "
                    f"wanted 0 to {num_items - 1}"
                )
