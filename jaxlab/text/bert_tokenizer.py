"""The WordPiece tokenizer of BERT, MiniLM, DistilBERT, ELECTRA and MPNet, cased and uncased.

Own code, so that places in the text and words come with the ids; these are the ids of the package
`tokenizers`, except that special tokens inside a text are ordinary text. It differs from
`WordPieceTokenizer`, that of Chinese CLIP, in that private and unassigned characters are left out,
characters are lower-cased one by one, and words of more than 100 characters are unknown.

References:
  Devlin et al. 2019, arXiv:1810.04805; the forms of Song et al. 2020, arXiv:2004.09297 (MPNet).
"""

import functools
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from jaxlab.text.subwords import Form, Pieces, SpecialTokens, TextTokenizer
from jaxlab.text.vocabulary import split_entries
from jaxlab.text.wordpiece import is_ideograph, is_punctuation, longest_match, strip_accents

MAX_WORD_CHARACTERS = 100
"""A word with more characters than this is one unknown piece."""

MPNET_TOKENS = SpecialTokens("<s>", "</s>", "<pad>", "[UNK]", "<mask>")
"""Special tokens of MPNet. Its vocabulary also has `<unk>`, which its tokenizer does not give."""

_CACHED_WORDS = 1 << 17
_CACHED_CHARACTERS = 64
_PREFIX = "##"
_SPACES = re.compile(
    "[\\t\\n\\r \\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]+"
)


class BertTokenizer(TextTokenizer):
    """Texts to WordPiece ids.

    Example:
      >>> entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "eat", "##ing", "!"]
      >>> tokenizer = BertTokenizer(entries)
      >>> tokenizer.encode("Eating!", "Eats").ids
      (2, 5, 6, 7, 3, 1, 3)
      >>> tokenizer.pieces("Eating!").spans
      ((0, 3), (3, 6), (6, 7))
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        special: SpecialTokens = SpecialTokens(),  # noqa: B008 (immutable)
        form: Form = "bert",
        *,
        lower_case: bool = True,
        strips_accents: bool | None = None,
        splits_ideographs: bool = True,
        max_word_characters: int = MAX_WORD_CHARACTERS,
    ):
        """A tokenizer of a vocabulary.

        Args:
          vocabulary: the entries in the order of their ids; those that go on with a word begin
            with `##`.
          special: the special tokens; `MPNET_TOKENS` for MPNet.
          form: `roberta` for MPNet.
          lower_case: lower-case the text (uncased models).
          strips_accents: remove accents; None does where the text is lower-cased.
          splits_ideographs: make every CJK ideograph a word.
          max_word_characters: longer words are unknown.

        Raises:
          ValueError: naming all special tokens that the vocabulary lacks.
        """
        super().__init__(vocabulary, special, form)
        self.lower_case = lower_case
        self.strips_accents = lower_case if strips_accents is None else strips_accents
        self.splits_ideographs = splits_ideographs
        self.max_word_characters = max_word_characters
        self._longest = max(map(len, self.vocabulary), default=0)
        self._cached = functools.lru_cache(_CACHED_WORDS)(self._ids_of_word)

    def ids(self, text: str, limit: int | None = None) -> list[int]:
        """Ids of a text without special tokens.

        Args:
          text: the text.
          limit: stop once there are at least that many.
        """
        found: list[int] = []
        for word in _SPACES.split(text):
            encode = self._cached if len(word) <= _CACHED_CHARACTERS else self._ids_of_word
            found.extend(encode(word))
            if limit is not None and len(found) >= limit:
                break
        return found

    def pieces(self, text: str) -> Pieces:
        """The pieces of a text, and where they stand in it.

        Args:
          text: the text.
        """
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        words: list[int] = []
        for place, (word, origin) in enumerate(self._words(text)):
            cut = self._cut(word)
            begin = 0
            for piece in cut:
                length = len(word) if piece == self.unk_id else self._length(piece)
                spans.append((origin[begin], origin[begin + length - 1] + 1))
                begin += length
            ids.extend(cut)
            words.extend([place] * len(cut))
        return Pieces(tuple(ids), tuple(spans), tuple(words))

    def word_starts(self) -> Bool[np.ndarray, " vocabulary"]:
        """Which entries begin a word."""
        return np.array(
            [e not in self.special and not e.startswith(_PREFIX) for e in self.vocabulary], bool
        )

    def _ids_of_word(self, word: str) -> tuple[int, ...]:
        return tuple(piece for part, _ in self._words(word) for piece in self._cut(part))

    def _cut(self, word: str) -> Sequence[int]:
        found = longest_match(word, self._ids, self._longest, self.max_word_characters)
        return (self.unk_id,) if found is None else found

    def _length(self, piece: int) -> int:
        """Characters of the text that a piece stands for."""
        return len(self.vocabulary[piece].removeprefix(_PREFIX))

    def _words(self, text: str) -> list[tuple[str, list[int]]]:
        """Words after normalisation, and the place in the text that every character is from."""
        words: list[tuple[str, list[int]]] = []
        is_open = False
        for place, char in enumerate(text):
            kind = _kind(char)
            if kind == "drop":
                continue
            if kind == "space":
                is_open = False
                continue
            alone = self.splits_ideographs and kind == "ideograph"
            for normal in self._normalise(char):
                if alone or is_punctuation(normal):
                    words.append((normal, [place]))
                    is_open = False
                elif is_open:
                    word, origin = words[-1]
                    words[-1] = (word + normal, origin)
                    origin.append(place)
                else:
                    words.append((normal, [place]))
                    is_open = True
        return words

    def _normalise(self, char: str) -> str:
        """A character in lower case and without accents, where asked; may be empty."""
        if self.lower_case:
            char = char.lower()
        return strip_accents(char) if self.strips_accents else char


@functools.lru_cache(1 << 14)
def _kind(char: str) -> str:
    if char in "\t\n\r ":
        return "space"
    category = unicodedata.category(char)
    if char == "\ufffd" or category[0] == "C":
        return "drop"
    if category[0] == "Z":
        return "space"
    return "ideograph" if is_ideograph(char) else "other"


def read_bert_vocabulary(path: str | Path) -> tuple[str, ...]:
    """The entries of a `vocab.txt`: UTF-8, one entry a line, the line number is the id.

    Args:
      path: the file.

    Raises:
      ValueError: if it is empty or an entry occurs twice, naming the lines.
    """
    entries = split_entries(Path(path).read_text(encoding="utf-8"))
    places: dict[str, int] = {}
    for line, entry in enumerate(entries, start=1):
        if places.setdefault(entry, line) != line:
            raise ValueError(
                f"{path}: entry {entry!r} is on lines {places[entry]} and {line}; remove one"
            )
    if not entries:
        raise ValueError(f"{path} is empty; wanted one entry a line")
    return entries
