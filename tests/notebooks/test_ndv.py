"""The notebook of NDV runs from the first cell to the last."""

import pytest


@pytest.mark.tiny
@pytest.mark.timeout(900)
def test_the_notebook_runs_and_says_what_it_promises(run_notebook):
    text, pictures = run_notebook("ndv")
    assert "8 devices" in text
    assert "8 devices and one device give the same bits: True" in text
    assert "the schema says that the column is unique" in text
    answers = {
        words[0]: [int(word.replace(",", "")) for word in words[1:3]]
        for words in map(str.split, text.splitlines())
        if words and words[0] in ("order_id", "customer", "day", "price", "city")
    }
    for column in ("order_id", "day", "city"):
        found = answers[column]
        assert found[0] == found[1], f"{column}: truth and estimate"
    for column in ("customer", "price"):  # within what the notebook says of any method
        assert 1 / 5.9 < answers[column][1] / answers[column][0] < 5.9
    assert len(pictures) == 1
