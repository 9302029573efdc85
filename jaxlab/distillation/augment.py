"""More texts out of few: words replaced by ones that could stand there, as TinyBERT does.

What could stand there is asked of `Candidates`: a masked language model, or the neighbours of a
word among embeddings. Random deletion and swapping need neither, nor does masking, which is of
tokens (`mask_rows`). What is made carries no label unless asked: the teacher labels it.

References:
  Jiao et al. 2020, arXiv:1909.10351, algorithm 1, and its released code; Wei and Zou 2019,
  arXiv:1901.11196 (random deletion and swapping).
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from jaxlab.data.texts import TextExample
from jaxlab.text import TextTokenizer
from jaxlab.text.wordpiece import split_punctuation

NUM_COPIES = {
    "cola": 30, "mnli": 10, "mrpc": 30, "sst2": 20, "stsb": 30, "qqp": 10, "qnli": 20, "rte": 30,
}  # fmt: skip
"""Task of GLUE -> how often TinyBERT tries a text."""

STOP_WORDS = frozenset(
    "i me my myself we our ours ourselves you your yours yourself yourselves he him his himself "
    "she her hers herself it its itself they them their theirs themselves what which who whom this "
    "that these those am is are was were be been being have has had having do does did doing a an "
    "the and but if or because as until while of at by for with about against between into through "
    "during before after above below to from up down in out on off over under again further then "
    "once here there when where why how all any both each few more most other some such no nor not "
    "only own same so than too very s t can will just don should now".split()
)
"""Words that are never replaced."""

_LETTERS = re.compile(r"[A-Za-z]+")

ScoreTokens = Callable[[Int[np.ndarray, " length"], int], Float[np.ndarray, " vocabulary"]]
"""Ids of a row and a place in it -> score of every piece to stand there."""


Candidates = Callable[[Sequence[str], int], Sequence[str]]
"""Words of a sentence and a place -> words that could stand there, the best first; may be none."""


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """How texts are varied.

    Attributes:
      num_copies: how often each text is tried; what comes out twice is kept once.
      num_candidates: words that could stand in a place.
      probability: that a word is replaced.
      keep_labels: variants carry the label of their text; else none.
    """

    num_copies: int = 20
    num_candidates: int = 15
    probability: float = 0.4
    keep_labels: bool = False

    def __post_init__(self):
        """Checks sizes."""
        if self.num_copies < 1 or self.num_candidates < 1 or not 0 <= self.probability <= 1:
            raise ValueError(
                f"AugmentConfig: num_copies={self.num_copies}, num_candidates="
                f"{self.num_candidates}, probability={self.probability}; wanted 1 or more, 1 or "
                "more, and 0 to 1"
            )


class ModelCandidates:
    """Words that a masked language model would put there.

    A word of one piece is masked, and the model reads the masked sentence and the whole one; of a
    word of several pieces `neighbours` is asked.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        score: ScoreTokens,
        num_candidates: int = 15,
        neighbours: Candidates | None = None,
        max_length: int = 512,
    ):
        """Candidates of a model.

        Args:
          tokenizer: of the model.
          score: the model.
          num_candidates: best pieces that are asked for.
          neighbours: for words of several pieces.
          max_length: of the model; longer sentences have no candidates.
        """
        self._tokenizer, self._score = tokenizer, score
        self._num_candidates, self._neighbours = num_candidates, neighbours
        self._max_length = max_length
        starts = tokenizer.word_starts()
        self._is_word = starts if starts.any() else np.ones(len(starts), bool)

    def __call__(self, words: Sequence[str], place: int) -> Sequence[str]:
        """The best pieces that begin a word; pieces that go on with one are left out of the best.

        Args:
          words: of the sentence.
          place: of the word.
        """
        pieces = self._tokenizer.words(words)
        mine = [i for i, word in enumerate(pieces.words) if word == place]
        if len(mine) > 1 and self._neighbours is not None:
            return self._neighbours(words, place)
        row = list(pieces.ids)
        row[mine[0]] = self._tokenizer.mask_id
        joined = self._tokenizer.join(row, pieces.ids)
        if len(mine) != 1 or len(joined.ids) > self._max_length:
            return ()
        scores = self._score(np.array(joined.ids, np.int32), 1 + mine[0])
        best = np.argsort(-scores, kind="stable")[: self._num_candidates]
        kept = best[self._is_word[best]]
        return [self._tokenizer.vocabulary[i].removeprefix("\u0120") for i in kept]


