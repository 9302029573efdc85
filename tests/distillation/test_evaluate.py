"""Predictions of a set: every example once, in a program that is made once."""

import jax
import numpy as np
import pytest

from jaxlab.distillation.evaluate import Predictions, check_finite, in_order, predict
from tests.distillation.networks import FROZEN, forward, make_batch

TRACES = []


def counted(params, batch):
    TRACES.append(1)
    return forward(params, batch)


def batches():
    batch = {name: np.asarray(value) for name, value in make_batch().items()}
    for first in (0, 8):
        # Row 6 has no token: it is padding, and no example.
        yield {**batch, "example_id": np.arange(first, first + 8, dtype=np.int64) + 2**40}


def test_every_example_counts_once_and_programs_are_made_once():
    params = FROZEN["teacher"]
    found = predict(counted, params, batches())
    rows = np.delete(np.arange(8), 6)
    np.testing.assert_array_equal(found.example_ids, 2**40 + np.concatenate([rows, rows + 8]))
    expected = np.asarray(forward(params, make_batch()).logits)[rows]
    np.testing.assert_allclose(found.logits, np.concatenate([expected] * 2), rtol=1e-5)
    traced = len(TRACES)
    predict(counted, jax.tree.map(lambda leaf: leaf + 1.0, params), batches())
    assert len(TRACES) == traced


def test_an_empty_set_and_broken_logits_are_told():
    with pytest.raises(ValueError, match="there is no batch to predict"):
        predict(forward, FROZEN["teacher"], [])
    broken = np.array([[0.0, 1.0], [np.nan, 0.0], [np.inf, 0.0]], np.float32)
    with pytest.raises(ValueError, match="for 2 examples, ids 8, 9"):
        check_finite(Predictions(np.array([7, 8, 9]), broken))


def test_predictions_come_in_the_order_that_is_asked_for():
    logits = np.arange(6, dtype=np.float32).reshape(3, 2)
    predictions = Predictions(np.array([7, 8, 9]), logits)
    np.testing.assert_array_equal(in_order(predictions, np.array([9, 7])).logits, logits[[2, 0]])
    with pytest.raises(ValueError, match=r"1 examples have no prediction, such as \[5\]"):
        in_order(predictions, np.array([9, 5]))
