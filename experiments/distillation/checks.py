"""What does not go together in a stage: told before it trains, all of it at once."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.distillation.models import Network
from experiments.distillation.own_vocabulary import TwoVocabularies
from experiments.distillation.settings import StageConfig
from experiments.distillation.tasks import Problem
from experiments.distillation.teachers import Teachers
from jaxlab import distillation as kd
from jaxlab.distillation.cached_features import check_cacheable
from jaxlab.distillation.ensembles import check_mixing
from jaxlab.distillation.hard_losses import check_labels
from jaxlab.distillation.terms import Term
from jaxlab.distillation.train import OF_TEXTS
from jaxlab.distillation.vocabularies import check_vocabulary


def check_stage(
    problem: Problem,
    stage: StageConfig,
    objective: kd.Objective,
    student: Network,
    teacher: Teachers | None,
    *,
    is_cached: bool = False,
) -> None:
    """Refuse a stage that cannot be trained.

    Args:
      problem: the data.
      stage: its settings.
      objective: what is learnt.
      student: the network that learns.
      teacher: what it learns from.
      is_cached: the teacher's outputs are to be kept.

    Raises:
      ValueError: listing everything that does not go together.
    """
    networks = (student, *(() if teacher is None else teacher.networks))
    problems = [*_of_labels(problem, objective), *_of_lengths(problem, networks)]
    problems += _of_embeddings(problem, student, teacher)
    problems += [*_of_teachers(objective, teacher, stage), *_of_measuring(problem, stage)]
    if is_cached and objective.needs_teacher:
        problems += _of_cache(problem, objective)
    if teacher is not None:
        problems += _of_vocabularies(problem, objective, stage)
    if stage.method == "theseus":
        problems += _of_theseus(student, teacher)
    if problems:
        raise ValueError("; ".join(problems))


def _of_labels(problem: Problem, objective: kd.Objective) -> list[str]:
    weight = objective.config.hard.weight
    if not weight or problem.task in ("mlm", "none"):
        return []
    examples = problem.examples("train")
    labels = _classes_of(problem, examples)
    if labels is not None and (labels >= 0).any():
        try:
            check_labels(labels, problem.num_labels, f"labels of {problem.name}")
        except (TypeError, ValueError) as error:
            return [str(error)]
        return []
    if labels is None and any(has_label(example) for example in examples):
        return []
    return [
        f"hard.weight={weight:g} is of labels, and none of {len(examples)} training examples of "
        f"{problem.name} has one; set hard.weight=0 to learn from the teacher alone"
    ]


def _classes_of(problem: Problem, examples: Sequence[Any]) -> np.ndarray | None:
    """All labels that are known, of tasks whose labels are classes; None of other tasks."""
    if problem.task == "classification":
        return np.array([e.label for e in examples if e.label is not None])
    if problem.task == "tagging":
        return np.array([tag for e in examples for tag in e.tags or ()])
    return None


def has_label(example: Any) -> bool:
    """Whether it is known what an example is.

    Args:
      example: a text, words with tags, or a question.
    """
    known = (getattr(example, name, None) for name in ("label", "tags"))
    return any(value is not None for value in known) or bool(getattr(example, "answers", ()))


def _of_lengths(problem: Problem, networks: Sequence[Network]) -> list[str]:
    longest = min(network.config.encoder.max_tokens for network in networks)
    if problem.max_length <= longest:
        return []
    return [
        f"data.max_length={problem.max_length} is more than the {longest} tokens that a network "
        f"has positions for; set data.max_length={longest} or less"
    ]


def _of_embeddings(problem: Problem, student: Network, teacher: Teachers | None) -> list[str]:
    own = problem.student_tokenizer if isinstance(problem, TwoVocabularies) else problem.tokenizer
    readers = [("the network that learns", student, own)]
    for network in () if teacher is None else teacher.networks:
        readers.append(("a teacher", network, problem.tokenizer))
    problems = []
    for whose, network, tokenizer in readers:
        try:
            check_vocabulary(tokenizer, network.config.encoder.vocab_size, whose)
        except ValueError as error:
            problems.append(str(error))
    return problems


def _of_teachers(
    objective: kd.Objective, teacher: Teachers | None, stage: StageConfig
) -> list[str]:
    if teacher is None:
        return []
    drawn = dict.fromkeys(path for network in teacher.networks for path in network.drawn)
    if drawn and (objective.config.response.is_used or stage.method == "theseus"):
        taken = "learn the teacher's logits" if stage.method == "distil" else "keep its head"
        return [
            f"the student is to {taken}, and the teacher's weights have no head for this "
            f"task ({', '.join(drawn)} would be drawn at random); give weights that know it as "
            "teacher.weights (configs/distillation/teacher.py teaches them), or set teacher.stage"
        ]
    if len(teacher.networks) == 1:
        return []
    try:
        check_mixing(teacher.mixing, teacher.first.config.task)
    except ValueError as error:
        return [f"teacher.{error}"]
    if not objective.terms:
        return []
    return [
        f"{len(teacher.networks)} teachers are averaged in their logits, and "
        f"{_listed(objective.terms)} are of layers; set matches='', or name one teacher"
    ]


def _of_vocabularies(problem: Problem, objective: kd.Objective, stage: StageConfig) -> list[str]:
    if not isinstance(problem, TwoVocabularies):
        return []
    if stage.method == "theseus":
        return ["method='theseus' keeps the teacher's embeddings: give no student.vocabulary"]
    sizes = (
        f"the student's vocabulary has {problem.student_tokenizer.vocab_size} entries, the "
        f"teacher's {problem.tokenizer.vocab_size}"
    )
    if problem.task == "tagging" and not problem.is_aligned:
        return [f"{sizes}, and tags are compared token by token; give both one vocabulary"]
    common = [t for t in objective.terms if t.match.knowledge not in OF_TEXTS]
    if problem.is_aligned or not common:
        return []
    return [
        f"{sizes}, and they cut the texts differently, so that {_listed(common)} have no common "
        f"tokens to compare; match {', '.join(OF_TEXTS)} or logits, or give the student a "
        "vocabulary whose pieces are the teacher's"
    ]


def _of_measuring(problem: Problem, stage: StageConfig) -> list[str]:
    asked = ("eval_every_steps", "eval_every_epochs", "best_metric")
    asked = [f"{name}={value}" for name in asked if (value := getattr(stage, name))]
    if not problem.is_scored:
        return asked and [
            f"{', '.join(asked)} measure predictions, and plain text has none to compare with; "
            "leave them out: the losses are in metrics.jsonl"
        ]
    if not problem.config.with_validation:
        return []
    return asked and [
        f"{', '.join(asked)} measure on the validation texts, which data.with_validation lets the "
        "networks learn; leave one of the two out"
    ]


def _of_cache(problem: Problem, objective: kd.Objective) -> list[str]:
    try:
        check_cacheable(objective.terms)
    except ValueError as error:
        return [str(error)]
    if problem.task != "mlm":
        return []
    return [
        "cache_teacher=True keeps what the teacher says of a text, and other tokens of it are "
        "masked at every step; set cache_teacher=False"
    ]


def _of_theseus(student: Network, teacher: Teachers | None) -> list[str]:
    if teacher is None:
        return ["method='theseus' replaces layers of a teacher, and there is none"]
    there, here = teacher.first.config, student.config
    depth = {"num_layers": there.encoder.num_layers}
    if dataclasses.replace(here, encoder=dataclasses.replace(here.encoder, **depth)) != there:
        return [
            "method='theseus' puts layers of the student in the place of the teacher's: they "
            f"differ in more than their number ({here.encoder} and {there.encoder}); leave "
            "student.width, num_heads and mlp_width out"
        ]
    if here.encoder.num_layers > there.encoder.num_layers:
        return [
            f"method='theseus' with {here.encoder.num_layers} layers for {there.encoder.num_layers}"
            " of the teacher; use at most as many"
        ]
    return []


def _listed(terms: Sequence[Term]) -> str:
    return ", ".join(dict.fromkeys(term.match.knowledge for term in terms))
