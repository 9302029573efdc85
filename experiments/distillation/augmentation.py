"""Variants of the training texts for the stages of a student."""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.distillation.models import weights_folder
from experiments.distillation.settings import AugmentationConfig, NetworksConfig
from experiments.distillation.tasks import Problem
from jaxlab import distillation as kd
from jaxlab import parallel
from jaxlab.data.texts import TextExample
from jaxlab.distillation.augment import (
    AugmentConfig,
    Candidates,
    ModelCandidates,
    NearestWords,
    Vary,
    augment,
    delete_words,
    embedding_neighbours,
    read_glove,
    scores_from_rows,
    swap_words,
    vary_text,
)
from jaxlab.distillation.compared import top_features
from jaxlab.distillation.data import BUCKETS
from jaxlab.distillation.masking import mask_rows
from jaxlab.distillation.rows import TokenRows
from jaxlab.text import load_tokenizer
from jaxlab.training.workdir import read_json, write_json

logger = logging.getLogger(__name__)

VARIED = ("classification", "regression")
KEPT = "augmentation.json"


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedProblem(Problem):
    """Data of whose training texts those from an id on have masked tokens.

    Attributes:
      first_masked: the least id of such a text.
      augmentation: share of the tokens, seed.
    """

    first_masked: int
    augmentation: AugmentationConfig

    @functools.cache  # noqa: B019 (a problem lives as long as its run)
    def rows(self, part: str) -> TokenRows:
        """The examples of a part as token ids."""
        rows = Problem.rows(self, part)
        if part != "train":
            return rows
        settings, which = self.augmentation, rows.example_id >= self.first_masked
        return mask_rows(rows, which, settings.probability, seed=settings.seed)


def augment_problem(config: NetworksConfig, problem: Problem, workdir: Path) -> Problem:
    """The data with variants among the training texts; the data itself where none are asked for.

    Variants have ids above those of all parts, the same ones at every call. They are kept in
    `augmentation.json`: a model that is asked for words takes its time.

    Args:
      config: the settings of the run.
      problem: its data.
      workdir: folder of the run.

    Raises:
      FileNotFoundError: if weights or vectors are not there.
      ValueError: if the texts are of another kind, or what words are replaced by is not to be had.
    """
    settings = config.augmentation
    if not settings.num_copies:
        return problem
    if problem.task not in VARIED:
        raise ValueError(
            f"augmentation varies texts of {' and '.join(VARIED)}, and {problem.name} is of "
            f"{problem.task}; set augmentation.num_copies=0"
        )
    if settings.candidates == "mask" and type(problem) is not Problem:
        raise ValueError(
            "augmentation.candidates='mask' masks tokens of one vocabulary, and the student has "
            "its own; leave words out by augmentation.candidates='delete'"
        )
    examples = problem.examples("train")
    first_id = 1 + max(e.id for part in problem.data.parts.values() for e in part)
    weights = config.teacher.weights.partition(",")[0]
    path, identity = workdir / KEPT, _identity(settings, weights, examples, first_id)
    made = _read_kept(path, identity)
    if not made:
        made = augment(
            examples,
            make_vary(settings, weights),
            seed=settings.seed,
            keep_labels=settings.keep_labels,
            first_id=first_id,
        )
        if parallel.is_main_process():
            workdir.mkdir(parents=True, exist_ok=True)
            write_json(path, {"identity": identity, "examples": made})
    logger.info(
        "%d training texts and %d variants of them (%s)",
        len(examples), len(made) - len(examples), settings.candidates,
    )  # fmt: skip
    data = dataclasses.replace(problem.data, train=made)
    # Of texts that are the share already, with those of the validation where they are learnt.
    texts = dataclasses.replace(problem.config, fraction=1.0, with_validation=False)
    found = dataclasses.replace(problem, data=data, config=texts)
    if settings.candidates != "mask":
        return found
    fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    return MaskedProblem(**fields, first_masked=first_id, augmentation=settings)