class NearestWords:
    """Words with the nearest embeddings."""

    def __init__(
        self,
        words: Sequence[str],
        embeddings: Float[np.ndarray, "words width"],
        num_candidates: int = 15,
        max_words: int = 100_000,
    ):
        """Candidates of embeddings.

        Args:
          words: the most frequent first.
          embeddings: a vector of each.
          num_candidates: nearest words, without the word itself.
          max_words: of which the first are used.

        Raises:
          ValueError: if there are other numbers of words than of vectors.
        """
        if len(words) != len(embeddings) or not len(words):
            raise ValueError(f"{len(words)} words and {len(embeddings)} vectors; wanted as many")
        self._words = list(words[:max_words])
        vectors = np.asarray(embeddings[:max_words], np.float32)
        self._units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        self._places = {word: place for place, word in reversed(list(enumerate(self._words)))}
        self._num_candidates = num_candidates

    def __call__(self, words: Sequence[str], place: int) -> Sequence[str]:
        """The nearest words by cosine; they begin with a capital if the word does.

        Args:
          words: of the sentence.
          place: of the word.
        """
        word = words[place]
        mine = self._places.get(word, self._places.get(word.lower()))
        if mine is None:
            return ()
        cosine = self._units @ self._units[mine]
        cosine[mine] = -np.inf
        best = np.argsort(-cosine, kind="stable")[: min(self._num_candidates, len(cosine) - 1)]
        found = [self._words[i] for i in best]
        return [near.title() for near in found] if word.istitle() else found


