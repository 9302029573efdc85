"""Relations of bertdistiller, from its stored numbers."""

import numpy as np
import pytest

from tests.distillation.bertdistiller import CASES, GOLDEN, MAKER, check, ours


@pytest.mark.parametrize("name", CASES)
def test_relations_are_those_of_bertdistiller(name):
    with np.load(GOLDEN / "distillation_bertdistiller.npz") as stored:
        expected = float(stored[f"{name}:loss"]), stored[f"{name}:gradient"]
    check(ours(CASES[name], MAKER["draw"]()), expected)


def test_our_mean_is_over_tokens():
    """A short text has as much weight there as a long one, and here as much as its tokens."""
    teacher, student, mask = MAKER["draw"]()
    case = CASES["value_value"]
    alone = [
        ours(case, (teacher[i : i + 1], student[i : i + 1], mask[i : i + 1]))[0] for i in range(3)
    ]
    by_text, by_token = (
        ours(case, (teacher, student, mask), norm)[0] for norm in ("bertdistiller", "exact")
    )
    np.testing.assert_allclose(by_text, np.mean(alone), rtol=1e-5)
    np.testing.assert_allclose(by_token, np.average(alone, weights=MAKER["LENGTHS"]), rtol=1e-5)
