"""What the tokenizers of encoders share: special tokens, pairs, truncation, places in the text."""

import abc
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool

Form = Literal["bert", "roberta"]
"""`bert`: [CLS] a [SEP] b [SEP]. `roberta`, of RoBERTa and MPNet: <s> a </s></s> b </s>."""


class SpecialTokens(NamedTuple):
    """Entries of a vocabulary that stand for no text.

    Attributes:
      cls: at the beginning.
      sep: after a text.
      pad: fills rows.
      unk: for what the vocabulary lacks.
      mask: for what is to be guessed.
    """

    cls: str = "[CLS]"
    sep: str = "[SEP]"
    pad: str = "[PAD]"
    unk: str = "[UNK]"
    mask: str = "[MASK]"


class Pieces(NamedTuple):
    """The pieces of a text without special tokens.

    Attributes:
      ids: of the pieces.
      spans: where every piece begins and ends in the text, in characters.
      words: the place of the word that every piece is of.
    """

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    words: tuple[int, ...]


class Encoded(NamedTuple):
    """A row for an encoder.

    Attributes:
      ids: with special tokens.
      types: 0 for the first text, 1 for the second in the form `bert`; else 0.
      truncated: a text was too long.
    """

    ids: tuple[int, ...]
    types: tuple[int, ...]
    truncated: bool


class TextTokenizer(abc.ABC):
    """Texts to ids of a vocabulary, in rows of an encoder's form.

    Attributes:
      vocabulary: the entries; the position of an entry is its id.
      special: the special tokens.
      form: how rows are put together.
      cls_id: id of the token at the beginning; so are `sep_id`, `pad_id`, `unk_id`, `mask_id`.
    """

    def __init__(self, vocabulary: Sequence[str], special: SpecialTokens, form: Form):
        """Looks the special tokens up.

        Args:
          vocabulary: the entries in the order of their ids.
          special: the special tokens.
          form: how rows are put together.

        Raises:
          ValueError: naming all special tokens that the vocabulary lacks.
        """
        self.vocabulary = tuple(vocabulary)
        self.special = special
        self.form: Form = form
        self._ids = {entry: place for place, entry in enumerate(self.vocabulary)}
        missing = [token for token in special if token not in self._ids]
        if missing:
            raise ValueError(
                f"the vocabulary of {len(self.vocabulary)} entries lacks {', '.join(missing)}; "
                "give the special tokens that it has"
            )
        self.cls_id, self.sep_id, self.pad_id, self.unk_id, self.mask_id = (
            self._ids[token] for token in special
        )

    @property
    def vocab_size(self) -> int:
        """Number of entries: ids are in [0, vocab_size)."""
        return len(self.vocabulary)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of the special tokens."""
        return frozenset(self._ids[token] for token in self.special)

    @abc.abstractmethod
    def ids(self, text: str, limit: int | None = None) -> list[int]:
        """Ids of a text without special tokens.

        Args:
          text: the text.
          limit: stop once there are at least that many.
        """

    @abc.abstractmethod
    def pieces(self, text: str) -> Pieces:
        """The pieces of a text, and where they stand in it; the ids are those of `ids`.

        Args:
          text: the text.
        """

    @abc.abstractmethod
    def word_starts(self) -> Bool[np.ndarray, " vocabulary"]:
        """Which entries begin a word; those that go on with one, and special tokens, do not."""

    def words(self, words: Sequence[str]) -> Pieces:
        """The pieces of words that are already apart; `words` are places in the sequence given.

        A word without any piece (white space only) is one unknown piece, so that tags keep their
        words.

        Args:
          words: of a sentence.

        Returns:
          Pieces whose spans are places within each word.
        """
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        places: list[int] = []
        for place, word in enumerate(words):
            found = self._pieces_of_word(word, place)
            if not found.ids:
                found = Pieces((self.unk_id,), ((0, len(word)),), (0,))
            ids.extend(found.ids)
            spans.extend(found.spans)
            places.extend([place] * len(found.ids))
        return Pieces(tuple(ids), tuple(spans), tuple(places))

    def _pieces_of_word(self, word: str, place: int) -> Pieces:
        """Pieces of the word at a place of a sentence."""
        del place
        return self.pieces(word)

    def num_special(self, has_pair: bool) -> int:
        """Special tokens of a row.

        Args:
          has_pair: of two texts.
        """
        return 2 if not has_pair else 3 if self.form == "bert" else 4

    def join(self, first: Sequence[int], second: Sequence[int] | None = None) -> Encoded:
        """A row of ids with its special tokens.

        Args:
          first: ids of the text, or of the first of a pair.
          second: ids of the second, or None.
        """
        row = [self.cls_id, *first, self.sep_id]
        types = [0] * len(row)
        if second is not None:
            rest = [*second, self.sep_id]
            if self.form == "roberta":
                rest.insert(0, self.sep_id)
            row += rest
            types += [1 if self.form == "bert" else 0] * len(rest)
        return Encoded(tuple(row), tuple(types), False)

    def encode(self, text: str, pair: str | None = None, max_length: int | None = None) -> Encoded:
        """The row of a text or of a pair.

        Args:
          text: the text, or the first of a pair.
          pair: the second, or None.
          max_length: ids of a row at most, special tokens included. Of a pair the longer text is
            cut first.

        Raises:
          ValueError: if `max_length` leaves no room for a piece of every text.
        """
        room = None
        if max_length is not None:
            room = max_length - self.num_special(pair is not None)
            if room < (1 if pair is None else 2):
                raise ValueError(
                    f"max_length={max_length} leaves room for {room} pieces beside "
                    f"{self.num_special(pair is not None)} special tokens; give a larger one"
                )
        # Which of two texts is the longer one is only known from all their pieces.
        limit = None if room is None or pair is not None else room + 1
        first = self.ids(text, limit)
        second = None if pair is None else self.ids(pair, limit)
        lengths = cut_longest_first(len(first), 0 if second is None else len(second), room)
        is_cut = lengths != (len(first), 0 if second is None else len(second))
        joined = self.join(first[: lengths[0]], None if second is None else second[: lengths[1]])
        return joined._replace(truncated=is_cut)


def cut_longest_first(first: int, second: int, room: int | None) -> tuple[int, int]:
    """How many pieces of two texts stay: the longer one is cut until both are of one length.

    Where both are cut and the room is odd, the text that was longer gets the odd one, of equally
    long ones the second: so does the package `tokenizers`.

    Args:
      first: pieces of the first text.
      second: pieces of the second.
      room: pieces that fit; None fits all.

    Example:
      >>> cut_longest_first(10, 3, 9), cut_longest_first(10, 8, 9), cut_longest_first(8, 8, 9)
      ((6, 3), (5, 4), (4, 5))
    """
    if room is None or first + second <= room:
        return first, second
    short, long = min(first, second), max(first, second)
    long = max(short, room - short)
    if short + long > room:
        short, long = room // 2, room - room // 2
    return (long, short) if first > second else (short, long)
