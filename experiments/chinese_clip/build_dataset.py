r"""Make a data set to train on: from pictures with captions, or from one form to another.

    python -m experiments.chinese_clip.build_dataset --images=PICTURES --captions=captions.csv \
        --output=DATA [--valid_share=0.05] [--format=lmdb]
    python -m experiments.chinese_clip.build_dataset --input=MUGE --split=train --format=lmdb \
        --output=DATA

The captions are a CSV or TSV file with a header, or a JSONL file, with the fields `image` (a path
in PICTURES) and `text`, and `score` if there is one. An input is a data folder of the original (TSV
or LMDB) or of this program. DATA gets, for each split, `{split}_texts.jsonl`,
`{split}_texts.tr.jsonl` (the texts of every image) and the pictures: `{split}_imgs.tsv`,
`lmdb/{split}` or `records/{split}`; training takes it as `--config.pairs.folder=DATA`.

Pairs can be filtered as those of the published pre-training were: `--published_filter` keeps
captions of 5 to 50 characters and pairs with a score of at least 0.26; `--min_length`,
`--max_length`, `--min_score` and `--black_list` (a file, one word a line) set a rule each. What was
left out is counted by reason. `--image_size=224` stores pictures squashed to a square, as training
sees them, as JPEG of quality 95. Nothing that exists is overwritten without `--overwrite`.
"""

import dataclasses
import io
import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from PIL import Image

from experiments.common import print_results, run
from jaxlab.data import pairs
from jaxlab.data.images import decode_image, squash_resize
from jaxlab.data.pairs import ImageRecord, PairFilter, TextRecord
from jaxlab.data.pairs.records import OnError, ProblemList, require_file

FORMATS = ("tsv", "lmdb", "records")
CHUNK = 64
JPEG_QUALITY = 95
VALID = "valid"

