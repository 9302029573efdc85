import numpy as np
import pytest

from jaxlab.federated.datasets.characters import SYMBOLS, decode_text, encode_text, text_windows
from jaxlab.federated.strategy import ConfigError


def test_there_are_80_symbols_and_all_come_back():
    assert len(SYMBOLS) == len(set(SYMBOLS)) == 80
    np.testing.assert_array_equal(encode_text(SYMBOLS), np.arange(80))
    assert decode_text(encode_text(SYMBOLS)) == SYMBOLS


def test_other_characters_are_spaces():
    assert decode_text(encode_text("caf\u00e9 #1 \U0001f600\x7f~")) == "caf   1    "


@pytest.mark.parametrize("stride", [1, 3, 5])
def test_windows_are_all_stretches_with_the_character_after(stride):
    text = "Now is the winter of our discontent"
    x, y = text_windows(text, window=5, stride=stride)
    starts = range(0, len(text) - 5, stride)
    assert [decode_text(row) for row in x] == [text[i : i + 5] for i in starts]
    assert decode_text(y) == "".join(text[i + 5] for i in starts)


@pytest.mark.parametrize("text", ["", "abcde"])
def test_a_short_text_has_no_windows(text):
    x, y = text_windows(text, window=5)
    assert x.shape == (0, 5) and y.shape == (0,)


def test_no_window_or_stride_is_refused():
    with pytest.raises(ConfigError, match="window=0 and stride=1 must be"):
        text_windows("abc", window=0)
