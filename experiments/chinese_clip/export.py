"""Write the model of a run, or a part of it, for others to load.

    python -m experiments.chinese_clip.export --workdir=DIR --output=FOLDER [--parts=visual]
    python -m experiments.chinese_clip.export --workdir=DIR --output=FILE.pt

A folder gets `model.safetensors` and `config.json` (`jaxlab.chinese_clip.load_published`); a file
that ends in `.pt` or `.safetensors` holds the names of the original.
"""

from pathlib import Path

from absl import flags

from experiments.chinese_clip.models import load_run_model
from experiments.common import run
from jaxlab import chinese_clip as clip

PARTS = ("visual", "bert", "text_projection", "logit_scale")
FILE_ENDINGS = (".pt", ".safetensors")

_OUTPUT = flags.DEFINE_string("output", None, "Folder, or file ending in .pt or .safetensors.")
_PARTS = flags.DEFINE_list(
    "parts", list(PARTS), f"Parts to write into a folder, of {', '.join(PARTS)}."
)


def main(workdir: Path) -> None:
    """Load the run's model and write it."""
    if _OUTPUT.value is None:
        raise ValueError("--output is missing; give a folder, or a file ending in .pt")
    if unknown := sorted(set(_PARTS.value) - set(PARTS)):
        raise ValueError(f"--parts has {unknown}; wanted some of {', '.join(PARTS)}")
    output = Path(_OUTPUT.value).expanduser()
    is_file = output.suffix in FILE_ENDINGS
    if is_file and set(_PARTS.value) != set(PARTS):
        raise ValueError(
            f"--parts={','.join(_PARTS.value)} and --output={output}: a file of the original's "
            "names holds the whole model; give a folder as --output, or leave --parts out"
        )
    if output.suffix and not is_file and not output.is_dir():
        raise ValueError(
            f"--output={output} ends in {output.suffix}; wanted a folder, or a file ending in "
            f"{' or '.join(FILE_ENDINGS)}"
        )
    weights = load_run_model(workdir)
    if is_file:
        clip.save_original(output, weights.variables, weights.config)
    else:
        clip.save_published(output, select_parts(weights, _PARTS.value), weights.config)
    print(f"Written: {output}")


def select_parts(weights: clip.Weights, parts: list[str]) -> dict:
    """The variables of some parts; batch statistics go with the image tower.

    Args:
      weights: a whole model.
      parts: names of `PARTS`.
    """
    params = weights.variables["params"]
    chosen = {"params": {name: params[name] for name in PARTS if name in parts}}
    if "visual" in parts and "batch_stats" in weights.variables:
        chosen["batch_stats"] = weights.variables["batch_stats"]
    return chosen


if __name__ == "__main__":
    run(main)
