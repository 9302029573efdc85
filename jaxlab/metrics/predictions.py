"""Scoring of stored retrieval predictions: for every query id the ids of the best items.

References:
  `cn_clip/eval/evaluation.py` and `evaluation_tr.py` of Chinese-CLIP 1.6.0.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlab.metrics.retrieval import KS, recall_table

_MAX_LISTED = 10


def score_predictions(
    predictions: Mapping[int, Any],
    truth: Mapping[int, Sequence[int]],
    ks: Sequence[int] = KS,
    *,
    num_items: int | None = None,
    missing: str = "miss",
    exact_length: bool = False,
) -> dict[str, float]:
    """Recalls of predictions, in percent: `r1`, `r5`, `r10` for the default `ks`, `mean_recall`.

    A query is found within k if any of its true ids is among its first k predicted ids. The
    denominator is all queries of `truth`; predictions for other queries are ignored.

    Args:
      predictions: query id to a sequence of item ids, best first, at least `max(ks)` of them (or
        `num_items`).
      truth: query id to the ids of true items; may be empty.
      ks: numbers of best items.
      num_items: size of the gallery, where it is smaller than `max(ks)`.
      missing: "miss" counts a query without true items as not found, "skip" leaves it out.
      exact_length: refuse more than `max(ks)` ids too, as the original does.

    Raises:
      ValueError: listing every query that has no prediction, too few ids (or too many), an id
        twice, or an id that is no integer; or if no query is left to count.

    Example:
      >>> score_predictions({7: [3, 1]}, {7: [1]}, ks=(1, 2))
      {'r1': 0.0, 'r2': 100.0, 'mean_recall': 50.0}
    """
    depth = max(ks) if num_items is None else min(max(ks), num_items)
    problems = [
        problem
        for query in truth
        if (problem := _find_problem(query, predictions.get(query), depth, exact_length))
        is not None
    ]
    if problems:
        listed = "\n  ".join(problems[:_MAX_LISTED])
        more = len(problems) - _MAX_LISTED
        raise ValueError(
            f"{len(problems)} of {len(truth)} queries have no usable prediction:\n  {listed}"
            + (f"\n  and {more} more" if more > 0 else "")
        )
    ranks = [_first_rank(predictions[query], set(true)) for query, true in truth.items()]
    return recall_table(np.array(ranks, np.int64), ks, missing=missing)


def _find_problem(query: int, predicted: object, depth: int, exact: bool) -> str | None:
    if predicted is None:
        return f"query {query}: missing; predict at least {depth} ids for it"
    if not isinstance(predicted, Sequence) or isinstance(predicted, str | bytes):
        return f"query {query}: {predicted!r} is no list of ids"
    for item in predicted:
        if isinstance(item, bool) or not isinstance(item, int | np.integer):
            return f"query {query}: id {item!r} is no integer"
    if len(predicted) < depth or (exact and len(predicted) > depth):
        wanted = "exactly" if exact else "at least"
        return f"query {query}: {len(predicted)} ids, wanted {wanted} {depth}"
    if len(set(predicted)) < len(predicted):
        return f"query {query}: an id occurs twice in {list(predicted)[:depth]}"
    return None


def _first_rank(predicted: Sequence[int], true: set[int]) -> int:
    """Place of the first true id; -1 without true ids, the length of the list if none is in it."""
    if not true:
        return -1
    return next((rank for rank, item in enumerate(predicted) if item in true), len(predicted))
