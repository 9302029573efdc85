"""Where a run leaves its model, and how the other programs find it."""

from pathlib import Path

from jaxlab import chinese_clip as clip

MODEL_FOLDER = "model"


def load_run_model(workdir: Path) -> clip.Weights:
    """The model that a finished run wrote.

    Args:
      workdir: folder of the run.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is damaged.
    """
    folder = workdir / MODEL_FOLDER
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} does not exist: no run has ended in --workdir={workdir}; train there first, "
            f"python -m experiments.chinese_clip.train --config=configs/chinese_clip/tiny.py "
            f"--workdir={workdir}"
        )
    return clip.load_published(folder)


def load_weights(path: str | Path) -> clip.Weights:
    """A model, or a part of one, from a folder of published weights or a file of the original.

    Args:
      path: the folder, or a `.pt` or `.safetensors` file.

    Raises:
      FileNotFoundError: if there is nothing.
      ValueError: if it cannot be read.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; give a folder with model.safetensors and config.json, or a "
            ".pt file of the original"
        )
    return clip.load_original(path) if path.is_file() else clip.load_published(path)
