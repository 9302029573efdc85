"""Search pictures in Chinese, and captions by picture, with the model of a run.

    python -m experiments.chinese_clip.search --workdir=DIR --query="饺子"
    python -m experiments.chinese_clip.search --workdir=DIR --query="红色的花" --folder=PICTURES
    python -m experiments.chinese_clip.search --workdir=DIR --image=FILE

A query finds pictures among the emoji, or in a folder of one's own; a picture finds captions among
the emoji's names, or the lines of `--captions=FILE`, or with `--folder` the pictures most like it.
The result is printed, and drawn into `DIR/search.png`.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

from experiments.chinese_clip.models import load_run_model
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
from jaxlab.chinese_clip.emoji import compose_inputs
from jaxlab.data.emoji import load_emoji
from jaxlab.data.images import decode_image, normalize, squash_resize
from jaxlab.metrics import TopK, top_k_blockwise
from jaxlab.text import WordPieceTokenizer

PICTURE = "search.png"
BATCH = 256
THUMBNAIL = 160  # pixels

_QUERY = flags.DEFINE_string("query", None, "Text that looks for pictures.")
_IMAGE = flags.DEFINE_string("image", None, "Picture file that looks for captions, or pictures.")
_FOLDER = flags.DEFINE_string("folder", None, "Folder of pictures to search instead of the emoji.")
_CAPTIONS = flags.DEFINE_string("captions", None, "File of captions, one a line, for --image.")
_TOP_K = flags.DEFINE_integer("top_k", 8, "How many results.", lower_bound=1, upper_bound=100)

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


class Searcher:
    """A model with its tokenizer: texts and pictures to features."""

    def __init__(self, weights: clip.Weights) -> None:
        """Make the encoders.

        Args:
          weights: a whole model.
        """
        self.variables, self.config = weights.variables, weights.config
        self._model = clip.ChineseClip(weights.config)
        self._tokenizer = WordPieceTokenizer()
        self._encoders = clip.make_encoders(self._model, normalize)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Normalised features of texts."""
        ids = self._tokenizer.tokenize(texts, context_length=self.config.context_length, clean=True)
        encode = self._encoders.text
        return clip.encode_all(lambda b: encode(self.variables, b), ids, min(BATCH, len(ids)))

    def encode_pictures(self, pictures: np.ndarray) -> np.ndarray:
        """Normalised features of uint8 RGB pictures of the tower's size."""
        encode = self._encoders.image
        size = min(BATCH, len(pictures))
        return clip.encode_all(lambda b: encode(self.variables, b), pictures, size)

    def encode_drawings(self, drawings: np.ndarray) -> np.ndarray:
        """Normalised features of RGBA drawings."""
        size = self.config.vision.image_size
        encode = clip.make_encoders(self._model, lambda b: compose_inputs(b, size)).image
        return clip.encode_all(lambda b: encode(self.variables, b), drawings, BATCH)


def main(workdir: Path) -> None:
    """Answer one query."""
    if (_QUERY.value is None) == (_IMAGE.value is None):
        raise ValueError("give either --query=TEXT or --image=FILE")
    if _QUERY.value is not None and not _QUERY.value.strip():
        raise ValueError("--query is empty; give a text, such as --query=饺子")
    if _CAPTIONS.value is not None and (_IMAGE.value is None or _FOLDER.value is not None):
        raise ValueError("--captions is searched by --image, without --folder")
    searcher = Searcher(load_run_model(workdir))
    if _QUERY.value is not None:
        shown: TextQuery | ImageQuery = _pictures_for_text(_QUERY.value, searcher)
    else:
        shown = _results_for_image(str(_IMAGE.value), searcher)
    rows = {
        f"{place}. {r.caption if isinstance(r, PictureResult) else r.text}": {"cosine": r.score}
        for place, r in enumerate(shown.results, start=1)
    }
    print_grid(rows, title=str(_QUERY.value or _IMAGE.value))
    print(f"Picture: {save_png(workdir / PICTURE, draw_search(shown))}")


def _pictures_for_text(text: str, searcher: Searcher) -> TextQuery:
    gallery = _gallery(searcher)
    found = top_k_blockwise(searcher.encode_texts([text]), gallery.features, _TOP_K.value)
    return TextQuery(text, _pictures(gallery, found))


def _results_for_image(path: str, searcher: Searcher) -> TextQuery | ImageQuery:
    picture = decode_image(_read(path), example_id=path)
    pixels = squash_resize(picture, searcher.config.vision.image_size)
    features = searcher.encode_pictures(pixels[None])
    if _FOLDER.value is not None:
        gallery = folder_gallery(Path(_FOLDER.value).expanduser(), searcher)
        found = top_k_blockwise(features, gallery.features, _TOP_K.value)
        return TextQuery(Path(path).name, _pictures(gallery, found))
    captions, caption_features = _captions(searcher)
    found = top_k_blockwise(features, caption_features, _TOP_K.value)
    pairs = zip(found.scores[0], found.indices[0], strict=True)
    results = tuple(CaptionResult(captions[int(place)], float(score)) for score, place in pairs)
    return ImageQuery(np.asarray(picture), results)


def _gallery(searcher: Searcher) -> Gallery:
    """The pictures to search: a folder's, or the emoji."""
    if _FOLDER.value is not None:
        return folder_gallery(Path(_FOLDER.value).expanduser(), searcher)
    emoji = load_emoji()
    drawings = emoji.images("google")
    features = searcher.encode_drawings(drawings)
    return Gallery(emoji.names_zh, lambda place: drawings[place], features)


def folder_gallery(folder: Path, searcher: Searcher) -> Gallery:
    """The pictures below a folder; files that are no pictures are counted and left out.

    Args:
      folder: searched with its subfolders.
      searcher: the model.

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
        inputs.append(squash_resize(picture, searcher.config.vision.image_size))
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        thumbnails.append(np.asarray(picture))
    if not names:
        raise ValueError(f"--folder={folder} holds no picture ({skipped} other files)")
    if skipped:
        logger.warning("%d files below %s are no pictures, left out", skipped, folder)
    features = searcher.encode_pictures(np.stack(inputs))
    return Gallery(names, lambda place: thumbnails[place], features)


def _captions(searcher: Searcher) -> tuple[Sequence[str], np.ndarray]:
    """The captions to search and their features: a file's lines, or the emoji's names."""
    if _CAPTIONS.value is None:
        captions: Sequence[str] = load_emoji().names_zh
    else:
        try:
            text = _read(_CAPTIONS.value).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"--captions={_CAPTIONS.value} is not UTF-8 text: {error}") from error
        captions = [line.strip() for line in text.splitlines() if line.strip()]
        if not captions:
            raise ValueError(
                f"--captions={_CAPTIONS.value} has no lines; wanted one caption a line"
            )
    return captions, searcher.encode_texts(captions)


def _pictures(gallery: Gallery, found: TopK) -> tuple[PictureResult, ...]:
    """What was found for the first query, as pictures to draw."""
    return tuple(
        PictureResult(gallery.pixels(int(place)), gallery.captions[int(place)], float(score))
        for score, place in zip(found.scores[0], found.indices[0], strict=True)
    )


def _read(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        raise FileNotFoundError(f"{path} is not a file; give the path of one") from None


if __name__ == "__main__":
    run(main)
