"""Metrics of text tasks against slow second forms and SciPy."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jaxlab.metrics import (
    GLUE_METRICS,
    agreement,
    calibration_error,
    entity_scores,
    f1_score,
    find_entities,
    glue_average,
    glue_scores,
    linear_cka,
    macro_f1_score,
    matthews_correlation,
    mean_divergence,
    normalize_answer,
    paired_test,
    pearson_correlation,
    spearman_correlation,
    squad_scores,
)

RNG = np.random.default_rng(0)
CLASSES = [(RNG.integers(k, size=50), RNG.integers(k, size=50)) for k in (2, 2, 3, 5)]


@pytest.mark.parametrize(("guess", "true"), CLASSES)
def test_matthews_is_the_correlation_of_indicators(guess, true):
    def covariance(left, right):
        return sum(np.cov(left == c, right == c, bias=True)[0, 1] for c in range(5))

    expected = covariance(guess, true) / math.sqrt(
        covariance(guess, guess) * covariance(true, true)
    )
    assert matthews_correlation(guess, true) == pytest.approx(expected, abs=1e-12)


def test_matthews_of_two_classes_is_the_closed_form_and_of_one_class_zero():
    guess, true = CLASSES[0]
    tp, tn = ((guess == c) & (true == c) for c in (1, 0))
    fp, fn = (guess > true), (guess < true)
    tp, tn, fp, fn = (float(x.sum()) for x in (tp, tn, fp, fn))
    expected = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert matthews_correlation(guess, true) == pytest.approx(expected, rel=1e-12)
    assert matthews_correlation(np.ones(4, int), np.array([1, 0, 1, 0])) == 0


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=30))
def test_correlations_are_those_of_scipy_with_ties(pairs):
    left, right = np.array(pairs, float).T
    if left.std() == 0 or right.std() == 0:
        assert spearman_correlation(left, right) == pearson_correlation(left, right) == 0
        return
    assert pearson_correlation(left, right) == pytest.approx(
        stats.pearsonr(left, right).statistic, abs=1e-9
    )
    assert spearman_correlation(left, right) == pytest.approx(
        stats.spearmanr(left, right).statistic, abs=1e-9
    )


@pytest.mark.parametrize(("guess", "true"), CLASSES)
def test_f1_is_the_harmonic_mean_of_precision_and_recall(guess, true):
    scores = []
    for c in np.union1d(guess, true):
        hits = [g == t == c for g, t in zip(guess, true, strict=True)]
        precision, recall = sum(hits) / sum(guess == c), sum(hits) / sum(true == c)
        scores.append(2 * precision * recall / (precision + recall) if any(hits) else 0.0)
        assert f1_score(guess, true, int(c)) == pytest.approx(scores[-1], rel=1e-12)
    assert macro_f1_score(guess, true) == pytest.approx(np.mean(scores), rel=1e-12)
    assert f1_score(np.zeros(3, int), np.zeros(3, int)) == 0


def test_glue_tasks_have_their_metrics():
    guess, true = CLASSES[0]
    assert glue_scores("cola", guess, true) == {"matthews": matthews_correlation(guess, true)}
    both = glue_scores("mrpc", guess, true)
    assert list(both) == ["f1", "accuracy"] and both["accuracy"] == (guess == true).mean()
    numbers = RNG.random(50), RNG.random(50)
    assert set(glue_scores("stsb", *numbers)) == {"pearson", "spearman"}
    with pytest.raises(ValueError, match="no task 'sst' of GLUE"):
        glue_scores("sst", guess, true)
    with pytest.raises(ValueError, match="wanted as many"):
        glue_scores("rte", guess, true[1:])


def test_the_average_says_what_it_averages():
    # Scores of BERT-base as often printed: 84.6/83.4, 71.2, 90.5, 93.5, 52.1, 85.8, 88.9, 66.4.
    scores = {
        "mnli": {"accuracy": 84.6}, "mnli_mismatched": {"accuracy": 83.4},
        "qqp": {"f1": 71.2, "accuracy": 89.2}, "qnli": {"accuracy": 90.5},
        "sst2": {"accuracy": 93.5}, "cola": {"matthews": 52.1},
        "stsb": {"pearson": 87.1, "spearman": 85.8}, "mrpc": {"f1": 88.9, "accuracy": 84.8},
        "rte": {"accuracy": 66.4},
    }  # fmt: skip
    first = [84.6, 71.2, 90.5, 93.5, 52.1, 87.1, 88.9, 66.4]
    means = [84.0, 80.2, 90.5, 93.5, 52.1, 86.45, 86.85, 66.4]
    assert glue_average(scores, "papers") == pytest.approx(sum(first) / 8)
    assert glue_average(scores) == pytest.approx(sum(means) / 8)
    with pytest.raises(
        ValueError, match=r"unknown: \['ax'\], without a score: \['mrpc/accuracy'\]"
    ):
        glue_average({"ax": {}, "mrpc": {"f1": 1.0}})
    with pytest.raises(ValueError, match="convention='mean'"):
        glue_average(scores, "mean")
    assert set(GLUE_METRICS) >= set(scores)


def test_answers_are_normalised_as_in_the_official_script():
    assert normalize_answer(" The  U.S.A., an  \tArea ") == "usa area"
    assert normalize_answer("theater-a") == "theatera"


def test_squad_takes_the_best_answer_and_knows_empty_ones():
    answers = {"1": ["the cat", "a black cat"], "2": [], "3": [], "4": ["dog"]}
    predictions = {"1": "black cat sat", "2": "", "3": "x", "4": "The dog!"}
    scores = squad_scores(predictions, answers)
    # Question 1: 2 of 3 and 2 of 2 words: F1 0.8.
    assert scores["exact_match"] == pytest.approx(2 / 4)
    assert scores["f1"] == pytest.approx((0.8 + 1 + 0 + 1) / 4)
    assert scores["has_answer_f1"] == pytest.approx(0.9)
    assert scores["no_answer_exact_match"] == pytest.approx(0.5)
    assert set(squad_scores({"1": "cat"}, {"1": ["cat"]})) == {"exact_match", "f1"}
    with pytest.raises(ValueError, match=r"1 of 4 questions have no prediction: \['4'\]"):
        squad_scores({"1": "", "2": "", "3": ""}, answers)


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        ("B-A I-A O B-A", {("A", 0, 2), ("A", 3, 4)}),
        ("I-A I-A B-A I-B", {("A", 0, 2), ("A", 2, 3), ("B", 3, 4)}),
        ("O O", set()),
        ("B-A B-A", {("A", 0, 1), ("A", 1, 2)}),
        ("O I-B-C", {("B-C", 1, 2)}),
    ],
)
def test_entities_are_found_as_the_script_of_conll_does(tags, entities):
    assert find_entities(tags.split()) == entities


def test_entities_count_only_whole():
    true = [["B-A", "I-A", "O"], ["B-B", "O"]]
    scores = entity_scores([["B-A", "O", "O"], ["B-B", "B-A"]], true)
    assert scores == {"precision": 1 / 3, "recall": 1 / 2, "f1": 2 / 5}
    assert entity_scores([["O"]], [["O"]])["f1"] == 0
    with pytest.raises(ValueError, match=r"sentences \[1\]"):
        entity_scores([["O"], ["O"]], [["O"], ["O", "O"]])


def test_agreement_and_divergence():
    student, teacher = RNG.normal(size=(2, 40, 3)).astype(np.float32)
    same = [int(s.argmax()) == int(t.argmax()) for s, t in zip(student, teacher, strict=True)]
    assert agreement(student, teacher) == np.mean(same)
    expected = [
        stats.entropy(np.exp(t) / np.exp(t).sum(), np.exp(s) / np.exp(s).sum())
        for s, t in zip(student.astype(float), teacher.astype(float), strict=True)
    ]
    assert mean_divergence(student, teacher) == pytest.approx(np.mean(expected), rel=1e-9)
    assert mean_divergence(student + 5, student) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="NaN"):
        agreement(student * np.float32("nan"), teacher)


@pytest.mark.parametrize(("rows", "width"), [(5, 9), (40, 4)])
def test_cka_is_that_of_centred_kernels(rows, width):
    left, right = RNG.normal(size=(rows, width)), RNG.normal(size=(rows, width + 2))
    centre = np.eye(rows) - 1 / rows
    ours, theirs = (centre @ (x @ x.T) @ centre for x in (left, right))
    expected = np.trace(ours @ theirs) / np.sqrt(np.trace(ours @ ours) * np.trace(theirs @ theirs))
    assert linear_cka(left, right) == pytest.approx(expected, rel=1e-9)
    turn = np.linalg.qr(RNG.normal(size=(width, width)))[0]
    assert linear_cka(left, 3 * left @ turn + 1) == pytest.approx(1, rel=1e-9)
    assert linear_cka(left, np.ones((rows, 2))) == 0


def test_calibration_error_is_the_mean_gap_over_bins():
    probabilities = RNG.dirichlet((1, 1, 1), size=300)
    labels = RNG.integers(3, size=300)
    total = 0.0
    for lower in range(15):
        chosen = [
            (p.max(), p.argmax() == y)
            for p, y in zip(probabilities, labels, strict=True)
            if lower / 15 < p.max() <= (lower + 1) / 15
        ]
        if chosen:
            confidence, right = np.mean(chosen, axis=0)
            total += len(chosen) / 300 * abs(confidence - right)
    assert calibration_error(probabilities, labels) == pytest.approx(total, rel=1e-9)
    sure = np.eye(3)[labels]
    assert calibration_error(sure, labels) == 0
    with pytest.raises(ValueError, match="give probabilities, not logits"):
        calibration_error(probabilities * 3, labels)


def test_paired_tests_are_those_of_scipy_and_of_all_signs():
    first, second = [0.91, 0.93, 0.9, 0.92, 0.95, 0.9], [0.9, 0.9, 0.91, 0.89, 0.9, 0.88]
    found = paired_test(first, second)
    differences = np.subtract(first, second)
    assert found.t_test == pytest.approx(stats.ttest_rel(first, second).pvalue, rel=1e-9)
    assert found.wilcoxon == pytest.approx(stats.wilcoxon(differences).pvalue, rel=1e-9)
    low, high = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9)
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=6)]
    expected = np.mean([s >= abs(differences.sum()) - 1e-12 for s in sums])
    assert found.sign_flips == expected and found.wins == 5 and found.count == 6


def test_paired_tests_at_their_edges():
    five = paired_test([1.0] * 5, [0.0] * 5)
    assert five.sign_flips == 2 / 2**5 and five.t_test == 0 and five.low == five.high == 1
    same = paired_test([0.5, 0.6], [0.5, 0.6])
    assert same.t_test == same.wilcoxon == same.sign_flips == 1
    many = RNG.normal(0.3, 1, size=30)
    sampled = paired_test(many.tolist(), [0.0] * 30).sign_flips
    expected = stats.permutation_test(
        (many,), np.sum, permutation_type="samples", n_resamples=50_000, rng=0
    ).pvalue
    assert sampled == pytest.approx(expected, abs=6 * np.sqrt(expected / 50_000))
    with pytest.raises(ValueError, match="1 and 1 scores"):
        paired_test([1.0], [1.0])
    with pytest.raises(ValueError, match="finite"):
        paired_test([1.0, math.nan], [1.0, 2.0])


@pytest.mark.parametrize("function", [matthews_correlation, pearson_correlation, f1_score])
def test_empty_and_uneven_predictions_are_refused(function):
    with pytest.raises(ValueError, match="at least one row"):
        function(np.zeros(0, int), np.zeros(0, int))
    with pytest.raises(ValueError, match="one of each for every row"):
        function(np.zeros(2, int), np.zeros(3, int))
