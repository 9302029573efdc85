"""Hiding tokens that a masked language model has to guess.

References:
  Devlin et al. 2019, arXiv:1810.04805 (15 %, of which 80 % are masked, 10 % random, 10 % kept);
  Sanh et al. 2019, arXiv:1910.01108 (rare pieces more often: probability as count^-0.7).
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from jaxlab.distillation.rows import IGNORED, TokenRows
from jaxlab.text import TextTokenizer


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """How tokens are hidden.

    Attributes:
      share: of the tokens of a row that are to be guessed.
      masked: share of those that become the mask.
      random: share of those that become any piece; the rest stays as it is.
      smoothing: pieces are chosen with a probability as their count in the data to the power of
        minus this; 0 chooses all alike, 0.7 is DistilBERT's.
      whole_words: all pieces of a word are hidden together.
    """

    share: float = 0.15
    masked: float = 0.8
    random: float = 0.1
    smoothing: float = 0.0
    whole_words: bool = False

    def __post_init__(self):
        """Checks shares."""
        if not 0 < self.share < 1 or self.smoothing < 0:
            raise ValueError(
                f"MaskingConfig: share={self.share}, smoothing={self.smoothing}; wanted 0 < share "
                "< 1 and smoothing of 0 or more"
            )
        if min(self.masked, self.random) < 0 or self.masked + self.random > 1:
            raise ValueError(
                f"MaskingConfig: masked={self.masked} and random={self.random} are no shares of 1"
            )


class MaskTable(NamedTuple):
    """What is known of every piece of a vocabulary.

    Attributes:
      weight: how readily a piece is chosen; 0 for special tokens.
      starts_word: which pieces begin a word.
      ordinary: ids that may take the place of others.
      mask_id: of the mask.
      config: how tokens are hidden.
    """

    weight: Float64[np.ndarray, " vocabulary"]
    starts_word: Bool[np.ndarray, " vocabulary"]
    ordinary: Int64[np.ndarray, " ordinary"]
    mask_id: int
    config: MaskingConfig

    @classmethod
    def of(
        cls, tokenizer: TextTokenizer, ids: Int32[np.ndarray, " tokens"], config: MaskingConfig
    ) -> "MaskTable":
        """The table of a vocabulary and data.

        Args:
          tokenizer: of the model.
          ids: all ids of the data, whose counts weigh.
          config: how tokens are hidden.
        """
        counts = np.bincount(ids, minlength=tokenizer.vocab_size)
        weight = np.maximum(counts, 1) ** -config.smoothing
        special = sorted(tokenizer.special_ids)
        weight[special] = 0
        ordinary = np.setdiff1d(np.arange(tokenizer.vocab_size), special)
        return cls(weight, tokenizer.word_starts(), ordinary, tokenizer.mask_id, config)


def mask_tokens(
    ids: Int32[np.ndarray, "batch length"],
    mask: Bool[np.ndarray, "batch length"],
    table: MaskTable,
    rng: np.random.Generator,
) -> tuple[Int32[np.ndarray, "batch length"], Int32[np.ndarray, "batch length"]]:
    """Ids with tokens hidden, and what they were.

    Of every row the share of its ordinary tokens is chosen without repetition, at least one; with
    whole words, words until so many tokens are hidden.

    Args:
      ids: of the batch.
      mask: True for real tokens.
      table: of the vocabulary.
      rng: draws; the same one gives the same tokens.

    Returns:
      The ids, and labels: the true id where it is to be guessed, else `IGNORED`.
    """
    weight = np.where(mask, table.weight[ids], 0.0)
    # Words are chosen by the weight of their first piece, and take the others along.
    group = _groups(ids, weight, table)
    # Exponential races: the k smallest are a draw of k without repetition by weight.
    race = rng.exponential(size=ids.shape)
    race = np.where(weight > 0, race / np.where(weight > 0, weight, 1.0), np.inf)
    race = np.take_along_axis(race, group, axis=1)
    count = (weight > 0).sum(1)
    wanted = np.where(count > 0, np.maximum(1, np.rint(table.config.share * count)), 0)
    order = np.argsort(race, axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable")
    # The first token of a word decides for the word: it is in if it is among the first `wanted`.
    chosen = np.take_along_axis(rank, group, axis=1) < wanted[:, None]
    chosen &= weight > 0
    label = np.where(chosen, ids, np.int32(IGNORED))
    kind = rng.random(ids.shape)
    other = table.ordinary[rng.integers(len(table.ordinary), size=ids.shape)]
    config = table.config
    hidden = np.where(kind < config.masked + config.random, other, ids)
    hidden = np.where(kind < config.masked, table.mask_id, hidden)
    return np.where(chosen, hidden, ids).astype(np.int32), label.astype(np.int32)


def mask_rows(
    rows: TokenRows, which: Bool[np.ndarray, " rows"], share: float, *, seed: int
) -> TokenRows:
    """Rows in some of which tokens are masked for good, to learn from a teacher who sees the mask.

    Args:
      rows: of any kind; labels stay as they are.
      which: rows to mask.
      share: of the ordinary tokens of a row; at least one is masked.
      seed: what is masked of a row depends on it and on the row's example only.

    Raises:
      ValueError: if the share is not between 0 and 1.
    """
    table = MaskTable.of(rows.tokenizer, rows.ids, MaskingConfig(share, masked=1.0, random=0.0))
    ids = rows.ids.copy()
    for row in np.flatnonzero(which):
        own = slice(rows.begin(int(row)), int(rows.ends[row]))
        rng = np.random.default_rng((seed, int(rows.example_id[row]) % 2**63))
        masked, _ = mask_tokens(
            ids[own][None], np.ones((1, own.stop - own.start), bool), table, rng
        )
        ids[own] = masked[0]
    return dataclasses.replace(rows, ids=ids)


def _groups(
    ids: Int32[np.ndarray, "batch length"],
    weight: Float64[np.ndarray, "batch length"],
    table: MaskTable,
) -> Int64[np.ndarray, "batch length"]:
    """The place of the first token of the word of every token; its own without whole words."""
    places = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    if not table.config.whole_words:
        return places.astype(np.int64)
    is_ordinary = weight > 0
    follows = np.zeros(ids.shape, bool)
    follows[:, 1:] = is_ordinary[:, 1:] & is_ordinary[:, :-1] & ~table.starts_word[ids][:, 1:]
    return np.maximum.accumulate(np.where(follows, 0, places), axis=1).astype(np.int64)
