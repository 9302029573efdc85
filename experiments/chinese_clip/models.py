"""Where a run leaves its model, and how the other programs find it."""

from pathlib import Path

from jaxlab import chinese_clip as clip
from jaxlab.chinese_clip.loading import MODEL_FOLDER


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
