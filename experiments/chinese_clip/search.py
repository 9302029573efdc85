"""Search pictures in Chinese, and captions by picture.

    python -m experiments.chinese_clip.search --index=INDEX --query="海边的日落"
    python -m experiments.chinese_clip.search --index=INDEX --image=FILE
    python -m experiments.chinese_clip.search --workdir=DIR --query="饺子"
    python -m experiments.chinese_clip.search --workdir=DIR --query="红色的花" --folder=PICTURES
    python -m experiments.chinese_clip.search --workdir=DIR --image=FILE

A query finds pictures in an index (see `experiments.chinese_clip.index`), in a folder that is read
at once, or among the emoji; a picture finds the pictures most like it in an index or a folder, or
else captions: the lines of `--captions=FILE`, or the emoji's names. The model is that of the index,
of `--weights`, or of the run in `--workdir`. The result is printed, and drawn into `search.png` in
the folder of the run or of the index (`--picture=FILE` for another place).

Beside the cosine stands, for texts, how it compares with pairs that do not match: the background
percentile, and the match probability where the model was calibrated
(`experiments.chinese_clip.calibrate`).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

from experiments.chinese_clip.models import (
    WEIGHTS_HELP,
    WORKDIR_HELP,
    encode_drawings,
    load_index_model,
    load_model,
)
from experiments.common import print_grid, run
from experiments.common.pictures import (
    CaptionResult,
    ImageQuery,
    PictureResult,
    TextQuery,
    draw_search,
    save_png,
)
from jaxlab import chinese_clip as clip
from jaxlab.data.emoji import load_emoji
from jaxlab.data.images import decode_image
from jaxlab.metrics import TopK, top_k_blockwise

PICTURE = "search.png"
THUMBNAIL = 160  # pixels

_INDEX = flags.DEFINE_string("index", None, "Index of pictures to search.", allow_override=True)
_WEIGHTS = flags.DEFINE_string("weights", None, WEIGHTS_HELP, allow_override=True)
_QUERY = flags.DEFINE_string("query", None, "Text that looks for pictures.")
_IMAGE = flags.DEFINE_string("image", None, "Picture file that looks for captions, or pictures.")
_FOLDER = flags.DEFINE_string(
    "folder", None, "Folder of pictures to search instead of the emoji.", allow_override=True
)
_CAPTIONS = flags.DEFINE_string("captions", None, "File of captions, one a line, for --image.")
_TOP_K = flags.DEFINE_integer("top_k", 8, "How many results.", lower_bound=1, upper_bound=100)
_PICTURE = flags.DEFINE_string("picture", None, "File to draw the result into.")

logger = logging.getLogger(__name__)


class Gallery(NamedTuple):
    """Pictures to search.

    Attributes:
      captions: what stands below each.
      pixels: `(position) -> uint8 image` to show.
      features: normalised, (pictures, dim).
    """

    captions: Sequence[str]
    pixels: Callable[[int], np.ndarray]
    features: np.ndarray


class Answer(NamedTuple):
    """What a query found.

    Attributes:
      shown: the query and its results, to draw.
      numbers: of every result, column heading -> number, to print.
    """

    shown: TextQuery | ImageQuery
    numbers: list[Mapping[str, float]]


def main(workdir: Path | None) -> None:
    """Answer one query."""
    _check_flags()
    if _INDEX.value is not None:
        answer = _search_index(workdir, Path(_INDEX.value).expanduser())
    else:
        answer = _search_without_index(workdir)
    results = answer.shown.results
    rows = {
        f"{place}. {r.caption if isinstance(r, PictureResult) else r.text}": numbers
        for place, (r, numbers) in enumerate(zip(results, answer.numbers, strict=True), start=1)
    }
    print_grid(rows, title=str(_QUERY.value or _IMAGE.value))
    folder = workdir or Path(_INDEX.value or ".").expanduser()
    picture = Path(_PICTURE.value).expanduser() if _PICTURE.value else folder / PICTURE
    print(f"Picture: {save_png(picture, draw_search(answer.shown))}")


def _check_flags() -> None:
    if (_QUERY.value is None) == (_IMAGE.value is None):
        raise ValueError("give either --query=TEXT or --image=FILE")
    if _QUERY.value is not None and not _QUERY.value.strip():
        raise ValueError("--query is empty; give a text, such as --query=饺子")
    if _CAPTIONS.value is not None and (_IMAGE.value is None or _FOLDER.value is not None):
        raise ValueError("--captions is searched by --image, without --folder")
    if _INDEX.value is not None and (_FOLDER.value is not None or _CAPTIONS.value is not None):
        raise ValueError("--index is searched by itself, without --folder and --captions")


def _search_index(workdir: Path | None, where: Path) -> Answer:
    """The pictures of an index that fit."""
    index = clip.load_index(where)
    model = load_index_model(index, workdir, _WEIGHTS.value)
    if _QUERY.value is not None:
        hits = index.find(model, text=_QUERY.value, k=_TOP_K.value)
    else:
        hits = index.find(model, image=_file(str(_IMAGE.value)), k=_TOP_K.value)
    results = tuple(PictureResult(_thumbnail(index, hit.row), hit.path, hit.cosine) for hit in hits)
    numbers = [_numbers(hit.cosine, hit.percentile, hit.probability) for hit in hits]
    return Answer(TextQuery(str(_QUERY.value or Path(str(_IMAGE.value)).name), results), numbers)


def _thumbnail(index: clip.PictureIndex, row: int) -> np.ndarray:
    """A picture of an index, small; gray where it has gone since."""
    try:
        data = index.to_path(row).read_bytes()
        picture = decode_image(data, apply_exif=index.info.apply_exif)
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be shown: %s", index.items[row].path, error)
        return np.full((THUMBNAIL, THUMBNAIL, 3), 200, np.uint8)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return np.asarray(picture)


def _numbers(
    cosine: float, percentile: float | None, probability: float | None
) -> Mapping[str, float]:
    """The columns of a result that are known."""
    named = {
        "cosine": cosine,
        "background percentile": None if percentile is None else 100 * percentile,
        "match probability": probability,
    }
    return {name: number for name, number in named.items() if number is not None}


def _search_without_index(workdir: Path | None) -> Answer:
    """Pictures of a folder or the emoji, or captions."""
    model = load_model(workdir, _WEIGHTS.value)
    if _QUERY.value is not None:
        gallery = _gallery(model)
        features, shown = model.encode_text(_QUERY.value), _QUERY.value
        found = top_k_blockwise(features, gallery.features, _TOP_K.value)
        numbers = _numbers_of(model, found, len(gallery.features))
        return Answer(TextQuery(shown, _pictures(gallery, found)), numbers)
    path = str(_IMAGE.value)
    features = model.encode_image([_file(path)])
    if _FOLDER.value is not None:
        gallery = folder_gallery(Path(_FOLDER.value).expanduser(), model)
        found = top_k_blockwise(features, gallery.features, _TOP_K.value)
        numbers = [_numbers(float(score), None, None) for score in found.scores[0]]
        return Answer(TextQuery(Path(path).name, _pictures(gallery, found)), numbers)
    captions, caption_features = _captions(model)
    found = top_k_blockwise(features, caption_features, _TOP_K.value)
    pairs = zip(found.scores[0], found.indices[0], strict=True)
    results = tuple(CaptionResult(captions[int(place)], float(score)) for score, place in pairs)
    picture = np.asarray(decode_image(_file(path), example_id=path))
    return Answer(ImageQuery(picture, results), _numbers_of(model, found, len(captions)))


def _numbers_of(model: clip.LoadedModel, found: TopK, size: int) -> list[Mapping[str, float]]:
    """The columns of results among `size` candidates, one of which is expected to match."""
    if model.calibration is None:
        return [_numbers(float(score), None, None) for score in found.scores[0]]
    calibration = model.calibration.with_prior(min(1.0 / size, 0.5))
    return [
        _numbers(
            float(score),
            float(calibration.percentile(score)),
            float(calibration.probability(score)),
        )
        for score in found.scores[0]
    ]


def _gallery(model: clip.LoadedModel) -> Gallery:
    """The pictures to search: a folder's, or the emoji."""
    if _FOLDER.value is not None:
        return folder_gallery(Path(_FOLDER.value).expanduser(), model)
    emoji = load_emoji()
    drawings = emoji.images("google")
    features = encode_drawings(model, drawings)
    return Gallery(emoji.names_zh, lambda place: drawings[place], features)


