"""Scoring of stored predictions, and the errors that list what is wrong with them."""

import numpy as np
import pytest

from jaxlab.metrics import ranks_from_similarity, recall_table, score_predictions


def ranking(*first, length=10):
    """Ten ids, the given ones first."""
    rest = [i for i in range(1000, 1000 + length) if i not in first]
    return [*first, *rest][:length]


def test_any_true_item_counts():
    predictions = {1: ranking(5, 6), 2: ranking(9, 8, 7), 3: ranking(0)}
    truth = {1: [6, 77], 2: [7, 9], 3: [4]}
    scores = score_predictions(predictions, truth)
    assert scores["r1"] == pytest.approx(100 / 3)
    assert scores["r5"] == scores["r10"] == pytest.approx(200 / 3)
    assert scores["mean_recall"] == pytest.approx(500 / 9)


def test_it_equals_ranks_of_the_similarity():
    rng = np.random.default_rng(0)
    similarity = rng.normal(size=(20, 40)).astype(np.float32)
    positives = [rng.choice(40, rng.integers(0, 4), replace=False).tolist() for _ in range(20)]
    order = np.argsort(-similarity, axis=1)[:, :10]
    ours = score_predictions(
        dict(enumerate(order.tolist())), dict(enumerate(positives)), missing="skip"
    )
    expected = recall_table(ranks_from_similarity(similarity, positives), missing="skip")
    assert ours == pytest.approx(expected)


def test_queries_without_truth_are_misses_unless_skipped():
    predictions, truth = {1: ranking(5), 2: ranking(6)}, {1: [5], 2: []}
    assert score_predictions(predictions, truth)["r1"] == 50.0
    assert score_predictions(predictions, truth, missing="skip")["r1"] == 100.0


def test_predictions_of_other_queries_are_ignored_and_small_galleries_accepted():
    predictions = {1: [3, 4], 99: ["x"]}
    assert score_predictions(predictions, {1: [4]}, num_items=2)["r5"] == 100.0


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        (None, "query 7: missing; predict at least 10 ids"),
        ("1234567890", "query 7: '1234567890' is no list"),
        (ranking(5)[:9], "query 7: 9 ids, wanted at least 10"),
        ([5, 5, *ranking()][:10], "query 7: an id occurs twice"),
        (ranking("5"), "query 7: id '5' is no integer"),
        (ranking(True), "query 7: id True is no integer"),
    ],
)
def test_a_bad_prediction_names_its_query(predicted, message):
    predictions = {} if predicted is None else {7: predicted}
    with pytest.raises(ValueError, match=f"(?s)1 of 1 queries.*{message}"):
        score_predictions(predictions, {7: [5]})


def test_all_problems_are_reported_together_up_to_ten():
    with pytest.raises(ValueError, match=r"(?s)^12 of 12 .*query 0: .*query 9: .*and 2 more$"):
        score_predictions({}, {i: [1] for i in range(12)})
