r"""Write the model of a run, or one from a file, or parts of it, for others to load or to run.

    python -m experiments.chinese_clip.export --workdir=DIR --output=FOLDER [--parts=visual]
    python -m experiments.chinese_clip.export --weights=PATH --output=FILE.pt
    python -m experiments.chinese_clip.export --weights=PATH --format=onnx --precision=fp16 \
        --output=deploy/vit-b-16
    python -m experiments.chinese_clip.export --weights=PATH --format=stablehlo --output=FOLDER

`published` is a folder with `model.safetensors` and `config.json`
(`jaxlab.chinese_clip.load_published`), `pt` and `safetensors` are files with the names of the
original. `onnx` writes `OUTPUT.img.fp16.onnx` and `OUTPUT.txt.fp16.onnx`, which take any batch
(`export_onnx`); `stablehlo` a published folder with programs that JAX runs without this library's
code (`load_stablehlo`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from absl import flags

from experiments.chinese_clip.models import WEIGHTS_HELP, WORKDIR_HELP, choose_weights
from experiments.common import run
from jaxlab import chinese_clip as clip
from jaxlab.chinese_clip.detection import model_name
from jaxlab.chinese_clip.stablehlo import DTYPES

PARTS = ("visual", "bert", "text_projection", "logit_scale")
FILE_FORMATS = ("pt", "safetensors")
PRECISIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "published": ("fp32", "fp16", "bf16"),
        "pt": ("fp32",),
        "safetensors": ("fp32",),
        "onnx": ("fp32", "fp16", "int8"),
        "stablehlo": ("fp32", "fp16", "bf16"),
    }
)
"""The formats, and what each can be written in."""

# Other programs have flags of these names; tests import several into one process.
_WEIGHTS = flags.DEFINE_string("weights", None, WEIGHTS_HELP, allow_override=True)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Folder, file ending in .pt or .safetensors, or beginning of the names of ONNX files.",
    allow_override=True,
)
_FORMAT = flags.DEFINE_enum(
    "format", None, list(PRECISIONS), "What to write; by default what the ending of --output says."
)
_PRECISION = flags.DEFINE_string(
    "precision",
    "fp32",
    "fp32, fp16, bf16 or int8, as far as the format has it.",
    allow_override=True,
)
_PARTS = flags.DEFINE_list(
    "parts", None, f"Parts to write, of {', '.join(PARTS)}; by default all there are."
)
_CONTEXT_LENGTH = flags.DEFINE_integer(
    "context_length", None, "Tokens of a text, [CLS] and [SEP] included; by default the model's."
)


def main(workdir: Path | None) -> None:
    """Load the model and write it."""
    if _OUTPUT.value is None:
        raise ValueError("--output is missing; give a folder, or a file ending in .pt")
    output = Path(_OUTPUT.value).expanduser()
    kind = _FORMAT.value or format_of(output)
    check_request(kind, _PRECISION.value, output, _PARTS.value)
    weights = choose_weights(workdir, _WEIGHTS.value)
    config = weights.config
    if _CONTEXT_LENGTH.value is not None:
        config = dataclasses.replace(config, context_length=_CONTEXT_LENGTH.value)
    weights = clip.Weights(config, select_parts(weights, _PARTS.value))
    for path in write(weights, output, kind, _PRECISION.value):
        size = f" ({path.stat().st_size:,} bytes)" if path.is_file() else ""
        print(f"Written: {path}{size}")


def format_of(output: Path) -> str:
    """The format that the ending of a path says; a folder is `published`.

    Args:
      output: the path.

    Raises:
      ValueError: if the ending is another one.
    """
    suffix = output.suffix.removeprefix(".")
    if suffix in FILE_FORMATS:
        return suffix
    if suffix and not output.is_dir():
        raise ValueError(
            f"--output={output} ends in {output.suffix}; wanted a folder, or a file ending in .pt "
            "or .safetensors. ONNX files: --format=onnx and the beginning of their names"
        )
    return "published"


def check_request(kind: str, precision: str, output: Path, parts: Sequence[str] | None) -> None:
    """Refuse, before anything is loaded, what cannot be written.

    Args:
      kind: name of the format.
      precision: name of the type.
      output: where to.
      parts: names of `PARTS`, or None for all.

    Raises:
      ValueError: if two of them do not fit each other.
    """
    if precision not in PRECISIONS[kind]:
        raise ValueError(
            f"--precision={precision} and --format={kind}: {kind} can be written in "
            f"{', '.join(PRECISIONS[kind])}"
        )
    if unknown := sorted(set(parts or ()) - set(PARTS)):
        raise ValueError(f"--parts has {unknown}; wanted some of {', '.join(PARTS)}")
    if kind not in FILE_FORMATS:
        return
    if output.suffix != f".{kind}":
        raise ValueError(f"--output={output} and --format={kind}: the file must end in .{kind}")
    if set(parts or PARTS) != set(PARTS):
        raise ValueError(
            f"--parts={','.join(parts or ())} and --output={output}: a file of the original's "
            "names holds the whole model; give a folder as --output, or leave --parts out"
        )


def write(weights: clip.Weights, output: Path, kind: str, precision: str) -> list[Path]:
    """Write a model in one of the formats.

    Args:
      weights: what to write.
      output: where to. With `onnx`, a folder that exists gets files named after the model.
      kind: name of the format.
      precision: one of the format's.

    Returns:
      What was written, files or a folder.
    """
    variables, config = weights.variables, weights.config
    if kind == "onnx":
        if output.is_dir():
            output = output / (model_name(config) or "chinese-clip").lower()
        return clip.export_onnx(output, variables, config, precision=precision)
    if kind == "stablehlo":
        return clip.export_stablehlo(output, variables, config, precision=precision)
    if kind == "published":
        clip.save_published(output, variables, config, dtype=DTYPES[precision])
    else:
        clip.save_original(output, variables, config)
    return [output]


def select_parts(weights: clip.Weights, parts: Sequence[str] | None) -> dict:
    """The variables of some parts; batch statistics go with the image tower.

    Args:
      weights: a model, or parts of one.
      parts: names of `PARTS`; None takes all there are.

    Raises:
      ValueError: if the weights lack one.
    """
    params = weights.variables["params"]
    if missing := sorted(set(parts or ()) - set(params)):
        raise ValueError(f"--parts has {missing}; the weights hold {', '.join(sorted(params))}")
    names = [name for name in PARTS if name in (parts or params)]
    chosen = {"params": {name: params[name] for name in names}}
    if "visual" in names and "batch_stats" in weights.variables:
        chosen["batch_stats"] = weights.variables["batch_stats"]
    return chosen


if __name__ == "__main__":
    run(main, workdir_help=WORKDIR_HELP)
