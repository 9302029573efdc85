"""Metrics of retrieval and of zero-shot classification.

Use::

    from jaxlab.metrics import positives_from_ids, ranks_blockwise, recall_table, top_k_blockwise

    positives = positives_from_ids(image_concepts, text_concepts)
    ranks = ranks_blockwise(image_embeddings, text_embeddings, positives, ties="against")
    recall_table(ranks)  # {"r1": ..., "r5": ..., "r10": ..., "mean_recall": ...}, in percent
    best = top_k_blockwise(query_embeddings, gallery_embeddings, k=10).indices

Rooms: `top_k` (exact search, on one device or a mesh), `retrieval` (ranks and recalls, in percent),
`blocks` (what the two share), `predictions` (scoring of stored
predictions), `classification` (accuracy, mean-per-class accuracy, 11-point average precision, ROC
AUC, as fractions of 1).
"""

from jaxlab.metrics.classification import (
    accuracy,
    eleven_point_average_precision,
    mean_per_class_accuracy,
    roc_auc,
)
from jaxlab.metrics.predictions import score_predictions
from jaxlab.metrics.retrieval import (
    mean_recall,
    positives_from_ids,
    ranks_blockwise,
    ranks_from_similarity,
    recall_at_k,
    recall_table,
    transpose_positives,
    two_way_recalls,
)
from jaxlab.metrics.top_k import TopK, top_k_blockwise

__all__ = [
    "TopK",
    "accuracy",
    "eleven_point_average_precision",
    "mean_per_class_accuracy",
    "mean_recall",
    "positives_from_ids",
    "ranks_blockwise",
    "ranks_from_similarity",
    "recall_at_k",
    "recall_table",
    "roc_auc",
    "score_predictions",
    "top_k_blockwise",
    "transpose_positives",
    "two_way_recalls",
]
