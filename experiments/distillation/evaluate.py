r"""Score a model of a run, or any folder in the form of Hugging Face, on a part of the data.

    python -m experiments.distillation.evaluate --workdir=DIR
    python -m experiments.distillation.evaluate --workdir=DIR --submission=SUBMISSION
    python -m experiments.distillation.evaluate --workdir=OTHER --model=FOLDER \
        --config=configs/distillation/teacher.py:mnli --config.data.folder=GLUE \
        --config.teacher.weights=FOLDER

Without `--model` it is the student of the run in DIR, compared with the teacher that the run has
taught, if it has, or with the mean of several, each in the tokens of its own vocabulary. Without
`--config` the data are those of the run; with one, its `teacher.weights` has the vocabulary that
texts are read by.
The part is the test set, or the validation set where no label of the former is known, as in GLUE;
`--part` names another: `train`, `validation`, `test`. The mismatched part of MNLI is scored beside
the matched one. DIR gets `evaluation.json` and `predictions.csv`, a line for every example of the
part, in the order of its file; `experiments.distillation.glue` averages over tasks. `--submission`
writes the file that the server of GLUE or CLUE takes for the run's task, so that the runs of all
tasks share one folder, with AX where `diagnostic.tsv` is beside MNLI's files. `--timing` measures,
on this machine, the time of one text and the texts a second in batches of 32, with the tokenizer
and without it.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

from experiments.common import print_results, run, run_config, start
from experiments.distillation.models import Network, open_network
from experiments.distillation.own_vocabulary import in_words_of
from experiments.distillation.predictions import write_predictions
from experiments.distillation.scores import NUMBERS, compare, score
from experiments.distillation.settings import RunConfig
from experiments.distillation.tasks import Problem, load_problem
from experiments.distillation.teachers import Teachers
from experiments.distillation.train import (
    HARD,
    STAGE_1,
    STAGE_2,
    TEACHER,
    TEACHER_MODEL,
    numbered,
)
from jaxlab import distillation as kd
from jaxlab import parallel
from jaxlab.data.texts import CLUE, GLUE, write_clue_submission, write_glue_submission
from jaxlab.distillation.api import MODEL
from jaxlab.distillation.data import BatchConfig, make_eval_batches
from jaxlab.distillation.evaluate import Predictions, in_order, predict
from jaxlab.distillation.vocabularies import check_vocabulary
from jaxlab.training.workdir import CONFIG, open_workdir, read_json, write_json

logger = logging.getLogger(__name__)

PREDICTIONS = "predictions.csv"
PER_TOKEN = ("tagging", "span")
MISMATCHED = "_mismatched"
TIMED_TEXTS, TIMED_BATCH, TIMED_LENGTH = 64, 32, 128

_MODEL = flags.DEFINE_string(
    "model", None, "Folder of the model; by default the student of the run.", allow_override=True
)
_PART = flags.DEFINE_string(
    "part", None, "Part of the data: train, validation, test, of MNLI also validation_mismatched, "
    "which is scored beside validation; by default the test set, or the validation set where no "
    "label of the former is known.", allow_override=True,
)  # fmt: skip
_SUBMISSION = flags.DEFINE_string(
    "submission", None, "Folder for the files that the servers of GLUE and CLUE take."
)
_TIMING = flags.DEFINE_bool("timing", False, "Measure latency and throughput on this machine.")


def main(config: RunConfig | None, workdir: Path) -> None:
    """Load, predict, score, report."""
    mesh = start()
    if not _MODEL.value and not (workdir / MODEL).is_dir():
        raise FileNotFoundError(
            f"--workdir={workdir} has no {MODEL}/ of a run; give the folder of one, or --model"
        )
    workdir = open_workdir(workdir)
    settings = settings_of_run(workdir) if config is None else config
    problem = load_problem(settings, (settings.stage_1, settings.stage_2))
    problem.describe()
    check_flags(problem)
    folder = Path(_MODEL.value).expanduser() if _MODEL.value else workdir / MODEL
    own = in_words_of(problem, folder)
    network, say = open_model(own, folder, mesh)
    results: dict[str, Any] = {}
    found = part = None
    is_learnt = False
    if own.is_scored:
        part = _PART.value or problem.reported_part
        found = say(part)
        is_learnt = part == "validation" and problem.config.with_validation
        results = {} if is_learnt else score(own, part, found)
        if is_learnt:
            logger.warning("data.with_validation: these texts were learnt: predicted, not scored")
        elif not results:
            logger.warning("no label of the part %s is known: it is predicted, not scored", part)
        if results and (beside := part + MISMATCHED) in problem.data.parts:
            scores = score(own, beside, say(beside))
            results |= {f"mismatched/{name}": value for name, value in scores.items()}
    ran = kept_settings(workdir) or settings  # a model that was copied here has none of its own
    taught = teacher_folders(workdir, ran)
    if found and part and not is_learnt and taught and folder.resolve() not in taught:
        other = in_words_of(problem, taught[0])
        if problem.task in PER_TOKEN and other is not own:
            logger.warning("%s and %s cut texts differently: not compared", folder, taught[0])
        else:
            theirs = predictions_of_teachers(taught, ran, other, part, mesh)
            results |= compare(own, part, found, theirs)
    if _TIMING.value:
        results |= measure(own, network)
    # Predictions are of all processes together: what is handed in, too, before they part.
    choices = choose(own, say) if _SUBMISSION.value else {}
    if not parallel.is_main_process():
        return
    written = {"model": str(folder), "data": problem.name, "part": part, **results}
    write_json(workdir / NUMBERS, written)
    if found and part:
        write_predictions(workdir / PREDICTIONS, own, part, found)
    print_results(results, title=", ".join(filter(None, (f"{folder}: {problem.name}", part))))
    if _SUBMISSION.value:
        submit(own, choices, Path(_SUBMISSION.value))


def check_flags(problem: Problem) -> None:
    """Refuse what the data cannot give, before anything is computed.

    Args:
      problem: the data.

    Raises:
      ValueError: naming the flag, or saying that there is nothing to score.
    """
    if not problem.is_scored and not _TIMING.value:
        raise ValueError(
            f"{problem.name} is plain text without labels, on which nothing is scored; see the "
            "losses in the run's results.json, measure the model by --timing, or give --config "
            "and --model to score it on a task"
        )
    if _PART.value is not None and not problem.data.parts.get(_PART.value):
        there = (part for part, examples in problem.data.parts.items() if examples)
        raise ValueError(f"--part={_PART.value}: {problem.name} has {', '.join(there)}")
    if _SUBMISSION.value and problem.name not in (*GLUE, *CLUE):
        raise ValueError(f"--submission: {problem.name} is no task of GLUE or CLUE")


def settings_of_run(workdir: Path) -> RunConfig:
    """The settings of a run, as the last of its stages has kept them.

    Args:
      workdir: folder of the run.

    Raises:
      FileNotFoundError: if no stage has begun there.
    """
    if (found := kept_settings(workdir)) is None:
        raise FileNotFoundError(
            f"{workdir} has no run of experiments.distillation.train; give --config to say what "
            "data to evaluate on, and --model"
        )
    return found


def kept_settings(workdir: Path) -> RunConfig | None:
    """As `settings_of_run`; None if no stage has begun there.

    Args:
      workdir: folder of the run.
    """
    for name in (STAGE_2, STAGE_1, HARD, TEACHER):
        if (found := read_json(workdir / name / CONFIG)) is not None:
            return run_config(found, RunConfig)
    return None


def open_model(
    problem: Problem, folder: Path, mesh: Mesh
) -> tuple[Network, Callable[[str], Predictions]]:
    """A model out of a folder, and what it says, by the part of the data.

    Args:
      problem: the data.
      folder: of the model.
      mesh: the devices.

    Raises:
      FileNotFoundError: if there is no model.
      ValueError: if its labels are not those of the data.
    """
    opened = open_network(str(folder), task=problem.task, num_labels=problem.num_labels)
    check_vocabulary(problem.tokenizer, opened.config.encoder.vocab_size, str(folder))
    network = problem.align(opened, str(folder))
    forward = kd.make_forward(kd.TextModel(network.config))
    return network, lambda part: predict(forward, network.params, problem.batches(part), mesh)


def teacher_folders(workdir: Path, settings: RunConfig) -> list[Path]:
    """Where a run has kept the teachers that it has taught; nothing if it has taught none.

    Args:
      workdir: folder of the run.
      settings: of the run.
    """
    count = len(settings.teacher.all_weights)
    folders = [(workdir / numbered(TEACHER_MODEL, i)).resolve() for i in range(count)]
    return [folder for folder in folders if folder.is_dir()]


def predictions_of_teachers(
    folders: Sequence[Path], settings: RunConfig, problem: Problem, part: str, mesh: Mesh
) -> Predictions:
    """What the students of a run have learnt to say: the words of its teacher, or their mean.

    Args:
      folders: of the teachers.
      settings: of the run.
      problem: the data in the tokens of the teachers.
      part: of the data.
      mesh: the devices.

    Raises:
      ValueError: if their labels are not those of the data.
    """
    networks = [open_model(problem, folder, mesh)[0] for folder in folders]
    teachers = Teachers(tuple(networks), settings.teacher.mixing)
    forward = teachers.forward(settings, settings.temperature)
    return predict(forward, teachers.params, problem.batches(part), mesh)


def choose(problem: Problem, say: Callable[[str], Predictions]) -> dict[str, list[int | float]]:
    """What a model says of the parts that are handed in, in the order of their files.

    Args:
      problem: a task of GLUE or CLUE.
      say: part -> predictions.

    Returns:
      Part -> places of classes, or numbers of a regression.
    """
    parts = GLUE[problem.name].submission if problem.name in GLUE else ("test",)
    choices = {}
    for part in (part for part in parts if part in problem.data.parts):
        ids = np.array([example.id for example in problem.examples(part)], np.int64)
        logits = in_order(say(part), ids).logits
        chosen: Any = logits[:, 0] if problem.task == "regression" else logits.argmax(axis=1)
        choices[part] = chosen.tolist()
    return choices


def submit(problem: Problem, choices: Mapping[str, list[int | float]], folder: Path) -> None:
    """Write what is handed in to GLUE or CLUE.

    Args:
      problem: the task.
      choices: see `choose`.
      folder: to write to.
    """
    names = problem.data.label_names or None
    if problem.name in GLUE:
        paths = write_glue_submission(problem.name, folder, choices, names)
    else:
        path, places = folder / CLUE[problem.name].submission, [int(i) for i in choices["test"]]
        paths = (write_clue_submission(problem.name, path, places, names),)
    for path in paths:
        print(f"Submission: {path}")


def measure(problem: Problem, network: Network) -> dict[str, float]:
    """Latency of one text and throughput in batches, on this machine.

    Args:
      problem: gives texts and tokenizer.
      network: the model.

    Returns:
      `latency/p50_ms` of a text (or a window over a context) alone, `throughput/texts_per_s` in
      batches, and both with the tokenizer.
    """
    texts = problem.examples("validation")[:TIMED_TEXTS]
    limit = problem.max_length if problem.task == "span" else TIMED_LENGTH
    forward = kd.make_forward(kd.TextModel(network.config))
    params = jax.device_put(network.params)
    run_model = jax.jit(lambda batch: forward(params, batch))
    results = {}
    for name, size in (("latency/p50_ms", 1), ("throughput/texts_per_s", TIMED_BATCH)):
        length = min(limit, problem.max_length)
        config = BatchConfig(length, (length,), eval_batch_size=size)

        def batches(config: BatchConfig = config) -> list[dict[str, Any]]:
            return list(make_eval_batches(problem.tokenize(texts, config.max_length), config))

        made = batches()
        seconds = [_seconds(run_model, batch) for batch in made[:1] + made][1:]
        started = time.perf_counter()
        batches()
        tokenizing = (time.perf_counter() - started) / len(made)
        for suffix, extra in (("", 0.0), ("_with_tokenizer", tokenizing)):
            median = float(np.median(seconds)) + extra
            results[name + suffix] = 1e3 * median if size == 1 else size / median
    return results


def _seconds(run_model: Callable[[Any], Any], batch: dict[str, Any]) -> float:
    fields, _ = parallel.split_host_fields(batch)
    started = time.perf_counter()
    jax.block_until_ready(run_model(fields))
    return time.perf_counter() - started


if __name__ == "__main__":
    run(
        main,
        workdir_help="Folder of the result, made if absent, and of the run whose model is scored.",
    )
