"""Scores of classes and numbers against slow second forms and worked examples."""

import numpy as np
import pytest
from scipy import stats

from jaxlab import metrics

RNG = np.random.default_rng(0)
CHOSEN, LABELS = RNG.integers(0, 2, 60), RNG.integers(0, 2, 60)
MANY, MANY_LABELS = RNG.integers(0, 4, 80), RNG.integers(0, 4, 80)
VALUES, TARGETS = np.round(RNG.normal(size=50), 1), np.round(RNG.normal(size=50), 1)


def slow_f1(chosen, labels, positive):
    pairs = list(zip(chosen, labels, strict=True))
    found = sum(c == positive and t == positive for c, t in pairs)
    precision = found / max(sum(c == positive for c, _ in pairs), 1)
    recall = found / max(sum(t == positive for _, t in pairs), 1)
    return 2 * precision * recall / (precision + recall) if found else 0.0


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    np.testing.assert_allclose(metrics.binary_f1(CHOSEN, LABELS), slow_f1(CHOSEN, LABELS, 1))
    each = [slow_f1(MANY, MANY_LABELS, c) for c in range(4)]
    np.testing.assert_allclose(metrics.macro_f1(MANY, MANY_LABELS, 9), np.mean(each))


def test_matthews_is_the_formula_of_its_counts():
    tp, tn = (CHOSEN & LABELS).sum(), ((1 - CHOSEN) & (1 - LABELS)).sum()
    fp, fn = (CHOSEN & (1 - LABELS)).sum(), ((1 - CHOSEN) & LABELS).sum()
    root = np.sqrt(float(tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    np.testing.assert_allclose(metrics.matthews(CHOSEN, LABELS), (tp * tn - fp * fn) / root)


def test_correlations_are_scipys_with_ties():
    found = metrics.regression_scores(VALUES, TARGETS)
    np.testing.assert_allclose(found["pearson"], stats.pearsonr(VALUES, TARGETS)[0])
    np.testing.assert_allclose(found["spearman"], stats.spearmanr(VALUES, TARGETS)[0])
    np.testing.assert_allclose(found["mse"], np.mean((VALUES - TARGETS) ** 2))


def test_what_never_changes_correlates_with_nothing():
    assert metrics.pearson(np.ones(4), np.arange(4.0)) == 0.0
    assert metrics.matthews(np.zeros(4, int), np.array([0, 1, 0, 1])) == 0.0
    assert metrics.binary_f1(np.zeros(3, int), np.zeros(3, int)) == 0.0


def test_glue_has_its_metrics_by_task():
    assert list(metrics.glue_scores("mrpc", CHOSEN, LABELS)) == ["f1", "accuracy"]
    assert list(metrics.glue_scores("stsb", VALUES, TARGETS)) == ["pearson", "spearman"]
    assert metrics.glue_scores("rte", CHOSEN, CHOSEN) == {"accuracy": 1.0}
    with pytest.raises(ValueError, match="'ner' is no task of GLUE"):
        metrics.glue_scores("ner", CHOSEN, LABELS)


def test_both_averages_of_glue():
    scores = {"mrpc": {"f1": 0.9, "accuracy": 0.8}, "rte": {"accuracy": 0.7}}
    np.testing.assert_allclose(metrics.glue_average(scores), (0.85 + 0.7) / 2)
    np.testing.assert_allclose(metrics.glue_average(scores, first=True), (0.9 + 0.7) / 2)
    with pytest.raises(ValueError, match="mrpc"):
        metrics.glue_average({"mrpc": {"f1": 0.9}})


def test_calibration_is_the_mean_gap_of_bins():
    logits = RNG.normal(size=(40, 3)) * 2
    labels = RNG.integers(0, 3, 40)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    slow = 0.0
    for low in np.arange(15) / 15:
        inside = (p.max(axis=1) >= low) & (p.max(axis=1) < low + 1 / 15)
        if inside.any():
            right = (p.argmax(axis=1) == labels)[inside].mean()
            slow += inside.mean() * abs(p.max(axis=1)[inside].mean() - right)
    np.testing.assert_allclose(metrics.expected_calibration_error(logits, labels), slow)


@pytest.mark.parametrize("metric", [metrics.binary_f1, metrics.pearson, metrics.spearman])
def test_labels_that_do_not_fit_are_refused(metric):
    with pytest.raises(ValueError, match="2 predictions and 3 labels"):
        metric(np.array([0, 1]), np.array([0, 1, 1]))


def test_classes_out_of_range_are_refused():
    with pytest.raises(ValueError, match="0 to 3 are not all in 0 to 1"):
        metrics.macro_f1(np.array([0, 3]), np.array([0, 1]), 2)
