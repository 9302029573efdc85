"""Losses, gradients and a run of TextBrewer, from its stored numbers."""

import functools

import numpy as np
import pytest

from tests.distillation.textbrewer import (
    CASES,
    GOLDEN,
    MAKER,
    check_gradients,
    check_run,
    our_run,
    ours,
)


@functools.cache
def golden():
    """Case -> what -> its numbers."""
    stored = {}
    with np.load(GOLDEN / "distillation_textbrewer.npz") as file:
        for name in file.files:
            case, _, what = name.partition(":")
            stored.setdefault(case, {})[what] = file[name]
    return stored


def test_every_case_is_stored():
    assert golden().keys() == {*CASES, "run"}


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_textbrewer(name):
    expected = dict(golden()[name])
    loss, gradients = ours(CASES[name], MAKER["draw"](CASES[name]))
    np.testing.assert_allclose(loss, expected.pop("loss"), rtol=1e-5)
    check_gradients(gradients, expected)


def test_a_run_is_that_of_textbrewer():
    expected = dict(golden()["run"])
    check_run(our_run(), (expected.pop("losses"), expected))
