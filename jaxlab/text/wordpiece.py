"""The WordPiece tokenizer of Chinese BERT, with the ids that Chinese CLIP was trained on.

Own code rather than a tokenizer library: the `tokenizers` package also drops private-use and
unassigned characters, which the original keeps (and maps to `[UNK]`), and its BERT template treats
special-token strings inside a text as special, which the original does not.

References:
  Devlin et al. 2019, arXiv:1810.04805; `cn_clip/clip/bert_tokenizer.py` of Chinese-CLIP 1.6.0.
"""

import functools
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, overload

import numpy as np
from jaxtyping import Bool, Int32

from jaxlab.text.vocabulary import load_chinese_vocabulary, read_vocabulary

MIN_CONTEXT_LENGTH = 3
MAX_CONTEXT_LENGTH = 512
MAX_WORD_CHARACTERS = 200
"""A word with more characters than this is one `[UNK]`."""

_CACHED_WORDS = 1 << 16
_CACHED_WORD_CHARACTERS = 64

_CJK_RANGES = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
_ASCII_PUNCTUATION_RANGES = ((33, 47), (58, 64), (91, 96), (123, 126))


def clean_text(text: str) -> str:
    """Lower-cases a text and makes curly double quotes straight.

    The original's data sets, evaluation and zero-shot prompts do this before they tokenize; its
    public `tokenize` does not. Without it curly quotes become `[UNK]`.

    Example:
      >>> clean_text("“iPhone”")
      '"iphone"'
    """
    return text.lower().replace("“", '"').replace("”", '"')


class WordPieceTokenizer:
    """Texts to rows of WordPiece ids: `[CLS]` ids `[SEP]`, padded with `[PAD]`.

    A text is normalised (control and format characters removed, white space made plain), every
    CJK ideograph becomes a word of its own, words are lower-cased and lose their accents (NFD
    without category Mn), punctuation characters become words, and each word is cut greedily into
    the longest entries of the vocabulary. Strings such as `[MASK]` inside a text are ordinary text.

    Attributes:
      vocabulary: the entries; the position of an entry is its id.
      pad_id: id of `[PAD]`.
      unk_id: id of `[UNK]`.
      cls_id: id of `[CLS]`.
      sep_id: id of `[SEP]`.

    Example:
      >>> tokenizer = WordPieceTokenizer()
      >>> tokenizer.tokenize("杰尼龟", context_length=8).tolist()
      [[101, 3345, 2225, 7991, 102, 0, 0, 0]]
      >>> tokenizer.split("iPhone13手机壳")
      ['iphone', '##13', '手', '机', '壳']
    """

    def __init__(self, vocab_path: str | Path | None = None):
        """Reads the vocabulary; `None` takes the Chinese one that ships with the package.

        Args:
          vocab_path: a UTF-8 file with one entry per line, or None.

        Raises:
          ValueError: if the file misses a special token or holds an entry twice.
        """
        entries = load_chinese_vocabulary() if vocab_path is None else read_vocabulary(vocab_path)
        ids = {entry: i for i, entry in enumerate(entries)}
        self.vocabulary = entries
        self.pad_id, self.unk_id = ids["[PAD]"], ids["[UNK]"]
        self.cls_id, self.sep_id = ids["[CLS]"], ids["[SEP]"]
        self._word_to_ids = make_word_encoder(ids, self.unk_id)
        self._characters = _CharacterTable()

    @property
    def vocab_size(self) -> int:
        """Number of entries: ids are in [0, vocab_size)."""
        return len(self.vocabulary)

    @overload
    def tokenize(
        self,
        texts: str | bytes | Iterable[object],
        context_length: int = 52,
        clean: bool = False,
        return_truncated: Literal[False] = False,
    ) -> Int32[np.ndarray, "texts length"]: ...

    @overload
    def tokenize(
        self,
        texts: str | bytes | Iterable[object],
        context_length: int = 52,
        clean: bool = False,
        *,
        return_truncated: Literal[True],
    ) -> tuple[Int32[np.ndarray, "texts length"], Bool[np.ndarray, " texts"]]: ...

    def tokenize(
        self,
        texts: str | bytes | Iterable[object],
        context_length: int = 52,
        clean: bool = False,
        return_truncated: bool = False,
    ) -> (
        Int32[np.ndarray, "texts length"]
        | tuple[Int32[np.ndarray, "texts length"], Bool[np.ndarray, " texts"]]
    ):
        """Rows of ids, one per text.

        A row is `[CLS]`, the first `context_length - 2` ids of the text, `[SEP]`, and zeros
        (`[PAD]`) up to `context_length`. An empty text gives `[CLS] [SEP]`.

        Args:
          texts: one text, or texts; each is a str, or bytes that are read as UTF-8 with invalid
            sequences dropped. No texts give an array of shape (0, context_length).
          context_length: length of a row, 3 to 512; the released Chinese CLIP models use 52.
          clean: apply `clean_text` first, as the original's data sets do.
          return_truncated: also return which texts were too long for a row.

        Returns:
          An int32 array of shape (texts, context_length); with `return_truncated`, a pair of it and
          a bool array of shape (texts,).

        Raises:
          TypeError: if a text is neither str nor bytes; the message names its index.
          ValueError: if `context_length` is below 3 or above 512.
        """
        _check_context_length(context_length)
        decoded = _as_strings(texts)
        rows = np.full((len(decoded), context_length), self.pad_id, np.int32)
        truncated = np.zeros(len(decoded), bool)
        room = context_length - 2
        for i, text in enumerate(decoded):
            ids = self._encode(clean_text(text) if clean else text, room + 1)
            truncated[i] = len(ids) > room
            row = [self.cls_id, *ids[:room], self.sep_id]
            rows[i, : len(row)] = row
        return (rows, truncated) if return_truncated else rows

    def split(self, text: str) -> list[str]:
        """The WordPiece entries of a text, without special tokens; unknown words are `[UNK]`."""
        return [self.vocabulary[i] for i in self._encode(text, None)]

    def _encode(self, text: str, limit: int | None) -> list[int]:
        """Ids of a text; stops once there are at least `limit` of them."""
        ids: list[int] = []
        for word in text.translate(self._characters).split():
            ids.extend(self._word_to_ids(word))
            if limit is not None and len(ids) >= limit:
                break
        return ids


