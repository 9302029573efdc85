"""The byte-level BPE tokenizer of RoBERTa and GPT-2.

Texts are cut into words with the space before them, words become bytes, bytes printable characters,
and pairs of neighbours are merged in the order in which the vocabulary was learnt. Nothing is
unknown.

References:
  Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; Liu et al. 2019,
  arXiv:1907.11692.
"""

import functools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from jaxlab.text.subwords import Form, Pieces, SpecialTokens, TextTokenizer

ROBERTA_TOKENS = SpecialTokens("<s>", "</s>", "<pad>", "<unk>", "<mask>")

_CACHED_WORDS = 1 << 17
_CONTRACTION = re.compile("'(?:s|t|re|ve|m|ll|d)")
# Over a text in which a character stands for its kind; the last two are white space.
_WORD = re.compile(" ?L+| ?N+| ?O+|[ S]+(?![LNO])|[ S]+")


class BytePairTokenizer(TextTokenizer):
    """Texts to ids of byte pairs."""

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        special: SpecialTokens = ROBERTA_TOKENS,
        form: Form = "roberta",
        *,
        adds_space: bool = False,
    ):
        """A tokenizer of a vocabulary.

        Args:
          vocabulary: entry -> id, from 0 on without gaps (`vocab.json`).
          merges: pairs that become one, the earliest first (`merges.txt`).
          special: the special tokens.
          form: how rows are put together.
          adds_space: put a space before a text that begins without one.

        Raises:
          ValueError: if ids have gaps, or naming special tokens or bytes that have no entry.
        """
        if sorted(vocabulary.values()) != list(range(len(vocabulary))):
            raise ValueError(f"the ids of {len(vocabulary)} entries are not 0 to their number")
        super().__init__(sorted(vocabulary, key=vocabulary.__getitem__), special, form)
        self.adds_space = adds_space
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._bytes = byte_characters()
        if missing := [char for char in self._bytes if char not in vocabulary]:
            raise ValueError(f"the vocabulary lacks {len(missing)} of 256 bytes: {missing[:5]}")
        self._cached = functools.lru_cache(_CACHED_WORDS)(self._merge)

    def ids(self, text: str, limit: int | None = None) -> list[int]:
        """Ids of a text without special tokens.

        Args:
          text: the text.
          limit: stop once there are at least that many.
        """
        found: list[int] = []
        for begin, end, spaced in self._cut(text):
            found.extend(self._ids[piece] for piece in self._cached(spaced + text[begin:end]))
            if limit is not None and len(found) >= limit:
                break
        return found

    def pieces(self, text: str) -> Pieces:
        """The pieces of a text, and where they stand in it; spaces before words do not count.

        Args:
          text: the text.
        """
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        words: list[int] = []
        for place, (begin, end, spaced) in enumerate(self._cut(text)):
            word = spaced + text[begin:end]
            # The character of the text that every byte is of; an added space is of the first.
            origin = [
                max(begin, begin + i - len(spaced))
                for i, char in enumerate(word)
                for _ in char.encode("utf-8", "surrogatepass")
            ]
            start = 0
            for piece in self._cached(word):
                first, last = origin[start], origin[start + len(piece) - 1] + 1
                if start == 0 and spaced and len(piece) == 1:
                    last = first  # the added space alone
                spans.append(_trim(text, first, last))
                ids.append(self._ids[piece])
                words.append(place)
                start += len(piece)
        return Pieces(tuple(ids), tuple(spans), tuple(words))

    def word_starts(self) -> Bool[np.ndarray, " vocabulary"]:
        """Which entries begin with a space; the first word of a text may have none."""
        space = self._bytes[ord(" ")]
        return np.array([entry.startswith(space) for entry in self.vocabulary], bool)

    def _pieces_of_word(self, word: str, place: int) -> Pieces:
        """Pieces of a word of a sentence, which has a space before it but for the first."""
        if place == 0 and not self.adds_space:
            return self.pieces(word)
        found = self.pieces(f" {word}")
        spans = tuple((max(0, begin - 1), max(0, end - 1)) for begin, end in found.spans)
        return found._replace(spans=spans)

    def _cut(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Begin and end of every word, and a space if it gets one that the text does not have."""
        added = " " if self.adds_space and text and text[0] != " " else ""
        kinds = added + "".join(map(_kind, text))
        shift, place = len(added), 0
        while place < len(kinds):
            begin = place - shift
            found = _CONTRACTION.match(text, begin) if begin >= 0 else None
            if found is not None:
                place += found.end() - found.start()
            else:
                matched = _WORD.match(kinds, place)
                assert matched is not None  # the kinds cover all characters
                place = matched.end()
            is_first = begin < 0
            yield max(begin, 0), place - shift, added if is_first else ""

    def _merge(self, word: str) -> tuple[str, ...]:
        """The entries of a word."""
        parts = [self._bytes[byte] for byte in word.encode("utf-8", "surrogatepass")]
        while len(parts) > 1:
            ranked = [
                (rank, i)
                for i, pair in enumerate(zip(parts, parts[1:], strict=False))
                if (rank := self._ranks.get(pair)) is not None
            ]
            if not ranked:
                break
            _, first = min(ranked)
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
        return tuple(parts)


def _trim(text: str, begin: int, end: int) -> tuple[int, int]:
    """A span without spaces at its ends; empty at its end if there is nothing else."""
    while begin < end and text[begin] == " ":
        begin += 1
    while begin < end and text[end - 1] == " ":
        end -= 1
    return begin, end


@functools.lru_cache(1 << 14)
def _kind(char: str) -> str:
    if char.isspace() and char not in "\x1c\x1d\x1e\x1f":
        return " " if char == " " else "S"
    category = unicodedata.category(char)[0]
    return category if category in "LN" else "O"


def byte_characters() -> tuple[str, ...]:
    """The printable character that stands for every byte, 0 to 255, in vocabularies of byte pairs.

    Example:
      >>> byte_characters()[ord("a")], byte_characters()[ord(" ")]
      ('a', 'Ġ')
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in printable]
    moved = {byte: chr(256 + place) for place, byte in enumerate(hidden)}
    return tuple(moved.get(byte, chr(byte)) for byte in range(256))
