"""Recalls, ranks and blockwise search against slow NumPy forms."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.metrics import (
    mean_recall,
    positives_from_ids,
    ranks_blockwise,
    ranks_from_similarity,
    recall_at_k,
    recall_table,
    transpose_positives,
    two_way_recalls,
)

BLOCKS = {"query_block": 8, "gallery_block": 16}


def slow_rank(scores, true, ties):
    """Place of the first true item in the sorted gallery."""
    if not len(true):
        return -1

    def order(item):
        second = (item in true) if ties == "against" else item
        return -scores[item], second

    ranking = sorted(range(len(scores)), key=order)
    return next(place for place, item in enumerate(ranking) if item in true)


def small_integers(rng, shape):
    """Embeddings whose inner products are exact in float32, with many ties."""
    return rng.integers(-2, 3, shape).astype(np.float32)


def random_positives(rng, queries, items):
    sizes = rng.integers(0, 4, queries)
    return [rng.choice(items, min(size, items), replace=False).tolist() for size in sizes]


@st.composite
def ranking_cases(draw):
    seed, queries, items = (draw(st.integers(lo, hi)) for lo, hi in [(0, 10**6), (1, 8), (1, 12)])
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (queries, items)).astype(np.float32)
    return scores, random_positives(rng, queries, items)


@pytest.mark.parametrize("ties", ["stable", "against"])
@given(ranking_cases())
@settings(max_examples=60, deadline=None)
def test_ranks_equal_a_sorted_list(ties, case):
    scores, positives = case
    ranks = ranks_from_similarity(scores, positives, ties=ties)
    expected = [slow_rank(row, true, ties) for row, true in zip(scores, positives, strict=True)]
    assert ranks.tolist() == expected and ranks.dtype == np.int64


@pytest.mark.parametrize("ties", ["stable", "against"])
@pytest.mark.parametrize(("queries", "items"), [(5, 7), (19, 50)])
def test_blockwise_ranks_equal_the_dense_ones_with_ties(ties, queries, items):
    rng = np.random.default_rng(queries)
    q, g = small_integers(rng, (queries, 6)), small_integers(rng, (items, 6))
    positives = random_positives(rng, queries, items)
    expected = ranks_from_similarity(q @ g.T, positives, ties=ties)
    ours = ranks_blockwise(q, g, positives, ties=ties, **BLOCKS)
    np.testing.assert_array_equal(ours, expected)
    assert ours.dtype == np.int64 and (ours >= -1).all()


def test_blockwise_ranks_of_real_valued_embeddings():
    rng = np.random.default_rng(0)
    q, g = rng.normal(size=(19, 6)), rng.normal(size=(50, 6))
    positives = random_positives(rng, 19, 50)
    expected = ranks_from_similarity(q @ g.T, positives)
    ours = ranks_blockwise(q.astype(np.float32), g.astype(np.float32), positives, **BLOCKS)
    np.testing.assert_array_equal(ours, expected)


def test_a_constant_model_gets_credit_for_position_only_unless_ties_count_against():
    similarity = np.zeros((4, 4), np.float32)
    positives = [[i] for i in range(4)]
    assert ranks_from_similarity(similarity, positives).tolist() == [0, 1, 2, 3]
    assert ranks_from_similarity(similarity, positives, ties="against").tolist() == [3] * 4
    ones = np.ones((4, 2), np.float32)
    assert ranks_blockwise(ones, ones, positives, ties="against").tolist() == [3] * 4


def test_other_true_items_of_the_same_score_do_not_count_against():
    similarity = np.array([[1.0, 1.0, 1.0, 0.0]], np.float32)
    assert ranks_from_similarity(similarity, [[0, 1]], ties="against").tolist() == [1]
    assert ranks_from_similarity(similarity, [[1, 1, 2]], ties="against").tolist() == [1]


def test_padding_never_wins_when_all_scores_are_negative():
    q, g = np.ones((3, 4), np.float32), -np.ones((5, 4), np.float32)
    ranks = ranks_blockwise(q, g, [[4]] * 3, ties="against", query_block=2, gallery_block=4)
    assert ranks.tolist() == [4, 4, 4]


def test_no_queries_give_no_results():
    none, gallery = np.zeros((0, 4), np.float32), np.ones((5, 4), np.float32)
    assert ranks_blockwise(none, gallery, []).shape == (0,)


def test_recall_counts_queries_without_truth_as_misses_unless_skipped():
    ranks = np.array([0, 4, 5, -1])
    assert recall_at_k(ranks, 5) == 50.0
    assert recall_at_k(ranks, 5, missing="skip") == pytest.approx(200 / 3)
    assert mean_recall(ranks, (1, 5)) == pytest.approx((25 + 50) / 2)
    table = recall_table(ranks)
    assert table == {"r1": 25.0, "r5": 50.0, "r10": 75.0, "mean_recall": 50.0}


@given(st.lists(st.integers(-1, 30), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_recall_grows_with_k_and_counts_by_hand(ranks):
    recalls = [recall_at_k(np.array(ranks), k) for k in (1, 5, 10, 100)]
    assert recalls == sorted(recalls)
    found = sum(0 <= rank < 5 for rank in ranks)
    assert recalls[1] == pytest.approx(100 * found / len(ranks))


def test_two_directions_with_several_texts_of_an_image():
    """Images 0 and 1; texts 0 and 1 belong to image 0, text 2 to image 1 and looks like image 0."""
    images = np.eye(2, dtype=np.float32)
    texts = np.array([[1, 0], [0.9, 0.1], [0.8, 0.3]], np.float32)
    table = two_way_recalls(images, texts, [[0], [0], [1]], ks=(1, 2))
    assert table == {
        "text_to_image_r1": pytest.approx(200 / 3), "text_to_image_r2": 100.0,
        "image_to_text_r1": 100.0, "image_to_text_r2": 100.0,
        "mean_recall": pytest.approx((200 / 3 + 300) / 4),
    }  # fmt: skip


@given(ranking_cases())
@settings(max_examples=50, deadline=None)
def test_transposing_positives_twice_gives_them_back(case):
    scores, positives = case
    twice = transpose_positives(transpose_positives(positives, scores.shape[1]), len(positives))
    assert twice == [sorted(items) for items in positives]


def test_positives_from_ids_takes_repeated_and_unknown_ids():
    ours = positives_from_ids(np.array([5, 7, 9]), np.array([7, 5, 7]))
    assert ours == [[1], [0, 2], []]
    assert ours[0] is not positives_from_ids([5], [7, 5])[0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_diverged_model_is_refused_not_ranked_first(bad):
    broken = np.ones((3, 4), np.float32)
    broken[2, 1] = bad
    good = np.ones((3, 4), np.float32)
    for call in (
        lambda: ranks_from_similarity(broken, [[0]] * 3),
        lambda: ranks_blockwise(broken, good, [[0]] * 3),
    ):
        with pytest.raises(ValueError, match="1 of 3 rows hold NaN or infinity.*row 2"):
            call()


def test_errors_name_what_was_given():
    good = np.ones((3, 4), np.float32)
    cases = [
        (lambda: ranks_blockwise(good, np.ones((2, 5), np.float32), []), r"\(3, 4\).*\(2, 5\)"),
        (lambda: ranks_blockwise(good, good, [[0]] * 3, query_block=0), "query_block=0"),
        (lambda: ranks_blockwise(good, good, [[0]] * 3, gallery_block=0), "gallery_block=0"),
        (lambda: ranks_blockwise(good, good, [[0]]), "positives of 1 queries for 3"),
        (lambda: ranks_blockwise(good, good, [[0], [3], [0]]), r"positives\[1\] holds position 3"),
        (lambda: ranks_from_similarity(good, [[0], [-1], [0]]), r"positives\[1\] .* -1"),
        (lambda: ranks_from_similarity(good, [[0]] * 3, ties="lucky"), "ties='lucky'"),
        (lambda: recall_at_k(np.array([0]), 0), "k=0 is not positive"),
        (lambda: recall_at_k(np.array([-1]), 1, missing="skip"), "no query left of 1"),
        (lambda: recall_at_k(np.array([0]), 1, missing="drop"), "missing='drop'"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
