"""Make a folder of pictures searchable, or bring its index up to date.

    python -m experiments.chinese_clip.index --weights=ViT-B-16 --folder=PICTURES --output=INDEX
    python -m experiments.chinese_clip.index --workdir=DIR --folder=PICTURES --output=INDEX --int8

The model is that of `--weights` (a file or folder of weights, or the name of a released model) or
of the run in `--workdir`. Calling it again encodes what is new or has changed and drops what is
gone; a call that was interrupted is continued. `search` and `serve` take the result as
`--index=INDEX`.
"""

from pathlib import Path

from absl import flags

from experiments.chinese_clip.models import WEIGHTS_HELP, WORKDIR_HELP, load_model
from experiments.common import print_grid, run
from jaxlab import chinese_clip as clip

_WEIGHTS = flags.DEFINE_string("weights", None, WEIGHTS_HELP, allow_override=True)
_FOLDER = flags.DEFINE_string(
    "folder", None, "Folder of pictures, searched with its subfolders.", allow_override=True
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the index.", allow_override=True)
_INT8 = flags.DEFINE_boolean("int8", False, "Search in 8-bit vectors; results are the same.")
_EXIF = flags.DEFINE_boolean("exif", True, "Turn pictures by their EXIF orientation.")
_BATCH = flags.DEFINE_integer("batch_size", 64, "Pictures in one step.", lower_bound=1)


def main(workdir: Path | None) -> None:
    """Build or update the index."""
    for name, flag in (("folder", _FOLDER), ("output", _OUTPUT)):
        if flag.value is None:
            raise ValueError(f"--{name} is missing; give a folder, as --{name}=FOLDER")
    model = load_model(workdir, _WEIGHTS.value, apply_exif=_EXIF.value, batch_size=_BATCH.value)
    index, report = clip.update_index(
        str(_OUTPUT.value), str(_FOLDER.value), model, int8=_INT8.value
    )
    counts = {
        "pictures in the index": len(index),
        "new": report.added,
        "changed": report.changed,
        "removed": report.removed,
        "continued from an interrupted call": report.continued,
        "damaged pictures, left out": len(report.skipped),
        "other files": report.other_files,
    }
    print_grid({name: {"number": count} for name, count in counts.items()}, title="Index")
    print(
        f"Search it: python -m experiments.chinese_clip.search --index={_OUTPUT.value} --query=猫"
    )


if __name__ == "__main__":
    run(main, workdir_help=WORKDIR_HELP)