def folder_gallery(folder: Path, model: clip.LoadedModel) -> Gallery:
    """The pictures below a folder; files that are no pictures are counted and left out.

    Args:
      folder: searched with its subfolders.
      model: the model.

    Raises:
      FileNotFoundError: if the folder does not exist.
      ValueError: if it holds no picture.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--folder={folder} is not a folder; give one that holds pictures")
    names, inputs, thumbnails, skipped = [], [], [], 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            picture = decode_image(path.read_bytes(), example_id=path)
        except ValueError:
            skipped += 1
            continue
        names.append(str(path.relative_to(folder)))
        inputs.append(model.squash(picture))
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        thumbnails.append(np.asarray(picture))
    if not names:
        raise ValueError(f"--folder={folder} holds no picture ({skipped} other files)")
    if skipped:
        logger.warning("%d files below %s are no pictures, left out", skipped, folder)
    features = model.encode_pixels(np.stack(inputs))
    return Gallery(names, lambda place: thumbnails[place], features)


def _captions(model: clip.LoadedModel) -> tuple[Sequence[str], np.ndarray]:
    """The captions to search and their features: a file's lines, or the emoji's names."""
    if _CAPTIONS.value is None:
        captions: Sequence[str] = load_emoji().names_zh
    else:
        try:
            text = _file(_CAPTIONS.value).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"--captions={_CAPTIONS.value} is not UTF-8 text: {error}") from error
        captions = [line.strip() for line in text.splitlines() if line.strip()]
        if not captions:
            raise ValueError(
                f"--captions={_CAPTIONS.value} has no lines; wanted one caption a line"
            )
    return captions, model.encode_text(list(captions))


def _pictures(gallery: Gallery, found: TopK) -> tuple[PictureResult, ...]:
    """What was found for the first query, as pictures to draw."""
    return tuple(
        PictureResult(gallery.pixels(int(place)), gallery.captions[int(place)], float(score))
        for score, place in zip(found.scores[0], found.indices[0], strict=True)
    )


def _file(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"{path} is not a file; give the path of one") from None


if __name__ == "__main__":
    run(main, workdir_help=WORKDIR_HELP)
