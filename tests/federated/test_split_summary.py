import numpy as np
import pytest

from jaxlab.federated.split_summary import summarize_split
from jaxlab.federated.splitters import split_by_dirichlet, split_iid


def test_numbers_of_a_split_by_hand():
    labels = np.array([0, 0, 1, 1, 2])
    split = [np.array([0, 1]), np.array([2, 0]), np.zeros(0, np.int64)]
    summary = summarize_split(split, 5, labels)
    assert summary.sizes.tolist() == [2, 2, 0] and summary.empty_clients == [2]
    assert (summary.num_unused, summary.num_shared) == (2, 1)
    # Held are the classes 0, 0, 1, 0: shares 3/4 and 1/4.
    np.testing.assert_allclose(summary.label_distances, [0.25, 0.25, np.nan])
    assert summary.num_classes.tolist() == [1, 2, 0]
    assert str(summary) == (
        "3 clients hold 4 of 5 examples: from 0 over 2 (median) to 2\n"
        "1 clients have no examples: [2]\n"
        "2 examples unused, 1 held more than once\n"
        "label skew 0.250; a client holds 1.5 classes, from 1 to 2"
    )


def test_skew_grows_as_alpha_falls():
    labels = np.random.default_rng(0).integers(10, size=5000)
    skews = [
        summarize_split(split_by_dirichlet(labels, 20, alpha, seed=0), 5000, labels).label_skew
        for alpha in (100.0, 1.0, 0.1)
    ]
    even = summarize_split(split_iid(5000, 20, seed=0), 5000, labels).label_skew
    assert even < 0.12 < 0.2 < skews[1] < skews[2] and skews[0] < skews[1]


@pytest.mark.parametrize("split", [[], [np.zeros(0, np.int64)]])
def test_nothing_to_hold_is_summarized_too(split):
    summary = summarize_split(split, 3, np.zeros(3, int))
    assert np.isnan(summary.label_skew)
    assert str(summary).startswith(f"{len(split)} clients hold 0 of 3 examples")
    assert "label skew" not in str(summarize_split([np.arange(3)], 3))
