"""Classification metrics against their definitions, written slowly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.metrics import (
    accuracy,
    eleven_point_average_precision,
    mean_per_class_accuracy,
    roc_auc,
)


@st.composite
def binary_cases(draw):
    """Scores with ties, and labels of both kinds."""
    n = draw(st.integers(2, 25))
    labels = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
    labels[0], labels[-1] = 1, 0
    scores = draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n))
    return np.array(scores, np.float32) / 4, np.array(labels)


def slow_eleven_points(scores, labels):
    """Every threshold is tried for every recall, in integers."""
    total = labels.sum()
    points = [(0, 1.0)]
    for threshold in set(scores.tolist()):
        taken = scores >= threshold
        points.append((int(labels[taken].sum()), labels[taken].sum() / taken.sum()))
    return np.mean([max(p for hits, p in points if 10 * hits >= t * total) for t in range(11)])


def slow_auc(scores, labels):
    """All pairs of a positive and a negative."""
    wins = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p in scores[labels == 1]
        for n in scores[labels == 0]
    ]
    return np.mean(wins)


@given(binary_cases())
@settings(max_examples=80, deadline=None)
def test_eleven_point_precision_equals_the_definition(case):
    assert eleven_point_average_precision(*case) == pytest.approx(slow_eleven_points(*case))


@given(binary_cases())
@settings(max_examples=80, deadline=None)
def test_roc_auc_equals_all_pairs_with_ties_as_half(case):
    scores, labels = case
    assert roc_auc(scores, labels) == pytest.approx(slow_auc(scores, labels))
    assert roc_auc(-scores, labels) == pytest.approx(1 - roc_auc(scores, labels))


def test_eleven_point_fixture_and_recall_of_three_tenths():
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    labels = np.array([1, 0, 1, 0, 1])
    assert eleven_point_average_precision(scores, labels) == pytest.approx(0.7636364, abs=1e-7)
    # 3 of 10 positives come first: recall 0.3 is reached, though 3 / 10 < 0.1 * 3 in floats.
    scores = np.arange(20, 0, -1).astype(float)
    labels = np.r_[np.ones(3), np.zeros(10), np.ones(7)].astype(int)
    expected = (4 * 1.0 + sum(max(h / (h + 10) for h in range(t, 11)) for t in range(4, 11))) / 11
    assert eleven_point_average_precision(scores, labels) == pytest.approx(expected)


def test_eleven_point_precision_of_many_classes_is_their_mean():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(30, 4))
    labels = (rng.uniform(size=(30, 4)) < 0.4).astype(int)
    each = [eleven_point_average_precision(scores[:, c], labels[:, c]) for c in range(4)]
    assert len(set(each)) > 1
    assert eleven_point_average_precision(scores, labels) == pytest.approx(np.mean(each))


def test_perfect_and_reversed_scores():
    labels = np.array([0, 1, 0, 1, 1])
    assert roc_auc(labels.astype(float), labels) == 1.0
    assert roc_auc(-labels.astype(float), labels) == 0.0
    assert roc_auc(np.zeros(5), labels) == 0.5
    assert eleven_point_average_precision(labels.astype(float), labels) == 1.0


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_accuracies_equal_a_loop(seed, rows, classes):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (rows, classes)).astype(np.float32)
    labels = rng.integers(0, classes, rows)
    hits = {c: [] for c in labels.tolist()}
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        hits[label].append(row.index(max(row)) == label)
    assert accuracy(scores, labels) == pytest.approx(np.mean(sum(hits.values(), [])))
    expected = np.mean([np.mean(values) for values in hits.values()])
    assert mean_per_class_accuracy(scores, labels) == pytest.approx(expected)


def test_mean_per_class_weighs_classes_not_rows():
    scores = np.tile(np.array([1.0, 0.0, 0.0]), (10, 1))
    labels = np.array([0] * 9 + [1])
    assert accuracy(scores, labels) == 0.9
    assert mean_per_class_accuracy(scores, labels) == 0.5  # class 2 does not occur


def test_errors_name_what_was_given():
    two, nan = np.zeros(2), np.array([0.0, np.nan])
    cases = [
        (lambda: accuracy(np.zeros((2, 3)), np.array([0, 3])), "label 3 of row 1.*wanted 0 to 2"),
        (lambda: accuracy(np.zeros((2, 3)), np.array([-1, 0])), "label -1 of row 0"),
        (lambda: accuracy(np.zeros((2, 3)), np.array([0])), r"\(2, 3\) and labels \(1,\)"),
        (lambda: accuracy(np.zeros((0, 3)), np.zeros(0, int)), "at least one row"),
        (lambda: accuracy(nan[None], np.array([0])), "1 of 2 scores are NaN"),
        (lambda: roc_auc(two, np.array([1, 1])), "2 positive and 0 negative"),
        (lambda: roc_auc(two, np.array([1, 2])), r"labels hold \[2\]"),
        (lambda: roc_auc(two, np.array([1])), r"\(2,\) and labels \(1,\)"),
        (lambda: roc_auc(nan, np.array([1, 0])), "1 of 2 scores are NaN"),
        (lambda: eleven_point_average_precision(two, np.array([0, 0])), "no positive among 2"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
