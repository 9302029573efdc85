"""The tokenizer beside the one of cn_clip 1.6.0, run live."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from jaxlab.text import WordPieceTokenizer

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parity
def test_live_cn_clip_gives_the_same_ids():
    pytest.importorskip("cn_clip")
    peer = runpy.run_path(str(GOLDEN / "make_wordpiece.py"))
    original, ours = peer["load_cn_clip_tokenizer"](), WordPieceTokenizer()
    with np.load(GOLDEN / "wordpiece.npz") as file:
        strings = json.loads(file["strings"].tobytes())
    rng = np.random.default_rng(1)
    pairs = [strings[i] + strings[j] for i, j in rng.integers(len(strings), size=(3000, 2))]
    strings = strings + pairs
    assert len(strings) >= 16_000
    rows = ours.tokenize(strings, context_length=512)
    for text, row in zip(strings, rows, strict=True):
        ids = [101, *peer["cn_clip_ids"](original, text)[:510], 102]
        np.testing.assert_array_equal(row[: len(ids)], ids, err_msg=repr(text))
        assert not row[len(ids) :].any()
