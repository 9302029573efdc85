"""Measure a trained model on the data of a config, without training.

    python -m experiments.chinese_clip.evaluate --config=configs/chinese_clip/tiny.py --workdir=DIR

The model is the one that the run in DIR wrote (`DIR/model`), or `--weights`: a folder of published
weights or of Hugging Face's form, or a `.pt` file of the original. The numbers are printed and
written to `DIR/evaluation.json`.
"""

import dataclasses
import json
from pathlib import Path

from absl import flags

from experiments.chinese_clip.models import load_run_model
from experiments.chinese_clip.settings import RunConfig
from experiments.chinese_clip.tasks import make_task
from experiments.chinese_clip.train import besides
from experiments.common import print_results, run, start
from jaxlab import chinese_clip as clip

_WEIGHTS = flags.DEFINE_string(
    "weights", None, "Folder of weights, or a .pt or .safetensors file of the original."
)


def main(config: RunConfig, workdir: Path) -> None:
    """Load, measure, report."""
    start()
    weights = clip.load_weights(_WEIGHTS.value) if _WEIGHTS.value else load_run_model(workdir)
    config = dataclasses.replace(config, model=weights.config)
    model = clip.ChineseClip(weights.config, dtype=config.dtype)
    task = make_task(config)
    results, floors = task.evaluate(model, weights.variables).metrics, task.floors()
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "evaluation.json").write_text(
        json.dumps({**results, **floors.metrics}, indent=2) + "\n", "utf-8"
    )
    print_results(results, title=str(_WEIGHTS.value or workdir), beside=besides(floors))


if __name__ == "__main__":
    run(main)