_INPUT = flags.DEFINE_string("input", None, "Data folder to read a split of.")
_IMAGES = flags.DEFINE_string("images", None, "Folder of pictures.")
_CAPTIONS = flags.DEFINE_string("captions", None, "CSV, TSV or JSONL file with image and text.")
_OUTPUT = flags.DEFINE_string("output", None, "Data folder to write.")
_SPLIT = flags.DEFINE_string("split", "train", "Name of the split that is read and written.")
_FORMAT = flags.DEFINE_enum("format", "tsv", FORMATS, "Form of the pictures.")
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", 0, "Stored size in pixels; 0 copies the files.", lower_bound=0
)
_VALID_SHARE = flags.DEFINE_float(
    "valid_share", 0.0, "Share of the pictures, with their texts, that goes to a split 'valid'."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the choice of validation pictures.")
_PUBLISHED = flags.DEFINE_bool("published_filter", False, "5 to 50 characters, score >= 0.26.")
_MIN_LENGTH = flags.DEFINE_integer("min_length", None, "Fewest characters of a caption.")
_MAX_LENGTH = flags.DEFINE_integer("max_length", None, "Most characters of a caption.")
_MIN_SCORE = flags.DEFINE_float("min_score", None, "Least score of a pair.")
_BLACK_LIST = flags.DEFINE_string("black_list", None, "File of words, one a line.")
_ON_ERROR = flags.DEFINE_enum(
    "on_error", "error", ("error", "skip"), "Stop at broken records, or leave them out and count."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace what is there.")


class Split(NamedTuple):
    """What is to be written as one split.

    Attributes:
      image_ids: its pictures.
      texts: its texts; those that name no picture are kept.
      read: from an image id to the bytes of the file.
      name: from an image id to what messages call the picture.
    """

    image_ids: list[int]
    texts: list[TextRecord]
    read: Callable[[int], bytes]
    name: Callable[[int], str]


def main() -> None:
    """Read, filter, write, count."""
    if _OUTPUT.value is None:
        raise ValueError("--output is missing; give a folder for the data set")
    if (_INPUT.value is None) == (_CAPTIONS.value is None):
        raise ValueError("give either --input (a data folder) or --captions with --images")
    if not 0.0 <= _VALID_SHARE.value < 1.0:
        raise ValueError(f"--valid_share={_VALID_SHARE.value} must be in [0, 1)")
    output, dropped = Path(_OUTPUT.value).expanduser(), Counter[str]()
    names = [_SPLIT.value, *([VALID] if _VALID_SHARE.value else [])]
    if len(set(names)) != len(names):
        raise ValueError(f"--split={VALID} and --valid_share would write one split twice")
    for name in names:
        refuse_existing(output, name)
    rules = pair_filter()
    whole = read_captions(rules, dropped) if _CAPTIONS.value else read_folder(rules, dropped)
    parts = divide(whole, _VALID_SHARE.value, _SEED.value) if _VALID_SHARE.value else [whole]
    output.mkdir(parents=True, exist_ok=True)
    results: dict[str, float] = {}
    for name, part in zip(names, parts, strict=True):
        results |= write_split(output, name, part, dropped)
        remove_other_forms(output, name)
    results |= {f"left out/{why}": count for why, count in sorted(dropped.items()) if count}
    print_results(results, title=str(output))


def on_error() -> OnError:
    """What the flags say about broken records."""
    return "skip" if _ON_ERROR.value == "skip" else "error"


def pair_filter() -> PairFilter:
    """The rules that the flags describe."""
    rules = pairs.PUBLISHED_FILTER if _PUBLISHED.value else PairFilter()
    given: dict[str, Any] = {
        "min_length": _MIN_LENGTH.value,
        "max_length": _MAX_LENGTH.value,
        "min_score": _MIN_SCORE.value,
        "black_list": pairs.read_black_list(_BLACK_LIST.value) if _BLACK_LIST.value else None,
    }
    return dataclasses.replace(rules, **{k: v for k, v in given.items() if v is not None})


def read_captions(rules: PairFilter, dropped: Counter[str]) -> Split:
    """The pictures and texts of a table of captions that pass the filter.

    Args:
      rules: the filter.
      dropped: reason -> number of lines left out; updated.

    Raises:
      ValueError: if nothing passes, or the table is broken.
    """
    if _IMAGES.value is None:
        raise ValueError("--images is missing; give the folder of the pictures in --captions")
    folder = require_file(Path(_IMAGES.value).expanduser(), "a folder of pictures")
    table = pairs.read_captions(Path(_CAPTIONS.value or "").expanduser(), on_error=on_error())
    dropped["broken line"] += table.num_skipped
    rows = []
    for row in table.rows:
        reason = rules.reason_to_drop(row.text, row.score)
        if reason is None:
            rows.append(row)
        else:
            dropped[f"caption: {reason}"] += 1
    if not rows:
        raise ValueError(f"the filter leaves none of {len(table.rows)} captions: {dict(dropped)}")
    files, texts = pairs.make_records(pairs.Captions(tuple(rows), 0))
    return Split(list(files), texts, lambda i: (folder / files[i]).read_bytes(), lambda i: files[i])


def read_folder(rules: PairFilter, dropped: Counter[str]) -> Split:
    """The pictures and texts of a split of a data folder that pass the filter.

    Args:
      rules: the filter; a rule about scores is refused, the files have none.
      dropped: reason -> number of texts left out; updated.

    Raises:
      FileNotFoundError: if the split is missing.
      ValueError: if nothing passes, or a file is broken.
    """
    folder, split = Path(_INPUT.value or "").expanduser(), _SPLIT.value
    if rules.min_score is not None:
        if _MIN_SCORE.value is not None:
            raise ValueError("--min_score needs --captions with scores; --input has none")
        rules = dataclasses.replace(rules, min_score=None)
    images = open_images(folder, split)
    dropped["broken picture"] += images.num_skipped
    texts = []
    for text in read_texts(folder, split, dropped):
        reason = rules.reason_to_drop(text.text)
        if reason is None:
            texts.append(text)
        else:
            dropped[f"caption: {reason}"] += 1
    if not texts:
        raise ValueError(f"the filter leaves no text of {split} in {folder}: {dict(dropped)}")
    return Split(images.image_ids.tolist(), texts, images.read, lambda i: f"image_id={i}")


def open_images(
    folder: Path, split: str
) -> pairs.TsvImages | pairs.LmdbImages | pairs.RecordImages:
    """The pictures of a split in whichever form they have."""
    if (folder / "lmdb" / split).is_dir():
        return pairs.LmdbImages(folder / "lmdb" / split / "imgs", on_error=on_error())
    if (folder / "records" / split).is_dir():
        return pairs.RecordImages(folder / "records" / split, on_error=on_error())
    return pairs.TsvImages(folder / f"{split}_imgs.tsv", on_error=on_error())


def read_texts(folder: Path, split: str, dropped: Counter[str]) -> Sequence[TextRecord]:
    """The texts of a split: its JSONL file, or what the pairs of an LMDB hold of them."""
    path, database = folder / f"{split}_texts.jsonl", folder / "lmdb" / split / "pairs"
    if path.exists() or not database.is_dir():
        texts = pairs.read_texts(path, on_error=on_error())
        dropped["broken line"] += texts.num_skipped
        return texts.records
    stored = pairs.LmdbPairs(database)
    found: dict[int, TextRecord] = {}
    for index in range(len(stored)):
        image_id, text_id, text = stored[index]
        before = found.get(text_id, TextRecord(text_id, text, ()))
        found[text_id] = before._replace(image_ids=(*before.image_ids, image_id))
    return list(found.values())


def divide(whole: Split, share: float, seed: int) -> list[Split]:
    """Two splits without a common picture; a text goes where its pictures are.

    Args:
      whole: all pictures and texts.
      share: part of the pictures that the second split gets, at least one.
      seed: of the choice.

    Raises:
      ValueError: if a split would be empty.
    """
    ids = np.asarray(whole.image_ids, np.int64)
    num_valid = max(1, round(share * len(ids)))
    if num_valid >= len(ids):
        raise ValueError(f"--valid_share={share} leaves none of {len(ids)} pictures to train on")
    valid = set(np.random.default_rng(seed).permutation(ids)[:num_valid].tolist())
    return [
        whole._replace(
            image_ids=[i for i in whole.image_ids if (i in valid) == is_valid],
            texts=_texts_of(whole.texts, lambda i, wanted=is_valid: (i in valid) == wanted),
        )
        for is_valid in (False, True)
    ]


def _texts_of(texts: Sequence[TextRecord], has: Callable[[int], bool]) -> list[TextRecord]:
    """The texts that name a picture of a split, without the pictures of others."""
    chosen = (t._replace(image_ids=tuple(i for i in t.image_ids if has(i))) for t in texts)
    return [text for text in chosen if text.image_ids]


def write_split(output: Path, name: str, part: Split, dropped: Counter[str]) -> dict[str, float]:
    """Write a split and count what it holds.

    Args:
      output: the data folder.
      name: of the split.
      part: what to write.
      dropped: reason -> number; broken pictures, and texts that lose all theirs, are added.

    Raises:
      ValueError: if a picture is broken or missing, and such are not to be left out.
    """
    kept: set[int] = set()
    images = stored_images(part, ProblemList(output / name, on_error()), kept)
    texts_path = output / f"{name}_texts.jsonl"

    def texts() -> list[TextRecord]:
        """The texts, without broken pictures; to be asked for when those are known."""
        named = [t for t in part.texts if t.image_ids]
        return _texts_of(named, kept.__contains__) + [t for t in part.texts if not t.image_ids]

    if _FORMAT.value == "lmdb":
        pairs.write_lmdb(output / "lmdb" / name, images, (text for _ in "1" for text in texts()))
    elif _FORMAT.value == "records":
        pairs.write_array_records(output / "records" / name, images)
    else:
        pairs.write_images_tsv(output / f"{name}_imgs.tsv", images)
    records = texts()
    num_texts = pairs.write_texts(texts_path, records)
    pairs.write_image_truth(output / f"{name}_texts.tr.jsonl", records)
    dropped["broken picture"] += len(part.image_ids) - len(kept)
    dropped["text without a picture that is left"] += len(part.texts) - num_texts
    return {
        f"{name}/images": len(kept),
        f"{name}/texts": num_texts,
        f"{name}/pairs": sum(len(record.image_ids) for record in records),
    }


def stored_images(part: Split, problems: ProblemList, kept: set[int]) -> Iterator[ImageRecord]:
    """The pictures as they are stored, decoded once to see that they are whole.

    Args:
      part: the split.
      problems: collects broken ones, and raises them at the end where they are not to be skipped.
      kept: ids of the others; filled.
    """
    from tqdm import tqdm

    def load(image_id: int) -> bytes | str:
        try:
            return stored_form(part.read(image_id), _IMAGE_SIZE.value)
        except (ValueError, OSError) as error:
            return f"{part.name(image_id)}: {error}"

    # `disable=None`: a bar on a terminal only.
    bar = tqdm(total=len(part.image_ids), unit="image", dynamic_ncols=True, disable=None)
    with ThreadPoolExecutor() as pool, bar:
        remaining = iter(part.image_ids)
        while chunk := list(itertools.islice(remaining, CHUNK)):
            for image_id, loaded in zip(chunk, pool.map(load, chunk), strict=True):
                if isinstance(loaded, str):
                    problems.add(f"image_id={image_id}", loaded)
                    continue
                kept.add(image_id)
                yield ImageRecord(image_id, loaded)
            bar.update(len(chunk))
    problems.finish(len(kept), "images")


def stored_form(image: bytes, image_size: int) -> bytes:
    """The bytes to store of a picture: the file itself, or a JPEG of a square.

    Args:
      image: bytes of a picture file.
      image_size: height and width to store, in pixels; 0 keeps the file.

    Raises:
      ValueError: if it is no picture, or a broken one.
    """
    decoded = decode_image(image)
    if not image_size:
        return image
    buffer = io.BytesIO()
    square = Image.fromarray(squash_resize(decoded, image_size))
    square.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def places(output: Path, name: str) -> dict[str, list[Path]]:
    """Where the files of a split lie, by form; those of "texts" belong to every form."""
    texts = [output / f"{name}_texts.jsonl", output / f"{name}_texts.tr.jsonl"]
    return {
        "texts": texts,
        "tsv": [output / f"{name}_imgs.tsv"],
        "lmdb": [output / "lmdb" / name],
        "records": [output / "records" / name],
    }


def refuse_existing(output: Path, name: str) -> None:
    """Stop where a split exists already and is not to be replaced, or is the input.

    Args:
      output: the data folder.
      name: of the split.

    Raises:
      FileExistsError: naming what is there.
    """
    there = [p for paths in places(output, name).values() for p in paths if p.exists()]
    if there and not _OVERWRITE.value:
        raise FileExistsError(
            f"{', '.join(map(str, there))} exist already; give another --output or --split, or "
            "--overwrite to replace them"
        )
    if there and _INPUT.value and Path(_INPUT.value).expanduser().resolve() == output.resolve():
        raise FileExistsError(f"--output={output} is the input itself; give another folder")


def remove_other_forms(output: Path, name: str) -> None:
    """Remove older pictures of a split in forms that would be read in place of the new ones.

    Args:
      output: the data folder.
      name: of the split, which has been written.
    """
    for form, paths in places(output, name).items():
        for path in paths if form not in ("texts", _FORMAT.value) else ():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


if __name__ == "__main__":
    run(main)
