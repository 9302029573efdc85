"""Fit match probabilities to pairs that a model was not trained on.

    python -m experiments.chinese_clip.calibrate --workdir=DIR
    python -m experiments.chinese_clip.calibrate --weights=ViT-B-16 --pairs=FILE --output=JSON

The pairs are the emoji's that were held out, for the model of a run on them; or the lines of
`--pairs`, each `path<TAB>text`, paths below the folder of the file: a few hundred are enough. Every
picture and the texts of all others are the pairs that do not match. The result goes beside the
weights as `calibration.json`, where `load`, `index` and `search` find it, or to `--output`.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

from experiments.chinese_clip.models import (
    WEIGHTS_HELP,
    WORKDIR_HELP,
    check_model_flags,
    encode_drawings,
    load_model,
    run_model_folder,
)
from experiments.common import print_grid, run
from jaxlab import chinese_clip as clip
from jaxlab.chinese_clip.api import CALIBRATION_FILE
from jaxlab.chinese_clip.calibration import CosineGroups
from jaxlab.data.emoji import load_emoji, standard_split

LEVELS = ("unseen_drawing", "unseen_concept")
PRECISION = 0.9

_WEIGHTS = flags.DEFINE_string("weights", None, WEIGHTS_HELP, allow_override=True)
_PAIRS = flags.DEFINE_string("pairs", None, "File of pairs, path<TAB>text a line.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "JSON file to write, instead of beside the weights.", allow_override=True
)


class Halves(NamedTuple):
    """Cosines of pairs, of two halves that share no picture: one to fit, one to test."""

    first: CosineGroups
    second: CosineGroups


def main(workdir: Path | None) -> None:
    """Fit, say how well it does on pairs left out, and write."""
    check_model_flags(workdir, _WEIGHTS.value)
    output = _output(workdir)
    model = load_model(workdir, _WEIGHTS.value)
    halves = _emoji_cosines(model) if _PAIRS.value is None else _pair_cosines(model, _PAIRS.value)
    both = CosineGroups(*(np.concatenate(groups) for groups in zip(*halves, strict=True)))
    calibration = clip.fit_calibration(*both)
    calibration.save(output)
    rows = {
        f"error of the cosine as a probability, {_EVEN}": cross_error(halves, None),
        f"error of the match probability, {_EVEN}": cross_error(halves, 0.5),
        "cosine where half of the pairs match": calibration.with_prior(0.5).cosine(0.5),
        f"cosine for a precision of {PRECISION}, {_EVEN}": clip.threshold_for_precision(
            *both, PRECISION, prior=0.5
        ),
    }
    print_grid({name: {"value": value} for name, value in rows.items()}, title="Calibration")
    print(f"Written: {output}")


_EVEN = "as many matching as other pairs"


def cross_error(halves: Halves, prior: float | None) -> float:
    """Calibration error on each half of what the other half fitted, the mean of both.

    Args:
      halves: cosines.
      prior: share of matching pairs; None takes the cosine itself, cut to [0, 1].
    """
    errors = []
    for fitted, tested in (halves, halves[::-1]):
        cosines = np.concatenate(tested)
        matches = np.arange(len(cosines)) < len(tested.matching)
        weights = np.where(matches, 1 / len(tested.matching), 1 / len(tested.other))
        said = np.clip(cosines, 0.0, 1.0)
        if prior is not None:
            said = clip.fit_calibration(*fitted, prior=prior).probability(cosines)
        errors.append(clip.expected_calibration_error(said, matches, weights=weights))
    return float(np.mean(errors))


def _output(workdir: Path | None) -> Path:
    if _OUTPUT.value is not None:
        return Path(_OUTPUT.value).expanduser()
    if workdir is not None:
        return run_model_folder(workdir) / CALIBRATION_FILE
    if _WEIGHTS.value is not None and (path := Path(_WEIGHTS.value).expanduser()).exists():
        return (path if path.is_dir() else path.parent) / CALIBRATION_FILE
    raise ValueError("--output is missing; give a JSON file, or a path as --weights")


def _emoji_cosines(model: clip.LoadedModel) -> Halves:
    """Held-out drawings with names, of concepts at even and at odd places."""
    emoji = load_emoji()
    split = standard_split(emoji)
    names = model.encode_text(list(emoji.names_zh))
    drawings = np.stack([encode_drawings(model, emoji.images(s)) for s in ("google", "twitter")])
    halves = []
    for half in (0, 1):
        groups = []
        for level in (split.levels[name] for name in LEVELS):
            rows = level.image_queries[half::2]
            cosines = drawings[rows[:, 0], rows[:, 1]] @ names[level.text_gallery].T
            targets = level.image_targets[half::2]
            groups.append(clip.split_cosines(cosines, targets[:, None].tolist()))
        halves.append(CosineGroups(*(np.concatenate(parts) for parts in zip(*groups, strict=True))))
    return Halves(*halves)


def _pair_cosines(model: clip.LoadedModel, file: str) -> Halves:
    """The pairs of a file: its even and its odd lines."""
    path = Path(file).expanduser()
    pictures, texts = [], []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        name, tab, text = line.partition("\t")
        if not tab or not text.strip():
            raise ValueError(f"{path} line {number} is {line[:60]!r}; wanted path<TAB>text")
        pictures.append(path.parent / name)
        texts.append(text.strip())
    if len(texts) < 8:
        raise ValueError(f"{path} holds {len(texts)} pairs; give at least 8, better hundreds")
    image, text = model.encode_image(pictures), model.encode_text(texts)
    halves = []
    for half in (0, 1):
        own = texts[half::2]
        # Equal texts, and further texts of one picture, do not count as pairs that do not match.
        same = [
            [j for j, other in enumerate(own) if other == one or names[j] == names[i]]
            for names in [pictures[half::2]]
            for i, one in enumerate(own)
        ]
        halves.append(clip.split_cosines(image[half::2] @ text[half::2].T, same))
    return Halves(*halves)


if __name__ == "__main__":
    run(main, workdir_help=WORKDIR_HELP)
