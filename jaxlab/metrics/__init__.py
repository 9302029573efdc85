"""Metrics of retrieval, classification and text tasks, and of students beside their teachers.

Use::

    from jaxlab.metrics import positives_from_ids, ranks_blockwise, recall_table, top_k_blockwise

    positives = positives_from_ids(image_concepts, text_concepts)
    ranks = ranks_blockwise(image_embeddings, text_embeddings, positives, ties="against")
    recall_table(ranks)  # {"r1": ..., "r5": ..., "r10": ..., "mean_recall": ...}, in percent
    best = top_k_blockwise(query_embeddings, gallery_embeddings, k=10).indices

Rooms: `top_k` (exact search, on one device or a mesh), `retrieval` (ranks and recalls, in percent),
`blocks` (what the two share), `predictions` (scoring of stored
predictions), `classification` (accuracy, mean-per-class accuracy, 11-point average precision, ROC
AUC, as fractions of 1), `scores` (Matthews, Pearson, Spearman, F1), `glue` (its tasks and
averages), `spans` (answers of SQuAD, entities of CoNLL), `fidelity` (agreement, divergence, CKA,
calibration), `significance` (paired tests over seeds).
"""

from jaxlab.metrics.classification import (
    accuracy,
    eleven_point_average_precision,
    mean_per_class_accuracy,
    roc_auc,
)
from jaxlab.metrics.fidelity import agreement, calibration_error, linear_cka, mean_divergence
from jaxlab.metrics.glue import GLUE_METRICS, glue_average, glue_scores
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
from jaxlab.metrics.scores import (
    f1_score,
    macro_f1_score,
    matthews_correlation,
    pearson_correlation,
    spearman_correlation,
)
from jaxlab.metrics.significance import PairedTest, paired_test
from jaxlab.metrics.spans import (
    answer_f1,
    entity_scores,
    find_entities,
    normalize_answer,
    squad_scores,
)
from jaxlab.metrics.top_k import TopK, top_k_blockwise

__all__ = [
    "GLUE_METRICS",
    "PairedTest",
    "TopK",
    "accuracy",
    "agreement",
    "answer_f1",
    "calibration_error",
    "eleven_point_average_precision",
    "entity_scores",
    "f1_score",
    "find_entities",
    "glue_average",
    "glue_scores",
    "linear_cka",
    "macro_f1_score",
    "matthews_correlation",
    "mean_divergence",
    "mean_per_class_accuracy",
    "mean_recall",
    "normalize_answer",
    "paired_test",
    "pearson_correlation",
    "positives_from_ids",
    "ranks_blockwise",
    "ranks_from_similarity",
    "recall_at_k",
    "recall_table",
    "roc_auc",
    "score_predictions",
    "spearman_correlation",
    "squad_scores",
    "top_k_blockwise",
    "transpose_positives",
    "two_way_recalls",
]