class _CharacterTable(dict[int, str]):
    """`str.translate` table that removes control characters and sets ideographs apart.

    Filled on first sight of a character; an entry depends on its character alone, and there are
    at most 1,114,112 of them.
    """

    def __missing__(self, code: int) -> str:
        replacement = self[code] = _replace_character(chr(code))
        return replacement


def _replace_character(char: str) -> str:
    if char in "\t\n\r ":
        return " "
    category = unicodedata.category(char)
    if char in "\0\ufffd" or category in ("Cc", "Cf"):
        return ""
    if category == "Zs":
        return " "
    return f" {char} " if is_ideograph(char) else char


def is_ideograph(char: str) -> bool:
    """Whether a character is a CJK ideograph, which is a word of its own.

    Args:
      char: one character.
    """
    return _is_in(ord(char), _CJK_RANGES)


def make_word_encoder(ids: dict[str, int], unk_id: int) -> Callable[[str], tuple[int, ...]]:
    """A function from a word (no white space) to its ids, with a bounded cache of short words.

    Args:
      ids: the vocabulary, entry to id; entries that continue a word begin with `##`.
      unk_id: the id of a piece that the vocabulary does not cover.
    """
    longest = max(map(len, ids), default=0)

    def encode(word: str) -> tuple[int, ...]:
        out: list[int] = []
        for piece in split_punctuation(strip_accents(word.lower())):
            found = longest_match(piece, ids, longest)
            out.extend((unk_id,) if found is None else found)
        return tuple(out)

    cached = functools.lru_cache(_CACHED_WORDS)(encode)
    return lambda word: (cached if len(word) <= _CACHED_WORD_CHARACTERS else encode)(word)


def strip_accents(text: str) -> str:
    """The canonical decomposition (NFD) of a text without its nonspacing marks (category Mn).

    Katakana loses its voicing marks and Hangul falls into Jamo: the vocabulary expects that.
    """
    if text.isascii():
        return text
    decomposed = unicodedata.normalize("NFD", text)
    return "".join(char for char in decomposed if unicodedata.category(char) != "Mn")


def split_punctuation(text: str) -> list[str]:
    """The words of a text, each punctuation character a word of its own.

    Punctuation is every ASCII symbol that is no letter, digit, space or control character, and
    every character of a category beginning with P.

    Example:
      >>> split_punctuation("a-b。")
      ['a', '-', 'b', '。']
    """
    if text.isalnum():
        return [text]
    return "".join(f" {char} " if is_punctuation(char) else char for char in text).split()


def longest_match(
    piece: str, ids: Mapping[str, int], longest: int, max_characters: int = MAX_WORD_CHARACTERS
) -> Sequence[int] | None:
    """Ids of the greedy longest-match cut of a piece, or None where the vocabulary has no cut.

    Args:
      piece: a word without punctuation and white space.
      ids: the vocabulary; entries that continue a word begin with `##`.
      longest: length of the longest entry, a bound of the search.
      max_characters: of a piece that is cut.

    Returns:
      The ids, or None also for a piece longer than `max_characters`.
    """
    if len(piece) > max_characters:
        return None
    out: list[int] = []
    start = 0
    while start < len(piece):
        prefix = "##" if start else ""
        for end in range(min(len(piece), start + longest), start, -1):
            found = ids.get(prefix + piece[start:end])
            if found is not None:
                break
        else:
            return None
        out.append(found)
        start = end
    return out


@functools.lru_cache(1 << 14)
def is_punctuation(char: str) -> bool:
    """Whether a character is a word of its own, see `split_punctuation`.

    Args:
      char: one character.
    """
    return _is_in(ord(char), _ASCII_PUNCTUATION_RANGES) or unicodedata.category(char)[0] == "P"


def _is_in(code: int, ranges: Sequence[tuple[int, int]]) -> bool:
    return any(first <= code <= last for first, last in ranges)


def _check_context_length(context_length: int) -> None:
    if not MIN_CONTEXT_LENGTH <= context_length <= MAX_CONTEXT_LENGTH:
        raise ValueError(
            f"context_length={context_length} is not between {MIN_CONTEXT_LENGTH} and "
            f"{MAX_CONTEXT_LENGTH}: a row holds [CLS], at least one id and [SEP], and the text "
            f"tower has {MAX_CONTEXT_LENGTH} positions; Chinese CLIP uses 52"
        )


def _as_strings(texts: str | bytes | Iterable[object]) -> list[str]:
    if isinstance(texts, str | bytes):
        texts = [texts]
    if not isinstance(texts, Iterable):
        raise TypeError(f"texts is {texts!r}; give one text or a list of texts")
    return [_as_string(text, i) for i, text in enumerate(texts)]


def _as_string(text: object, index: int) -> str:
    if isinstance(text, str):
        return text
    if isinstance(text, bytes):
        return text.decode("utf-8", "ignore")
    raise TypeError(
        f"texts[{index}] is {text!r} of type {type(text).__name__}; every text must be a str, or "
        "bytes in UTF-8: convert it, or drop it from the list"
    )
