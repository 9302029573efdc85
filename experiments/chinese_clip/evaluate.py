"""Measure a trained model on the data of a config, without training.

    python -m experiments.chinese_clip.evaluate --config=configs/chinese_clip/tiny.py --workdir=DIR

The model is the one that the run in DIR wrote (`DIR/model`), or `--weights`: a folder of published
weights or of Hugging Face's form, or a `.pt` file of the original. The numbers are printed and
written to `DIR/evaluation.json`. On MUGE, Flickr30K-CN and COCO-CN (`--config.data=pairs` with a
folder of that name) the published numbers of the model's size stand beside them.
"""

import dataclasses
import json
import logging
from pathlib import Path

from absl import flags

from experiments.chinese_clip.models import WEIGHTS_HELP, load_run_model, open_weights
from experiments.chinese_clip.published_results import model_name, published_recalls
from experiments.chinese_clip.settings import RunConfig
from experiments.chinese_clip.tasks import make_task
from experiments.chinese_clip.train import besides
from experiments.common import print_results, run, start
from jaxlab import chinese_clip as clip

logger = logging.getLogger(__name__)

_WEIGHTS = flags.DEFINE_string("weights", None, WEIGHTS_HELP, allow_override=True)


def main(config: RunConfig, workdir: Path) -> None:
    """Load, measure, report."""
    start()
    weights = open_weights(_WEIGHTS.value) if _WEIGHTS.value else load_run_model(workdir)
    if (given := model_name(weights.config)) != (wanted := model_name(config.model)):
        logger.info(
            "the sizes are those of the weights (%s); those of the config (%s) are left alone",
            given or "of their own", wanted or "of its own",
        )  # fmt: skip
    config = dataclasses.replace(config, model=weights.config)
    model = clip.ChineseClip(weights.config, dtype=config.dtype)
    task = make_task(config)
    results, floors = task.evaluate(model, weights.variables).metrics, task.floors()
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "evaluation.json").write_text(
        json.dumps({**results, **floors.metrics}, indent=2) + "\n", "utf-8"
    )
    columns = {**(besides(floors) or {}), **published_columns(config)}
    print_results(results, title=str(_WEIGHTS.value or workdir), beside=columns or None)


def published_columns(config: RunConfig) -> dict[str, dict[str, float]]:
    """The published numbers of a retrieval set, by the names of the results.

    Args:
      config: settings with the model that is measured.
    """
    if config.data != "pairs":
        return {}
    split = config.pairs.eval_split
    folder = Path(config.pairs.folder).expanduser().resolve().name
    columns = published_recalls(folder, split, model_name(config.model)) or {}
    return {
        heading: {f"{split}/{name}": value for name, value in column.items()}
        for heading, column in columns.items()
    }


if __name__ == "__main__":
    run(
        main,
        workdir_help="Folder of the result, made if absent, and of the run whose model is measured "
        "unless --weights is given.",
    )
