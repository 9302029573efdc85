"""Classify pictures by the Chinese names of their classes, without training.

    python -m experiments.chinese_clip.zero_shot --weights=PATH --folder=DIR/food-101
    python -m experiments.chinese_clip.zero_shot --workdir=DIR --folder=PICTURES

A folder is a published data set (`label_cn.txt`, `test/{class id}/...`), or has one folder of
pictures a class, named by the class: `猫/1.jpg`, `狗/2.jpg`. The name of the folder (or
`--dataset`) decides the prompts and what counts, as in the benchmark ELEVATER; for pictures of
one's own these are the general prompts and the accuracy. Printed are all its metrics, as fractions
of 1, and the score, in percent. The model is that of `--weights`, or of the run in `--workdir`.
That folder gets `zero_shot.json`, `confusion.png` and with `--submission` the file `{dataset}.json`
for the benchmark's server.
"""

import difflib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from jaxtyping import Float

from experiments.chinese_clip.confusion import draw_confusion, worst_confusions
from experiments.chinese_clip.models import WEIGHTS_HELP, load_run_model, open_weights
from experiments.chinese_clip.published_results import model_name, zero_shot_accuracy
from experiments.common import print_grid, print_results, run, start
from experiments.common.pictures import save_png
from jaxlab import chinese_clip as clip
from jaxlab.chinese_clip import elevater, templates
from jaxlab.chinese_clip.features import FeatureExtractor, PictureFiles
from jaxlab.chinese_clip.zero_shot import (
    GENERAL_TEMPLATES,
    fill_templates,
    make_classifier,
    zero_shot_probabilities,
)
from jaxlab.data.class_folders import ClassFolders, read_class_folders
from jaxlab.parallel import is_main_process

_WEIGHTS = flags.DEFINE_string("weights", None, WEIGHTS_HELP, allow_override=True)
_FOLDER = flags.DEFINE_string(
    "folder", None, "The data set: a folder of pictures a class, named by it."
)
_DATASET = flags.DEFINE_string(
    "dataset",
    None,
    f"Key of the data set: {', '.join(elevater.DATASETS)}; by default the folder's name.",
)
_TEMPLATES = flags.DEFINE_string(
    "templates",
    None,
    f"List of prompts: {', '.join(templates.template_names())}, or short (eight of our own); or a "
    "file with one a line, {} for the name of the class. By default the original's choice for the "
    "data set.",
)
_MULTI_LABEL = flags.DEFINE_boolean(
    "multi_label",
    False,
    "Files of one name in several class folders are one picture of several classes (VOC).",
)
_SUBMISSION = flags.DEFINE_boolean("submission", False, "Write the file for the server.")
_INDEX = flags.DEFINE_string(
    "index", None, "Order of the submission; by default index.json of the folder, if it is there."
)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type of the computation.")
_BATCH = flags.DEFINE_integer("batch_size", 128, "Rows of a batch on all devices.", lower_bound=1)
_THREADS = flags.DEFINE_integer("num_threads", 4, "Threads that read and decode.", lower_bound=0)
_COMPAT = flags.DEFINE_enum(
    "compat",
    "white",
    ["white", "original"],
    "'white' puts transparent images on white; 'original' drops their alpha after the resize.",
)

RESULTS, CONFUSION = "zero_shot.json", "confusion.png"
SHORT = "short"

logger = logging.getLogger(__name__)


def main(workdir: Path | None) -> None:
    """Read, encode, measure, report."""
    if not _FOLDER.value:
        raise ValueError("--folder is missing; give a folder with one folder of pictures a class")
    if not _WEIGHTS.value and workdir is None:
        raise ValueError(
            "give the model: --weights=PATH or a released name such as ViT-B-16, or --workdir=DIR "
            "of a run"
        )
    if _SUBMISSION.value and workdir is None:
        raise ValueError("--submission is written into --workdir, which is missing")
    folder = Path(_FOLDER.value).expanduser()
    dataset = choose_dataset(folder, _DATASET.value)
    pictures = read_class_folders(folder, multi_label=_MULTI_LABEL.value)
    check_classes(folder, pictures.class_names)
    prompts = choose_templates(dataset, _TEMPLATES.value)
    index = read_index(folder, len(pictures.paths))
    mesh = start()
    weights = open_weights(_WEIGHTS.value) if _WEIGHTS.value else load_run_model(workdir or Path())
    extractor = FeatureExtractor(
        weights,
        mesh=mesh,
        dtype=_DTYPE.value,
        batch_size=_BATCH.value,
        num_threads=_THREADS.value,
        compat=_COMPAT.value,
    )
    probabilities = classify(extractor, pictures, prompts)
    results = elevater.measure(probabilities, pictures.labels)
    if is_main_process():
        report(results, dataset, pictures, probabilities, weights, workdir)
        if _SUBMISSION.value and workdir is not None:
            path = workdir / f"{dataset}.json"
            write_submission(path, weights, dataset, probabilities, index)
            print(f"Submission: {path}")


def choose_dataset(folder: Path, chosen: str | None) -> str:
    """The key of the data set: the one given, which must be one of the benchmark, or the folder's.

    Args:
      folder: of the pictures.
      chosen: the key given.

    Raises:
      ValueError: if the benchmark has no such data set.
    """
    dataset = folder.resolve().name if chosen is None else chosen
    if dataset in elevater.DATASETS:
        return dataset
    if chosen is not None:
        close = difflib.get_close_matches(chosen, elevater.DATASETS, n=1)
        nearest = (
            f"the nearest is {close[0]}" if close else "leave it out for pictures of one's own"
        )
        raise ValueError(
            f"--dataset={chosen} is no data set of the benchmark; {nearest}; there are "
            f"{', '.join(elevater.DATASETS)}"
        )
    logger.info(
        "%s is no data set of the benchmark: the general prompts are taken and the accuracy counts "
        "(--dataset and --templates say otherwise)",
        dataset,
    )
    return dataset


