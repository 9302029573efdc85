"""Other people's checkpoints to ours, and back.

    python -m experiments.chinese_clip.convert --input=clip_cn_vit-b-16.pt --output=FOLDER
    python -m experiments.chinese_clip.convert --input=FOLDER --output=FILE.pt
    python -m experiments.chinese_clip.convert --input=FOLDER --output=OTHER --format=huggingface

The input is told from its content: a folder of published weights, the working directory of a run, a
folder of Hugging Face's ChineseCLIPModel, or a `.pt` or `.safetensors` file of the original. An
output that ends in `.pt` or `.safetensors` holds the names of the original; a folder is published
weights, or with `--format=huggingface` what transformers loads. `--image_size` resizes the position
table of a vision transformer for images of another size, as the original does.
"""

from pathlib import Path

from absl import flags

from experiments.common import run
from jaxlab import chinese_clip as clip
from jaxlab.chinese_clip.detection import model_name

FILE_ENDINGS = (".pt", ".safetensors")
OTHER_ENDINGS = (".onnx", ".bin", ".pth", ".ckpt", ".npz")
FORMATS = ("published", "original", "huggingface")

_INPUT = flags.DEFINE_string("input", None, "Folder or file to read.", allow_override=True)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder, or file ending in .pt or .safetensors.", allow_override=True
)
_FORMAT = flags.DEFINE_enum(
    "format",
    None,
    FORMATS,
    "Form of the output; left out, its ending decides.",
    allow_override=True,
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size",
    None,
    "Size of the images in pixels, if another than the input's is wanted.",
    lower_bound=1,
)


def main() -> None:
    """Read, convert, write."""
    if _INPUT.value is None or _OUTPUT.value is None:
        raise ValueError(
            f"--input={_INPUT.value} --output={_OUTPUT.value}; wanted what to read and where to "
            "write it, each a folder or a file"
        )
    source, output = Path(_INPUT.value).expanduser(), Path(_OUTPUT.value).expanduser()
    form = output_format(output, _FORMAT.value)
    if output.exists() and source.exists() and output.resolve() == source.resolve():
        raise ValueError(f"--output={output} is the input itself; give another place")
    found = clip.find_weights(source)
    weights = clip.load_weights(source, image_size=_IMAGE_SIZE.value)
    write(output, form, weights)
    name = model_name(weights.config) or "a model of its own sizes"
    print(f"Read: {found.path} ({found.description}): {name}")
    print(f"Written: {output} ({form})")


def output_format(output: Path, form: str | None) -> str:
    """The form of the output, given or told from the ending.

    Args:
      output: the place.
      form: one of `FORMATS`, or None.

    Raises:
      ValueError: if the ending is that of another form.
    """
    if output.suffix in OTHER_ENDINGS and not output.is_dir():
        raise ValueError(
            f"--output={output} ends in {output.suffix}; wanted a folder, or a file that ends in "
            f"{' or '.join(FILE_ENDINGS)}. ONNX files are written by the program export"
        )
    is_file = output.suffix in FILE_ENDINGS
    form = form or ("original" if is_file else "published")
    if form == "original" and not is_file:
        raise ValueError(
            f"--output={output} for --format=original; wanted a file that ends in "
            f"{' or '.join(FILE_ENDINGS)}"
        )
    if form != "original" and (is_file or output.is_file()):
        raise ValueError(f"--output={output} for --format={form}; wanted a folder")
    return form


def write(output: Path, form: str, weights: clip.Weights) -> None:
    """Write a model in one of the forms.

    Args:
      output: where to.
      form: one of `FORMATS`.
      weights: a whole model; parts of one go into the published form only.

    Raises:
      ValueError: if the model has no such form.
    """
    save = {
        "published": clip.save_published,
        "original": clip.save_original,
        "huggingface": clip.save_huggingface,
    }
    save[form](output, weights.variables, weights.config)


if __name__ == "__main__":
    run(main)
