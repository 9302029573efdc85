"""The notebook of Chinese CLIP runs from the first cell to the last."""

import re

import pytest


@pytest.mark.tiny
@pytest.mark.timeout(900)
def test_the_notebook_runs_and_says_what_it_promises(run_notebook):
    text, pictures = run_notebook("chinese_clip")
    assert "pictures of 32 px, 128 numbers" in text
    assert "947 pictures, 947 new, 0 damaged" in text
    before, after = map(float, re.findall(r"not trained on: ([\d.]+) % -> ([\d.]+) %", text)[0])
    # Chance is 3.9 %.
    assert after > 2 * before and after > 30
    raw, calibrated = map(
        float, re.findall(r"itself ([\d.]+), match probability ([\d.]+)", text)[0]
    )
    assert calibrated < raw / 2
    assert len(pictures) == 2
