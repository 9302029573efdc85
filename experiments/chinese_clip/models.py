"""Where a run leaves its model, and how the other programs find it and use it.

Programs that share a flag define it with `allow_override=True`: the tests import them all.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlab import chinese_clip as clip
from jaxlab.chinese_clip.downloads import find_checkpoint
from jaxlab.chinese_clip.emoji import compose_inputs
from jaxlab.chinese_clip.loading import MODEL_FOLDER
from jaxlab.chinese_clip.published import CONFIG_FILE

WORKDIR_HELP = "Folder of a run that has ended, whose model is taken in place of --weights."
WEIGHTS_HELP = "File or folder of weights in any form, or the name of a released model (ViT-B-16)."


def open_weights(path_or_name: str) -> clip.Weights:
    """The weights that `--weights` names.

    Args:
      path_or_name: a file or folder in any form, or the name of a released model, which is fetched
        if it is not on this machine.

    Raises:
      FileNotFoundError: if there are none.
      ValueError: if they cannot be read.
      ConnectionError: if a released model cannot be fetched.
    """
    return clip.load_weights(find_checkpoint(path_or_name))


def choose_weights(workdir: Path | None, weights: str | None) -> clip.Weights:
    """The weights that a command line names, of a run or of a file.

    Args:
      workdir: a run, if `--workdir` is given.
      weights: a path or the name of a released model, if `--weights` is given.

    Raises:
      ValueError: if neither or both are given, or the weights are damaged.
      FileNotFoundError: if there are none.
    """
    check_model_flags(workdir, weights)
    return load_run_model(workdir) if workdir is not None else open_weights(str(weights))


def check_model_flags(workdir: Path | None, weights: str | None) -> None:
    """Refuse two models, and none.

    Args:
      workdir: a run, if `--workdir` is given.
      weights: a path or the name of a released model, if `--weights` is given.

    Raises:
      ValueError: if neither or both are given.
    """
    if (workdir is None) == (weights is None):
        got = "neither" if weights is None else f"--workdir={workdir} and --weights={weights}"
        raise ValueError(
            f"got {got}; give the model: either --weights=PATH or a released name such as "
            "ViT-B-16, or --workdir=DIR of a run"
        )


def load_run_model(workdir: Path) -> clip.Weights:
    """The model that a finished run wrote.

    Args:
      workdir: folder of the run.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is damaged.
    """
    return clip.load_published(run_model_folder(workdir))


def run_model_folder(workdir: Path) -> Path:
    """Where a finished run wrote its model.

    Args:
      workdir: folder of the run.

    Raises:
      FileNotFoundError: if there is none.
    """
    folder = workdir / MODEL_FOLDER
    if not folder.is_dir() and (workdir / CONFIG_FILE).is_file():
        raise FileNotFoundError(
            f"--workdir={workdir} is a folder of weights and no run; give it as --weights={workdir}"
        )
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} does not exist: no run has ended in --workdir={workdir}; train there first, "
            f"python -m experiments.chinese_clip.train --config=configs/chinese_clip/tiny.py "
            f"--workdir={workdir}"
        )
    return folder


def load_model(workdir: Path | None, weights: str | None, **options: Any) -> clip.LoadedModel:
    """The model that a command line names, ready for use.

    Args:
      workdir: a run, if `--workdir` is given.
      weights: a path or the name of a released model, if `--weights` is given.
      **options: of `jaxlab.chinese_clip.load`.

    Raises:
      ValueError: if neither or both are given, or the weights are damaged.
      FileNotFoundError: if there are none.
    """
    check_model_flags(workdir, weights)
    if weights is not None:
        return clip.load(weights, **options)
    assert workdir is not None
    return clip.load(run_model_folder(workdir), **options)


def load_index_model(
    index: clip.PictureIndex, workdir: Path | None, weights: str | None
) -> clip.LoadedModel:
    """The model that made an index, from where it was or from where the command line says.

    Args:
      index: the index.
      workdir: a run, if `--workdir` is given.
      weights: a path or the name of a released model, if `--weights` is given.

    Raises:
      ValueError: if it is another model.
      FileNotFoundError: if it is not there any more.
    """
    options: dict[str, Any] = {"compat": index.info.compat, "apply_exif": index.info.apply_exif}
    if workdir is None and weights is None:
        model = clip.load(index.info.model, **options)
    else:
        model = load_model(workdir, weights, **options)
    index.check_model(model)
    return model


def encode_drawings(model: clip.LoadedModel, drawings: np.ndarray) -> np.ndarray:
    """Normalised features of RGBA drawings, resized as they were in training.

    Args:
      model: a model of the emoji set.
      drawings: uint8 (drawings, height, width, 4).
    """
    size = model.config.vision.image_size
    compose = jax.jit(functools.partial(compose_inputs, image_size=size))
    return model.encode_image(np.asarray(compose(drawings)))
