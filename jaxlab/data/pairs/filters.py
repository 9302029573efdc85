"""Which pairs are worth training on: the rules that Chinese CLIP's pre-training data went through.

Of the pairs from LAION-5B those were kept whose cosine in a multilingual CLIP is at least 0.26, and
of all pairs those whose caption has 5 to 50 characters and none of the words of a black list
(advertising, file names, ...), which is not published.

References:
  Yang et al. 2022, arXiv:2211.01335, section 3.1.
"""

import dataclasses
import math
from pathlib import Path

from jaxlab.data.pairs.records import require_file


@dataclasses.dataclass(frozen=True)
class PairFilter:
    """Rules for pairs; each is off by default.

    Attributes:
      min_length: fewest characters of a caption, white space at its ends left out.
      max_length: most characters; 0 is no limit.
      black_list: words that a caption must not contain, upper and lower case alike.
      min_score: least score of a pair, such as its cosine in another model; None looks at none.
    """

    min_length: int = 0
    max_length: int = 0
    black_list: tuple[str, ...] = ()
    min_score: float | None = None

    def __post_init__(self) -> None:
        """Checks the rules.

        Raises:
          ValueError: if a length is negative, the range empty, or a word of the black list empty
            (which every caption contains).
        """
        if self.min_length < 0 or self.max_length < 0:
            raise ValueError(
                f"min_length={self.min_length} and max_length={self.max_length} must not be "
                "negative; 0 sets no limit"
            )
        if 0 < self.max_length < self.min_length:
            raise ValueError(
                f"max_length={self.max_length} is less than min_length={self.min_length}: no "
                "caption would be kept"
            )
        if not all(word.strip() for word in self.black_list):
            raise ValueError("black_list has an empty word, which every caption contains")

    def reason_to_drop(self, text: str, score: float | None = None) -> str | None:
        """Why a pair is left out; None for one that is kept.

        Args:
          text: the caption.
          score: of the pair; needed by `min_score`, where NaN is below every threshold.

        Returns:
          One of "too short", "too long", "black-listed word", "low score".

        Raises:
          ValueError: if `min_score` is set and the pair has no score.

        Example:
          >>> rules = PairFilter(5, 50, ("包邮",), 0.26)
          >>> [rules.reason_to_drop(t, 0.3) for t in ("一只猫", "正品皮鞋包邮", "一只黑色的猫")]
          ['too short', 'black-listed word', None]
        """
        length = len(text.strip())
        if length < self.min_length:
            return "too short"
        if self.max_length and length > self.max_length:
            return "too long"
        folded = text.casefold()
        if any(word.casefold() in folded for word in self.black_list):
            return "black-listed word"
        if self.min_score is None:
            return None
        if score is None:
            raise ValueError(
                f"min_score={self.min_score} needs a score for every pair, and {text[:32]!r} has "
                "none; give the captions a column or field 'score'"
            )
        return "low score" if math.isnan(score) or score < self.min_score else None


PUBLISHED_FILTER = PairFilter(min_length=5, max_length=50, min_score=0.26)
"""The published rules but for the black list."""


def read_black_list(path: str | Path) -> tuple[str, ...]:
    """The words of a file, one a line; blank lines and lines that begin with `#` are passed over.

    Raises:
      FileNotFoundError: if the file is missing.
      ValueError: if it has no word, or is not UTF-8.
    """
    path = require_file(path, "a black list, one word a line")
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    words = tuple(line for line in lines if line and not line.startswith("#"))
    if not words:
        raise ValueError(f"{path} has no word; give one a line")
    return words
