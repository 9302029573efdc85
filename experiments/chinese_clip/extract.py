r"""Features of the images and texts of a split, as array files.

    python -m experiments.chinese_clip.extract --weights=PATH --output=DIR \
        --images=MUGE/valid_imgs.tsv --texts=MUGE/valid_texts.jsonl

The model is that of `--weights` (a file or folder of weights, or the name of a released model) or
of the run in `--workdir`. `--images` is a `{split}_imgs.tsv` file or an LMDB folder
(`lmdb/{split}/imgs`), `--texts` a `{split}_texts.jsonl` file; either may be left out. DIR gets
`{split}_imgs.img_feat.npy` and `{split}_texts.txt_feat.npy` with their ids beside them, and with
`--jsonl` also the original's `.img_feat.jsonl` and `.txt_feat.jsonl`. A call that was killed goes
on where it stopped when it is started again.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

from experiments.chinese_clip.models import WEIGHTS_HELP, WORKDIR_HELP, choose_weights
from experiments.common import run, start
from jaxlab import chinese_clip as clip
from jaxlab.chinese_clip.features import (
    FeatureExtractor,
    FeatureRows,
    StoredImages,
    fingerprint,
    open_images,
    write_all,
)
from jaxlab.data.pairs import FeatureWriter, read_features, read_texts, write_features
from jaxlab.data.pairs.features import Kind
from jaxlab.data.pairs.records import OnError
from jaxlab.parallel import broadcast_from_main, is_main_process

_WEIGHTS = flags.DEFINE_string("weights", None, WEIGHTS_HELP, allow_override=True)
_IMAGES = flags.DEFINE_string("images", None, "{split}_imgs.tsv, or the LMDB folder imgs.")
_TEXTS = flags.DEFINE_string("texts", None, "{split}_texts.jsonl.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the features.")
_JSONL = flags.DEFINE_boolean("jsonl", False, "Also write the original's .jsonl form.")
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Type of the computation; features are float32."
)
_BATCH = flags.DEFINE_integer("batch_size", 128, "Rows of a batch on all devices.", lower_bound=1)
_THREADS = flags.DEFINE_integer("num_threads", 4, "Threads that read and decode.", lower_bound=0)
_COMPAT = flags.DEFINE_enum(
    "compat",
    "white",
    ["white", "original"],
    "'white' puts transparent images on white; 'original' drops their alpha after the resize.",
)
_SKIP = flags.DEFINE_boolean(
    "skip_broken", False, "Leave broken records out and count them, instead of stopping."
)

logger = logging.getLogger(__name__)


class Job(NamedTuple):
    """What becomes one file of features.

    Attributes:
      path: the `.npy` file.
      kind: "image" or "text".
      ids: the id of every row.
      encode: `(first row) -> features of the rows from there on`.
      data: the file that the rows come from.
    """

    path: Path
    kind: Kind
    ids: np.ndarray
    encode: Callable[[int], Iterator[FeatureRows]]
    data: Path


def main(workdir: Path | None) -> None:
    """Encode what is missing, tell where it is."""
    if not _OUTPUT.value:
        raise ValueError("--output is missing; give a folder for the features")
    if not (_IMAGES.value or _TEXTS.value):
        raise ValueError("give --images, --texts or both")
    mesh = start()
    weights = choose_weights(workdir, _WEIGHTS.value)
    extractor = FeatureExtractor(
        weights,
        mesh=mesh,
        dtype=_DTYPE.value,
        batch_size=_BATCH.value,
        num_threads=_THREADS.value,
        compat=_COMPAT.value,
    )
    output, made_with = Path(str(_OUTPUT.value)).expanduser(), fingerprint(weights)
    jobs = []
    if _IMAGES.value:
        jobs.append(image_job(Path(_IMAGES.value).expanduser(), output, extractor))
    if _TEXTS.value:
        jobs.append(text_job(Path(_TEXTS.value).expanduser(), output, extractor))
    for job in jobs:
        num_rows = run_job(job, weights.config, made_with)
        if is_main_process():
            print(f"{num_rows:,} {job.kind} features: {job.path}")
            if _JSONL.value:
                as_lines = job.path.with_suffix(".jsonl")
                write_features(as_lines, read_features(job.path, job.kind), job.kind)
                print(f"The same as lines: {as_lines}")


def image_job(path: Path, output: Path, extractor: FeatureExtractor) -> Job:
    """The features of the images of a file."""
    on_error = on_broken_record()
    store = open_images(path, on_error=on_error)
    ids = store.image_ids
    name = path.stem if path.is_file() else f"{image_split(store.path)}_imgs"
    return Job(
        output / f"{name}.img_feat.npy",
        "image",
        ids,
        lambda first: extractor.images(StoredImages(store, ids), start=first, on_error=on_error),
        store.path if store.path.is_file() else store.path / "data.mdb",
    )


def text_job(path: Path, output: Path, extractor: FeatureExtractor) -> Job:
    """The features of the texts of a file, those without images too."""
    records = read_texts(path, on_error=on_broken_record()).records
    texts = [record.text for record in records]
    return Job(
        output / f"{path.stem}.txt_feat.npy",
        "text",
        np.array([record.text_id for record in records], np.int64),
        lambda first: extractor.texts(texts, start=first),
        path,
    )


def on_broken_record() -> OnError:
    """What the flags say about broken records."""
    return "skip" if _SKIP.value else "error"


def image_split(folder: Path) -> str:
    """The split of an LMDB folder `lmdb/{split}/imgs`."""
    return folder.parent.name if folder.name == "imgs" else folder.name


def run_job(job: Job, config: clip.ChineseClipConfig, made_with: str) -> int:
    """Encode the rows that are missing; process 0 writes them.

    Args:
      job: what to encode.
      config: sizes of the model.
      made_with: fingerprint of its weights.

    Returns:
      Number of rows in the finished file.
    """
    from tqdm import tqdm

    data = job.data.stat()
    source = (
        f"weights {made_with}, {_DTYPE.value}, compat {_COMPAT.value}, "
        f"data of {data.st_size} bytes changed at {data.st_mtime_ns}"
    )
    writer = None
    if is_main_process():
        writer = FeatureWriter(job.path, job.ids, config.embed_dim, source)
    first = int(broadcast_from_main(np.int64(0 if writer is None else writer.rows_done)))
    if 0 < first < len(job.ids):
        logger.info("%s: going on after %d of %d rows", job.path, first, len(job.ids))
    rows = job.encode(first)
    if writer is None:
        return sum(len(batch.features) for batch in rows)
    with tqdm(
        total=len(job.ids), initial=first, unit=job.kind, disable=None, dynamic_ncols=True
    ) as bar:
        return write_all(writer, rows, bar.update)


if __name__ == "__main__":
    run(main, workdir_help=WORKDIR_HELP)
