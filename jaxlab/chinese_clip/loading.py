"""One door for weights: `load_weights` reads whatever a path turns out to be."""

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxlab.checkpoints.foreign.state_dicts import has_tensors, read_json, read_state_dict
from jaxlab.chinese_clip.huggingface import is_huggingface_config, load_huggingface
from jaxlab.chinese_clip.published import CONFIG_FILE, FORMAT, Weights, load_published
from jaxlab.chinese_clip.towers import with_image_size
from jaxlab.chinese_clip.weights import load_original

MODEL_FOLDER = "model"
"""Where in its working directory a run leaves its model, in the published form."""

Kind = Literal[
    "published", "huggingface", "original", "image_tower", "text_tower", "clip", "bert", "unknown"
]
_WEIGHT_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
_WANTED = (
    "give a folder with model.safetensors and config.json (published weights, the working "
    "directory of a run, or a Hugging Face ChineseCLIPModel), or a .pt or .safetensors file of the "
    "original"
)


class Found(NamedTuple):
    """What a path is.

    Attributes:
      kind: `published`, `huggingface` (a folder of `ChineseCLIPModel`), `original` (a file with
        both towers), `image_tower` or `text_tower` (a file with one), `clip` or `bert` (a folder of
        these models in Hugging Face's form) or `unknown`.
      path: the folder or file to read.
      description: what it is, in words.
    """

    kind: Kind
    path: Path
    description: str


def load_weights(
    path: str | os.PathLike[str],
    *,
    parts: Collection[str] | None = None,
    image_size: int | None = None,
    verify: bool = True,
) -> Weights:
    """A Chinese CLIP, or parts of one, from any of the forms it comes in.

    These are: a folder of published weights; the working directory of a run; a folder of Hugging
    Face's `ChineseCLIPModel`, or its tensors with `config.json` beside them; a `.pt` or
    `.safetensors` file with the original's names (released, written by its trainer, of its
    flash-attention form, of QA-CLIP). The content decides, not the name. The arrays are views of
    the mapped file until they are placed on a device.

    Args:
      path: the folder or file; `~` is the home directory.
      parts: read only these parts, of `visual`, `bert`, `text_projection`, `logit_scale`
        (`["visual"]` encodes images, `["bert", "text_projection"]` texts). The bytes of the others
        stay untouched, so checksums are not compared then.
      image_size: size of the images in pixels, if another one than the weights' is wanted: the
        position table of a vision transformer is resized as the original does.
      verify: compare checksums of torch files first (reads the file once).

    Returns:
      The config, and float32 variables.

    Raises:
      FileNotFoundError: if there is nothing at the path, or a file of a folder is missing.
      ValueError: if it is something else (the message says what), damaged, or does not fit.
    """
    found = find_weights(path)
    match found.kind:
        case "published":
            weights = load_published(found.path, parts=parts)
        case "huggingface":
            weights = load_huggingface(found.path, parts=parts, verify=verify)
        case "original":
            weights = load_original(found.path, parts=parts, verify=verify)
        case "image_tower" | "clip":
            raise ValueError(
                f"{found.path} is {found.description} and no Chinese CLIP; load_image_tower reads "
                "it, and training starts from it with --config.image_tower"
            )
        case "text_tower" | "bert":
            raise ValueError(
                f"{found.path} is {found.description} and no Chinese CLIP; load_text_tower reads "
                "it, and training starts from it with --config.text_tower"
            )
        case _:
            raise ValueError(f"{found.path} is {found.description}; {_WANTED}")
    return weights if image_size is None else with_image_size(weights, image_size)


def find_weights(path: str | os.PathLike[str]) -> Found:
    """What a path is, told from the entries of a folder and the names of the tensors in a file.

    Args:
      path: a folder or file; `~` is the home directory.

    Raises:
      FileNotFoundError: if there is nothing.
      ValueError: if a file cannot be read.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; {_WANTED}")
    return _find_in_folder(path) if path.is_dir() else _find_in_file(path)


def _find_in_folder(folder: Path) -> Found:
    for place in (folder, folder / MODEL_FOLDER):
        if (place / CONFIG_FILE).is_file():
            return _name_config(place, read_json(place / CONFIG_FILE))
    files = sorted(p.name for p in folder.iterdir() if p.suffix in _WEIGHT_SUFFIXES)
    if has_tensors(folder):
        return Found("unknown", folder, f"a folder of tensors ({files[0]}) without {CONFIG_FILE}")
    if files:
        listed = ", ".join(files[:10])
        return Found(
            "unknown", folder, f"a folder of files, of which one is to be given ({listed})"
        )
    return Found("unknown", folder, f"a folder without {CONFIG_FILE}, and without weights in it")


def _name_config(folder: Path, config: Mapping[str, Any]) -> Found:
    if config.get("format") == FORMAT:
        return Found("published", folder, "a folder of published weights")
    if is_huggingface_config(config):
        return Found("huggingface", folder, "a folder of Hugging Face's ChineseCLIPModel")
    model_type = config.get("model_type")
    if model_type in ("clip", "bert"):
        return Found(model_type, folder, f"a folder of a Hugging Face {model_type.upper()}")
    told = f"format={config['format']!r}" if "format" in config else f"model_type={model_type!r}"
    return Found("unknown", folder, f"a folder whose {CONFIG_FILE} has {told}")


def _find_in_file(path: Path) -> Found:
    names = [name.removeprefix("module.") for name in read_state_dict(path).tensors]
    beside = path.parent / CONFIG_FILE
    if _any_starts(names, "text_model.", "vision_model.", "params/", "batch_stats/"):
        if beside.is_file():
            found = _name_config(path.parent, read_json(beside))
            return Found(found.kind, found.path, f"{found.description} ({path.name})")
        kind = "a folder's tensors" if _any_starts(names, "params/") else "Hugging Face's tensors"
        return Found("unknown", path, f"{kind}, without the {CONFIG_FILE} that stands beside them")
    has_image = _any_starts(names, "visual.")
    has_text = _any_starts(names, "bert.", "bert/", "embeddings.", "encoder.layer.")
    if has_image and has_text:
        return Found("original", path, "a file of the original's names")
    if has_image:
        return Found("image_tower", path, "a file with the image tower of a CLIP")
    if has_text:
        return Found("text_tower", path, "a file with a BERT")
    return Found("unknown", path, f"a file of other tensors ({', '.join(names[:3])}, ...)")


def _any_starts(names: Iterable[str], *starts: str) -> bool:
    return any(name.startswith(starts) for name in names)