def read_glove(path: str | Path, max_words: int = 100_000) -> tuple[list[str], np.ndarray]:
    """Words and vectors of a file of GloVe: a word and its numbers a line, the frequent ones first.

    Args:
      path: the file.
      max_words: lines that are read.

    Returns:
      The words, and float32 (words, width).

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: naming the line whose width differs or that holds no numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; wanted a text file of GloVe vectors")
    words: list[str] = []
    vectors: list[np.ndarray] = []
    with path.open(encoding="utf-8") as file:
        for number, line in zip(range(1, max_words + 1), file, strict=False):
            word, *values = line.rstrip("\n").split(" ")
            try:
                vector = np.array(values, np.float32)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}; wanted a word and numbers") from error
            if not vector.size or (vectors and vector.shape != vectors[0].shape):
                raise ValueError(f"{path}:{number}: {vector.size} numbers; wanted one width")
            words.append(word)
            vectors.append(vector)
    if not words:
        raise ValueError(f"{path} is empty")
    return words, np.stack(vectors)


def embedding_neighbours(
    tokenizer: TextTokenizer,
    embeddings: Float[np.ndarray, "vocabulary width"],
    num_candidates: int = 15,
) -> NearestWords:
    """Nearest words among a model's own word embeddings: nothing else is needed.

    Args:
      tokenizer: of the model.
      embeddings: its word embeddings.
      num_candidates: nearest words.
    """
    starts = tokenizer.word_starts()
    names = [entry.removeprefix("\u0120") for entry in tokenizer.vocabulary]
    kept = [i for i, name in enumerate(names) if starts[i] and _LETTERS.fullmatch(name)]
    return NearestWords([names[i] for i in kept], embeddings[kept], num_candidates)


def vary_text(
    text: str, candidates: Candidates, config: AugmentConfig, rng: np.random.Generator
) -> list[str]:
    """Variants of a text, by TinyBERT's algorithm; the text itself is not among them.

    The text is cut at spaces and punctuation. Words of letters that are no stop words get
    candidates once, the word itself where there are none; then copies are tried, in each of which
    every such word is replaced with a probability by one of its candidates.

    Args:
      text: the text.
      candidates: what could stand in a place.
      config: how often and how much.
      rng: draws.
    """
    words = [word for part in text.split() for word in split_punctuation(part)]
    options: dict[int, Sequence[str]] = {}
    for place, word in enumerate(words):
        if _LETTERS.fullmatch(word) and word.lower() not in STOP_WORDS:
            options[place] = candidates(words, place)[: config.num_candidates] or [word]
    original = " ".join(words)
    seen: dict[str, None] = {original: None}
    for _ in range(config.num_copies):
        copy = list(words)
        for place, choices in options.items():
            if rng.random() < config.probability:
                copy[place] = choices[int(rng.integers(len(choices)))]
        seen.setdefault(" ".join(copy))
    return [variant for variant in seen if variant != original]


def delete_words(text: str, probability: float, rng: np.random.Generator) -> str:
    """The text without some words, at least one of which stays.

    Args:
      text: the text.
      probability: that a word goes.
      rng: draws.
    """
    words = text.split()
    stays = rng.random(len(words)) >= probability
    if words and not stays.any():
        stays[rng.integers(len(words))] = True
    return " ".join(word for word, kept in zip(words, stays, strict=True) if kept)


def swap_words(text: str, count: int, rng: np.random.Generator) -> str:
    """The text with pairs of words exchanged.

    Args:
      text: the text.
      count: exchanges.
      rng: draws.
    """
    words = text.split()
    for _ in range(count if len(words) > 1 else 0):
        first, second = rng.choice(len(words), 2, replace=False)
        words[first], words[second] = words[second], words[first]
    return " ".join(words)


Vary = Callable[[str, np.random.Generator], Iterable[str]]
"""A text and draws -> variants of it."""


def augment(
    examples: Sequence[TextExample],
    vary: Vary,
    *,
    seed: int,
    keep_labels: bool = False,
    first_id: int = 0,
) -> tuple[TextExample, ...]:
    """The examples, each followed by its variants; of pairs one text at a time varies.

    Args:
      examples: to learn from.
      vary: `lambda text, rng: vary_text(text, candidates, config, rng)`, or another way.
      seed: the variants of an example depend on it and on the example's id only.
      keep_labels: variants carry the label of their example; else none.
      first_id: the least id of a variant, such as one above those of other parts of the data.

    Returns:
      Examples; variants have new ids, above all of the given ones.
    """
    following = max(first_id, *(example.id + 1 for example in examples), 0)
    made: list[TextExample] = []
    for example in examples:
        made.append(example)
        rng = np.random.default_rng((seed, example.id % 2**63))
        label = example.label if keep_labels else None
        texts = [(variant, example.pair) for variant in vary(example.text, rng)]
        if example.pair is not None:
            texts += [(example.text, variant) for variant in vary(example.pair, rng)]
        for text, pair in texts:
            made.append(TextExample(following, text, pair, label))
            following += 1
    return tuple(made)


def augment_tinybert(
    examples: Sequence[TextExample], candidates: Candidates, config: AugmentConfig, *, seed: int
) -> tuple[TextExample, ...]:
    """The examples and their variants by TinyBERT's algorithm, see `vary_text`.

    Args:
      examples: to learn from.
      candidates: what could stand in a place.
      config: how often and how much; `NUM_COPIES` has the numbers of copies for GLUE.
      seed: of the draws.
    """
    return augment(
        examples,
        lambda text, rng: vary_text(text, candidates, config, rng),
        seed=seed,
        keep_labels=config.keep_labels,
    )


def scores_from_rows(
    predict: Callable[[Mapping[str, np.ndarray]], Float[np.ndarray, "one length vocabulary"]],
    tokenizer: TextTokenizer,
    buckets: Sequence[int] = (32, 64, 128, 256, 512),
) -> ScoreTokens:
    """`ScoreTokens` of a model that reads batches.

    Args:
      predict: batch of one row (`ids`, `mask`, `types`) -> scores of every piece at every place.
      tokenizer: of the model.
      buckets: lengths that rows are filled up to, so that few shapes are compiled.
    """

    def score(ids: Int[np.ndarray, " length"], place: int) -> Float[np.ndarray, " vocabulary"]:
        length = next((b for b in buckets if b >= len(ids)), len(ids))
        batch = {
            "ids": np.full((1, length), tokenizer.pad_id, np.int32),
            "mask": np.arange(length)[None, :] < len(ids),
            "types": np.zeros((1, length), np.int32),
        }
        batch["ids"][0, : len(ids)] = ids
        if tokenizer.form == "bert":
            first = int(np.flatnonzero(ids == tokenizer.sep_id)[0])
            batch["types"][0, first + 1 : len(ids)] = 1
        return np.asarray(predict(batch))[0, place]

    return score
