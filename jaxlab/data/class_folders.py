"""Pictures sorted into one folder a class: the layout of zero-shot data sets, or one's own.

The published layout (Chinese-CLIP, ELEVATER) is `label_cn.txt` with one class name a line, and
`test/{class id}/...` where a class id is the line's number from 0, padded to three digits where
there are more than ten classes. Without `label_cn.txt` the folders are named by their classes
themselves: `猫/1.jpg`, `狗/2.jpg`.

The order of the pictures is that of torchvision's `ImageFolder`: sorted folders, in each the sorted
paths of its subfolders and files.
"""

import logging
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

LABELS_FILE = "label_cn.txt"
IMAGES_FOLDER = "test"
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

_logger = logging.getLogger(__name__)


class ClassFolders(NamedTuple):
    """Pictures and their classes.

    Attributes:
      class_names: one name a class.
      paths: the picture files.
      labels: class of every picture, int64; or, where pictures have several, (pictures, classes)
        bool.
    """

    class_names: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: Int64[np.ndarray, " pictures"] | Bool[np.ndarray, "pictures classes"]


def read_class_folders(folder: str | Path, *, multi_label: bool = False) -> ClassFolders:
    """Finds the pictures of a data set in either layout.

    Files that are no pictures by their ending, and what begins with a dot, are left out; so are
    pictures that lie in no class folder, which the log counts.

    Args:
      folder: holds `label_cn.txt` and `test`, or one folder a class.
      multi_label: files of one name in several class folders are one picture of several classes;
        it comes where it is met first.

    Raises:
      FileNotFoundError: if the folder or `test` is missing.
      ValueError: if there are no classes or pictures, or the folders do not fit the labels.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder; expected one with {LABELS_FILE} and {IMAGES_FOLDER}/, or "
            "with one folder of pictures a class"
        )
    labels_file = folder / LABELS_FILE
    if labels_file.is_file():
        names, classes_folder = read_class_names(labels_file), folder / IMAGES_FOLDER
        places = _published_classes(classes_folder, names)
    else:
        children, classes_folder = _subfolders(folder), folder
        names = tuple(child.name for child in children)
        places = list(enumerate(children))
    _warn_of_loose_pictures(classes_folder)
    pictures = [(path, label) for label, child in places for path in _pictures(child)]
    if not pictures:
        raise ValueError(
            f"{folder} has {len(places)} class folders and no picture in them; pictures end in "
            f"{', '.join(SUFFIXES)}"
        )
    empty = len(names) - len({label for _, label in pictures})
    if empty:
        _logger.warning("%d of %d classes of %s have no pictures", empty, len(names), folder)
    if multi_label:
        return _join_classes(names, pictures)
    paths, labels = zip(*pictures, strict=True)
    return ClassFolders(names, paths, np.array(labels, np.int64))


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """Class names, one a line; blank lines at the end do not count.

    Raises:
      ValueError: if the file is not UTF-8, has no names, or a blank line among them.
    """
    path = Path(path)
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    blank = [number for number, name in enumerate(names, start=1) if not name]
    if blank or not names:
        where = f"lines {blank} are blank" if blank else "it is empty"
        raise ValueError(
            f"{path}: {where}; expected one class name a line, the first is that of class 0"
        )
    return tuple(names)


def _published_classes(folder: Path, names: tuple[str, ...]) -> list[tuple[int, Path]]:
    """Class and folder, in the order of the sorted folders."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder; expected one folder a class id beside {LABELS_FILE}"
        )
    children = _subfolders(folder)
    ids = {child: int(child.name) for child in children if child.name.isdecimal()}
    if len(ids) == len(children):
        wrong = sorted(child.name for child, number in ids.items() if number >= len(names))
        if wrong or len(set(ids.values())) < len(ids):
            raise ValueError(
                f"{folder} has folders {wrong or sorted(child.name for child in ids)} for the "
                f"{len(names)} names of {LABELS_FILE}; a class id is the number of its line from "
                f"0, so wanted 0 to {len(names) - 1}, each once"
            )
        return [(ids[child], child) for child in children]
    if len(children) != len(names):
        raise ValueError(
            f"{folder} has {len(children)} class folders and {LABELS_FILE} {len(names)} names; "
            "wanted as many, in the same order when sorted, or folders named by class ids"
        )
    return list(enumerate(children))


def _subfolders(folder: Path) -> list[Path]:
    children = [c for c in folder.iterdir() if c.is_dir() and not c.name.startswith(".")]
    if not children:
        raise ValueError(f"{folder} holds no folders; expected one folder of pictures a class")
    return sorted(children, key=lambda child: child.name)


def _warn_of_loose_pictures(folder: Path) -> None:
    loose = sorted(p.name for p in folder.iterdir() if p.is_file() and _is_picture(p))
    if loose:
        listed = ", ".join(loose[:3]) + (", ..." if len(loose) > 3 else "")
        _logger.warning(
            "%d pictures in %s lie in none of its class folders and are left out: %s",
            len(loose), folder, listed,
        )  # fmt: skip


def _is_picture(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() in SUFFIXES


def _pictures(folder: Path) -> list[Path]:
    found = []
    for root, _, names in sorted(os.walk(folder, followlinks=True)):
        found.extend(path for name in sorted(names) if _is_picture(path := Path(root, name)))
    return found


def _join_classes(names: tuple[str, ...], pictures: list[tuple[Path, int]]) -> ClassFolders:
    """Pictures of several classes from the files of one name."""
    rows: dict[str, int] = {}
    paths: list[Path] = []
    for path, _ in pictures:
        if path.name not in rows:
            rows[path.name] = len(paths)
            paths.append(path)
    labels = np.zeros((len(paths), len(names)), bool)
    for path, label in pictures:
        labels[rows[path.name], label] = True
    return ClassFolders(names, tuple(paths), labels)
