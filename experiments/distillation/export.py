"""Write a distilled model for others to load: in the form of Hugging Face, or as one program.

    python -m experiments.distillation.export --workdir=DIR --output=FOLDER [--precision=fp16]
    python -m experiments.distillation.export --model=FOLDER --format=stablehlo --output=OTHER

`huggingface` is a folder with `model.safetensors`, `config.json` and the vocabulary, which
transformers loads by `AutoModelForSequenceClassification.from_pretrained` (a head on the mean of
the tokens has no class there: then it loads as the bare encoder; TinyBERT's ReLU before the
classifier is of its own code alone, and transformers leaves it out). `stablehlo` adds
`model.stablehlo`, a program from the weights, `ids` and `mask` to logits for any number of texts of
any length up to the longest, which JAX runs without this library's code.
"""

from pathlib import Path

import jax
from absl import flags

from experiments.common import run
from jaxlab import distillation as kd
from jaxlab.distillation.api import MODEL
from jaxlab.distillation.configs import has_bare_encoder
from jaxlab.distillation.programs import check_program, write_program
from jaxlab.distillation.weights import tokenizer_files

_MODEL = flags.DEFINE_string(
    "model", None, "Folder of the model; by default the student of the run.", allow_override=True
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", allow_override=True)
_FORMAT = flags.DEFINE_enum(
    "format", "huggingface", ["huggingface", "stablehlo"], "What to write.", allow_override=True
)
_PRECISION = flags.DEFINE_string(
    "precision", "fp32", "Type of the weights on disk, fp32 or fp16.", allow_override=True
)
PRECISIONS = {"fp32": "float32", "fp16": "float16"}


def main(workdir: Path | None) -> None:
    """Load and write."""
    if not _OUTPUT.value:
        raise ValueError("--output is missing; give a folder to write")
    if _PRECISION.value not in PRECISIONS:
        raise ValueError(f"--precision={_PRECISION.value!r} is not one of {', '.join(PRECISIONS)}")
    if not _MODEL.value and workdir is None:
        raise ValueError("give --workdir of a run, or --model, a folder with a config.json")
    folder = Path(_MODEL.value).expanduser() if _MODEL.value else Path(workdir or "") / MODEL
    output = Path(_OUTPUT.value).expanduser()
    if not _MODEL.value and not folder.is_dir():
        raise FileNotFoundError(
            f"--workdir={workdir} has no {MODEL}/, which a run leaves at its end; give the command "
            "of the run again to finish it, or --model, a folder with a config.json"
        )
    found = kd.load_pretrained(folder)
    if _FORMAT.value == "stablehlo":
        check_program(found.config)
    stored = jax.tree.map(lambda leaf: leaf.astype(PRECISIONS[_PRECISION.value]), found.params)
    names, vocabulary = found.label_names, folder if tokenizer_files(folder) else None
    kd.save_pretrained(output, stored, found.config, label_names=names, vocabulary=vocabulary)
    if _FORMAT.value == "stablehlo":
        print(f"Program: {write_program(output, found.params, found.config)}")
    print(f"Model: {output}, {kd.num_params(found.config):,} parameters")
    if has_bare_encoder(found.config) and found.config.task != "none":
        print(
            "Its head is on the mean of the tokens, for which transformers has no class: there the "
            "folder loads as the encoder alone. Train with --config.teacher.pooling=first for a "
            "model that loads with its head."
        )
    elif found.config.family == "tinybert" and found.config.task != "none":
        print(
            "TinyBERT's own code loads it. transformers takes it for a BERT and leaves out the "
            "ReLU before the classifier: its logits differ, its encoder's outputs do not."
        )


if __name__ == "__main__":
    run(main, workdir_help="Folder of the run whose student is written.")
