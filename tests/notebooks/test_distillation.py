"""The notebook of distillation runs from the first cell to the last."""

import re

import pytest


@pytest.mark.tiny
@pytest.mark.timeout(900)
def test_the_notebook_runs_and_says_what_it_promises(run_notebook):
    text, _ = run_notebook("distillation")
    # Without the pooler, which a mean of tokens does not need.
    assert "6 layers of 384, 22,565,376 parameters" in text
    assert "value_relation/5-1" in text
    # The most frequent class is 23 % of the test set.
    accuracy = float(re.findall(r"│ teacher +│ +([\d.]+)", text)[0])
    assert accuracy > 0.3
    assert "('ABBR', 'DESC', 'ENTY', 'HUM', 'LOC', 'NUM')" in text