def check_classes(folder: Path, names: Sequence[str]) -> None:
    """Refuse a single class, of which every picture would be.

    Args:
      folder: of the pictures.
      names: its classes.

    Raises:
      ValueError: if there is one only.
    """
    if len(names) > 1:
        return
    below = folder / names[0]
    is_deeper = below.is_dir() and any(path.is_dir() for path in below.iterdir())
    hint = f"; did you mean --folder={below}?" if is_deeper else ""
    raise ValueError(
        f"--folder={folder} has one class, {names[0]!r}, and every picture would be of it; give a "
        f"folder with a folder of pictures for each of two classes or more{hint}"
    )


def choose_templates(dataset: str, chosen: str | None) -> tuple[str, ...]:
    """The prompts: a file's lines, a named list, or the original's choice for the data set.

    Args:
      dataset: key of the data set.
      chosen: the file or name, None for the original's choice.

    Raises:
      ValueError: if there is neither such a file nor such a list, or a line is no prompt.
    """
    if chosen is None:
        return templates.templates_of_dataset(dataset)
    if chosen == SHORT:
        return GENERAL_TEMPLATES
    path = Path(chosen).expanduser()
    if path.is_file():
        prompts = tuple(line for line in path.read_text("utf-8-sig").splitlines() if line.strip())
        wrong = [prompt for prompt in prompts if prompt.count("{}") != 1]
        if wrong or not prompts:
            told = f"has the lines {wrong}" if wrong else "is empty"
            raise ValueError(
                f"--templates={chosen} {told}; wanted one prompt a line, each with "
                "exactly one {} where the name of the class goes"
            )
        return prompts
    names = (*templates.template_names(), SHORT)
    if chosen not in names:
        close = difflib.get_close_matches(chosen, names, n=1)
        nearest = f"; the nearest list is {close[0]}" if close else ""
        raise ValueError(
            f"--templates={chosen} is neither a file nor a list of prompts{nearest}; there are "
            f"{', '.join(names)}"
        )
    return templates.load_templates(chosen)


def read_index(folder: Path, num_images: int) -> list[int] | None:
    """The order of the submission, None for that of the sorted folders."""
    path = Path(_INDEX.value).expanduser() if _INDEX.value else folder / "index.json"
    if not _SUBMISSION.value or not (_INDEX.value or path.is_file()):
        return None
    return elevater.read_index(path, num_images)


def classify(
    extractor: FeatureExtractor, pictures: ClassFolders, prompts: tuple[str, ...]
) -> Float[np.ndarray, "pictures classes"]:
    """The probability of every class for every picture.

    Args:
      extractor: the model.
      pictures: the pictures and the names of their classes.
      prompts: templates.
    """
    from tqdm import tqdm

    filled = fill_templates(pictures.class_names, prompts)
    total = sum(len(texts) for texts in filled)

    def encode(texts: list[str]) -> np.ndarray:
        with tqdm(total=total, unit="text", disable=None, dynamic_ncols=True) as bar:
            parts = []
            for rows in extractor.texts(texts):
                parts.append(rows.features)
                bar.update(len(rows.features))
        return np.concatenate(parts)

    classifier, parts = make_classifier(filled, encode), []
    with tqdm(total=len(pictures.paths), unit="image", disable=None, dynamic_ncols=True) as bar:
        for rows in extractor.images(PictureFiles(pictures.paths)):
            parts.append(zero_shot_probabilities(rows.features, classifier))
            bar.update(len(rows.features))
    return np.concatenate(parts)


def report(
    results: dict[str, float],
    dataset: str,
    pictures: ClassFolders,
    probabilities: np.ndarray,
    weights: clip.Weights,
    workdir: Path | None,
) -> None:
    """Print the table, and write it and the picture of confusions."""
    metric = elevater.metric_of(dataset, multi_label=pictures.labels.ndim == 2)
    if metric not in results:
        raise ValueError(
            f"{dataset} counts {metric}, which these {len(pictures.class_names)} classes do not "
            "have; check the folder, or give --dataset"
        )
    results = {**results, "score": 100 * results[metric]}
    published = zero_shot_accuracy(dataset, model_name(weights.config))
    title = f"{dataset}: {len(pictures.paths):,} pictures, {len(pictures.class_names)} classes"
    print_results(
        results,
        f"{title}; score: {metric} in percent",
        beside=None if published is None else {"published": {"score": published}},
    )
    if workdir is None:
        return
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / RESULTS).write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    if pictures.labels.ndim == 1:
        names, guesses = pictures.class_names, probabilities.argmax(axis=1)
        if confusions := worst_confusions(names, pictures.labels, guesses):
            print_grid(confusions, "Most frequent confusions")
        else:
            print("No picture is taken for another class.")
        picture = draw_confusion(names, pictures.labels, guesses)
        print(f"Picture: {save_png(workdir / CONFUSION, picture)}")


def write_submission(
    path: Path,
    weights: clip.Weights,
    dataset: str,
    probabilities: np.ndarray,
    index: list[int] | None,
) -> None:
    """Write the file for the server of the benchmark."""
    name = model_name(weights.config) or "custom"
    content = elevater.make_submission(
        name, dataset, weights.variables["params"], probabilities, index
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), "utf-8")


if __name__ == "__main__":
    run(
        main,
        workdir_help="Folder of the result, made if absent, and of the run whose model is taken "
        "unless --weights is given.",
    )
