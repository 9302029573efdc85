"""Retrieval: ranks of the truth, recall@k and mean recall.

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

import jax
import jax.numpy as jnp
import numpy as np
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

KS = (1, 5, 10)
Positives = Sequence[Sequence[int] | Int[np.ndarray, " positives"]]
"""For every query the gallery positions that are true; may be empty."""


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
    check_finite("similarity", scores)
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
    queries, gallery = check_embeddings(queries, gallery)
    _check_positives(positives, len(queries), len(gallery), ties)
    check_finite("gallery", gallery)
    blocks, valid = gallery_blocks(gallery, fit_block(gallery_block, len(gallery)))
    width = max((len(true) for true in positives), default=0)
    padded = np.full((len(queries), max(width, 1)), -1, np.int32)
    for query, true in enumerate(positives):
        padded[query, : len(true)] = true
    ranks = [
        np.asarray(_block_ranks(block, blocks, valid, true, ties == "against"))
        for block, true in query_blocks(queries, padded, query_block)
    ]
    found = np.array([len(true) > 0 for true in positives], bool)
    joined = np.concatenate([np.zeros(0, np.int64), *ranks])[: len(queries)]
    return np.where(found, joined, -1).astype(np.int64)


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
        return block_scores(queries, items, is_item), is_true

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

    stream = (blocks, valid, jnp.asarray(block_starts(*valid.shape)))
    start = jnp.full(rows, -jnp.inf), jnp.zeros(rows, jnp.int32)
    (best_score, best_position), _ = jax.lax.scan(find_best, start, stream)
    count, _ = jax.lax.scan(count_before, jnp.zeros(rows, jnp.int32), stream)
    return count


def _rank_of_best(
    scores: Float[np.ndarray, " items"], true: Int[np.ndarray, " positives"], ties: str
) -> int:
    best = true[np.argmax(scores[true])]
    before = int(np.count_nonzero(scores > scores[best]))
    if ties == "against":
        equal = scores == scores[best]
        return before + int(np.count_nonzero(equal)) - int(np.count_nonzero(equal[true]))
    return before + int(np.count_nonzero(scores[:best] == scores[best]))


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