def _identity(
    settings: AugmentationConfig, weights: str, examples: Sequence[TextExample], first_id: int
) -> str:
    """What variants depend on: settings, weights by name and size of files, texts."""
    folder = weights_folder(settings.model or weights)
    files = [(path.name, path.stat().st_size) for path in sorted(folder.iterdir())]
    seen = (settings, str(folder), files, first_id, *examples)
    return hashlib.sha256(repr(seen).encode()).hexdigest()


def _read_kept(path: Path, identity: str) -> tuple[TextExample, ...]:
    """The texts of an earlier start of the run; none if there was none, or of other texts."""
    kept = read_json(path)
    if kept is None or kept["identity"] != identity:
        return ()
    return tuple(TextExample(**example) for example in kept["examples"])


def make_vary(settings: AugmentationConfig, teacher: str) -> Vary:
    """From a text and draws to its variants.

    Args:
      settings: of the variants.
      teacher: weights whose words are taken where the settings name none.

    Raises:
      FileNotFoundError: see `augment_problem`.
      ValueError: likewise.
    """
    number, share = settings.num_copies, settings.probability
    ways: dict[str, Callable[[str, np.random.Generator], str]] = {
        "delete": lambda text, rng: delete_words(text, share, rng),
        "swap": lambda text, rng: swap_words(text, _exchanges(text, share), rng),
    }
    if settings.candidates == "mask":
        return lambda text, rng: [text] * number
    if settings.candidates in ways:
        return functools.partial(_different, ways[settings.candidates], number)
    candidates = make_candidates(settings, settings.model or teacher)
    config = AugmentConfig(number, settings.num_candidates, share, settings.keep_labels)
    return lambda text, rng: vary_text(text, candidates, config, rng)


def _different(
    change: Callable[[str, np.random.Generator], str],
    number: int,
    text: str,
    rng: np.random.Generator,
) -> Iterable[str]:
    """What comes out of so many changes, once each; the text itself is left out."""
    made = dict.fromkeys(change(text, rng) for _ in range(number))
    return [variant for variant in made if variant != " ".join(text.split())]


def _exchanges(text: str, share: float) -> int:
    """Exchanges that move about the share of the words."""
    return max(1, round(share * len(text.split()) / 2))


def make_candidates(settings: AugmentationConfig, weights: str) -> Candidates:
    """What words are replaced by.

    Args:
      settings: of the variants.
      weights: of the model whose words are taken.

    Raises:
      FileNotFoundError: see `augment_problem`.
      ValueError: likewise.
    """
    number = settings.num_candidates
    glove = NearestWords(*read_glove(settings.glove), number) if settings.glove else None
    if settings.candidates == "glove":
        assert glove is not None, "the settings are checked"
        return glove
    folder = weights_folder(weights)
    tokenizer = load_tokenizer(folder)
    is_model = settings.candidates == "model"
    found = kd.load_pretrained(
        folder, task="mlm" if is_model else "none", num_labels=0, key=jax.random.key(0)
    )
    neighbours = glove or embedding_neighbours(
        tokenizer, found.params["encoder"]["word_embeddings"], number
    )
    if not is_model:
        return neighbours
    if missing := [name for name in found.loaded.fresh if name.startswith("lm_head")]:
        raise ValueError(
            f"augmentation.candidates='model' asks a model for words, and {weights!r} has no head "
            f"of a language model ({', '.join(missing)}); name weights with one in "
            "augmentation.model, or set augmentation.candidates='neighbours'"
        )
    longest = min(found.config.encoder.max_tokens, BUCKETS[-1])
    buckets = (*(length for length in BUCKETS if length < longest), longest)
    score = scores_from_rows(_predictor(found), tokenizer, buckets)
    return ModelCandidates(tokenizer, score, number, neighbours, longest)


def _predictor(found: kd.Pretrained) -> Callable[[Any], np.ndarray]:
    """From a batch on the host to the score of every piece at every place."""
    forward, params = kd.make_forward(kd.TextModel(found.config)), jax.device_put(found.params)
    run = jax.jit(lambda params, batch: top_features(forward(params, batch)).logits)
    return lambda batch: np.asarray(run(params, batch))
