"""Measure what a course without labels has learned: a linear layer on its features.

    python -m experiments.federated.simulate --config=configs/federated/contrastive.py --workdir=DIR
    python -m experiments.federated.probe --config=configs/federated/contrastive.py --workdir=DIR

The features are those of the model that the run in DIR has left (`--course` where there are two),
or of `--checkpoint`; beside them those of the model that the course started from, which was drawn.
On the training examples of all clients together a linear layer learns their labels, and is tested
on those of all. DIR gets `probe.json`.
"""

from pathlib import Path

from absl import flags

from experiments.common import print_results, run
from experiments.federated.cores import start_devices
from experiments.federated.learned import MODEL, load_variables
from experiments.federated.probed import probe_config, probe_model
from experiments.federated.settings import LocalConfig, RunConfig
from experiments.federated.tasks import chosen_plan, make_problem
from jaxlab.training.workdir import open_workdir, write_json

NUMBERS = "probe.json"

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None,
    "model.safetensors of a run, or a checkpoint of FederatedScope, in place of that of the run.",
)  # fmt: skip
_COURSE = flags.DEFINE_string(
    "course", None, "Which course of the run: sync, beside, or global; by default the main one."
)
_EPOCHS = flags.DEFINE_integer("epochs", 50, "Times that the layer sees all examples.", 1)
_RATE = flags.DEFINE_float("learning_rate", 0.01, "Of the layer.", 0.0)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Examples of a step of the layer.", 1)


def main(config: RunConfig, workdir: Path) -> None:
    """Load, probe, report."""
    mesh = start_devices()
    problem = make_problem(config)
    path = _CHECKPOINT.value
    if path is None:
        path = str(workdir.expanduser() / chosen_plan(config, problem, _COURSE.value).name / MODEL)
    learned = load_variables(path, problem.module, problem.example, config.algorithm.num_mixed)
    layer = LocalConfig(
        batch_size=_BATCH_SIZE.value, learning_rate=_RATE.value, momentum=0.9
    )  # fmt: skip
    settings = probe_config(config, layer, _EPOCHS.value)
    metrics = probe_model(settings, problem, learned, mesh)
    drawn = probe_model(settings, problem, problem.variables, mesh)
    metrics |= {f"untrained/{name}": value for name, value in drawn.items()}
    write_json(open_workdir(workdir) / NUMBERS, metrics)
    print_results(metrics, title="A linear layer on features")
    print(f"Model: {path}")


if __name__ == "__main__":
    run(main, workdir_help="Folder of the run whose model is probed, and of the result.")
