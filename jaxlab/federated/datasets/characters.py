"""Text as numbers of characters, and windows of it: next-character prediction of LEAF.

References:
  Caldas et al. 2018, arXiv:1812.01097; `federatedscope/nlp/dataset/utils.py` of FederatedScope
  0.3.0 (`ALL_LETTERS`).
"""

import numpy as np
from jaxtyping import Int32, Shaped, UInt8

from jaxlab.federated.strategy import ConfigError

SYMBOLS = "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}"
"""The 80 characters of LEAF's Shakespeare; a character's number is its place."""

WINDOW = 80
"""Characters that a prediction sees."""

_SPACE = SYMBOLS.index(" ")
_NUMBERS = np.full(128, _SPACE, np.uint8)
_NUMBERS[[ord(symbol) for symbol in SYMBOLS]] = np.arange(len(SYMBOLS))


def encode_text(text: str) -> UInt8[np.ndarray, " characters"]:
    """The number of every character, in one byte; those that are none of the 80 count as a space.

    The original gives them -1, which no table of embeddings has.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    return np.where(codes < 128, _NUMBERS[np.minimum(codes, 127)], _SPACE).astype(np.uint8)


def decode_text(numbers: Shaped[np.ndarray, " characters"]) -> str:
    """The text of the numbers."""
    return "".join(SYMBOLS[number] for number in numbers)


def text_windows(
    text: str, *, window: int = WINDOW, stride: int = 1
) -> tuple[UInt8[np.ndarray, "windows window"], Int32[np.ndarray, " windows"]]:
    """Every stretch of the text, and the character after it.

    Args:
      text: of one speaker; with `window` characters or fewer it has no windows.
      window: characters of a stretch.
      stride: from one stretch to the next; `window` for stretches that do not overlap.

    Returns:
      Inputs and targets, numbers of characters.

    Raises:
      ConfigError: (a ValueError) if window or stride is not positive.
    """
    if window < 1 or stride < 1:
        raise ConfigError(f"window={window} and stride={stride} must be at least 1")
    numbers = encode_text(text)
    if len(numbers) <= window:
        return np.zeros((0, window), np.uint8), np.zeros(0, np.int32)
    x = np.lib.stride_tricks.sliding_window_view(numbers[:-1], window)[::stride]
    return np.ascontiguousarray(x), numbers[window::stride].astype(np.int32)
