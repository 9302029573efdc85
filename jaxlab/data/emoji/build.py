"""Builds the emoji assets from the npm packages that publish them.

`python -m jaxlab.data.emoji.build` fetches four packages at exact versions (checked by their
hashes), joins drawings and annotations on the code points with U+FE0F removed, and writes
`google.zip`, `twitter.zip` (stored zips of lossless WebP) and `emoji.json.gz`. The order of the
items, the pixels and the timestamps are fixed, so the same libraries write the same bytes.
Licences, versions and checksums are listed in `assets/README.md`.

References:
  Unicode CLDR 48.2 annotations; emoji-datasource 16.0.0 (github.com/iamcal/emoji-data).
"""

import argparse
import gzip
import hashlib
import io
import json
import logging
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxlab.data.emoji.loader import ANNOTATIONS_FILE, ASSETS, FORMAT_VERSION, IMAGE_SIZE, STYLES
from jaxlab.packages import npm_package

logger = logging.getLogger(__name__)


class Package(NamedTuple):
    """One npm package of the build: its exact version and the SHA-256 of its tarball."""

    version: str
    sha256: str


PACKAGES: Mapping[str, Package] = {
    "cldr-annotations-full": Package(
        "48.2.0", "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1"
    ),
    "cldr-annotations-derived-full": Package(
        "48.2.0", "4be946ff5815f806ec78b50363d577a769f2fbfb90c6380a44e161a92436996e"
    ),
    "emoji-datasource-google": Package(
        "16.0.0", "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"
    ),
    "emoji-datasource-twitter": Package(
        "16.0.0", "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877"
    ),
}
VARIATION_SELECTOR = "\ufe0f"
ZIP_TIMESTAMP = (1980, 1, 1, 0, 0, 0)


class EmojiItem(NamedTuple):
    """One emoji of `emoji.json`, a base or a skin-tone variation of one.

    Attributes:
      code_points: hexadecimal code points joined by "-", fully qualified, upper case.
      concept: index of its base emoji in `sort_order`.
      skin_tone: "" for a base emoji, else the tone or the two tones, such as "1F3FB-1F3FF".
      category: English name of its group.
    """

    code_points: str
    concept: int
    skin_tone: str
    category: str


def list_emoji(datasource: Path) -> list[EmojiItem]:
    """Every emoji in `sort_order`, each base followed by its variations in file order.

    Args:
      datasource: folder of an emoji-datasource package.

    Raises:
      ValueError: if an emoji lacks a drawing in a style, or is drawn under another file name.
    """
    entries = json.loads((datasource / "emoji.json").read_text("utf-8"))
    entries.sort(key=lambda entry: entry["sort_order"])
    items, problems = [], []
    for concept, entry in enumerate(entries):
        for tone, form in [("", entry), *entry.get("skin_variations", {}).items()]:
            code_points = form["unified"]
            if form["image"] != f"{code_points.lower()}.png":
                problems.append(f"{code_points} is drawn in {form['image']}")
            problems += [
                f"{code_points} has no {style} drawing"
                for style in STYLES
                if not form[f"has_img_{style}"]
            ]
            items.append(EmojiItem(code_points, concept, tone, entry["category"]))
    if problems:
        raise ValueError(
            f"{datasource / 'emoji.json'}: {len(problems)} emoji cannot be used: "
            f"{'; '.join(problems[:10])}. Use the package version listed in PACKAGES."
        )
    return items


def read_annotations(full: Path, derived: Path, locale: str) -> dict[str, dict[str, list[str]]]:
    """CLDR annotations of a locale: character without U+FE0F -> {"tts": [...], "default": [...]}.

    Args:
      full: folder of cldr-annotations-full (single emoji).
      derived: folder of cldr-annotations-derived-full (sequences with tones, flags, ...).
      locale: CLDR locale such as "zh" or "en".
    """
    annotations = {}
    for folder, name in ((full, "annotations"), (derived, "annotationsDerived")):
        path = folder / name / locale / "annotations.json"
        for character, entry in json.loads(path.read_text("utf-8"))[name]["annotations"].items():
            annotations[character.replace(VARIATION_SELECTOR, "")] = entry
    return annotations


def code_points_to_character(code_points: str) -> str:
    """The text "🏃🏽" of "1F3C3-1F3FD"."""
    return "".join(chr(int(code_point, 16)) for code_point in code_points.split("-"))


def annotation_columns(
    items: list[EmojiItem], annotations: Mapping[str, Mapping[str, list[str]]]
) -> tuple[list[str], list[list[str]]]:
    """Names (`tts`) and keywords (`default` less the name) of every item.

    Raises:
      KeyError: listing every emoji that the locale does not name.
    """
    keys = [
        code_points_to_character(item.code_points).replace(VARIATION_SELECTOR, "") for item in items
    ]
    missing = [key for key in keys if key not in annotations]
    if missing:
        raise KeyError(f"{len(missing)} emoji have no CLDR annotation: {' '.join(missing[:20])}")
    names = [annotations[key]["tts"][0] for key in keys]
    keywords = [
        [word for word in annotations[key]["default"] if word != name]
        for key, name in zip(keys, names, strict=True)
    ]
    return names, keywords


def encode_drawing(path: Path) -> bytes:
    """A source PNG as lossless WebP; colours under alpha 0 are set to zero.

    Invisible colours carry no picture: zeroing them makes the stored pixels canonical (they do not
    depend on what the encoder does with them) and saves 2 %. Method 6 would save another 2 % for
    twenty times the time.

    Raises:
      ValueError: if the drawing is not 64x64.
    """
    from PIL import Image

    with Image.open(path) as image:
        pixels = np.array(image.convert("RGBA"))
    if pixels.shape != (IMAGE_SIZE, IMAGE_SIZE, 4):
        raise ValueError(f"{path} is {pixels.shape[1]}x{pixels.shape[0]}, expected 64x64")
    pixels[pixels[..., 3] == 0] = 0
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, quality=100, method=4, exact=True)
    return buffer.getvalue()


def write_zip(path: Path, members: Iterator[tuple[str, bytes]]) -> None:
    """Writes a stored zip whose bytes depend on names and contents only."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name, ZIP_TIMESTAMP)
            info.create_system = 3  # Unix, on every system
            info.external_attr = 0o644 << 16
            archive.writestr(info, content)


def build_assets(folders: Mapping[str, Path], out: Path) -> dict[str, str]:
    """Writes the three asset files.

    Args:
      folders: folder of each package of `PACKAGES`, by package name.
      out: folder to write to.

    Returns:
      File name -> SHA-256 of what was written.
    """
    items = list_emoji(folders["emoji-datasource-google"])
    archives = {}
    for style in STYLES:
        drawings = folders[f"emoji-datasource-{style}"] / "img" / style / "64"
        names = [item.code_points.lower() for item in items]
        write_zip(
            out / f"{style}.zip",
            ((f"{name}.webp", encode_drawing(drawings / f"{name}.png")) for name in names),
        )
        archives[f"{style}.zip"] = sha256_of(out / f"{style}.zip")
        logger.info("%s.zip: %d drawings, SHA-256 %s", style, len(items), archives[f"{style}.zip"])
    categories = list(dict.fromkeys(item.category for item in items))
    columns: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "sources": {name: package.version for name, package in PACKAGES.items()},
        "sha256": archives,
        "category_names": categories,
        "code_points": [item.code_points for item in items],
        "concepts": [item.concept for item in items],
        "skin_tones": [item.skin_tone for item in items],
        "categories": [categories.index(item.category) for item in items],
    }
    for locale in ("zh", "en"):
        annotations = read_annotations(
            folders["cldr-annotations-full"], folders["cldr-annotations-derived-full"], locale
        )
        columns[f"names_{locale}"], columns[f"keywords_{locale}"] = annotation_columns(
            items, annotations
        )
    text = json.dumps(columns, ensure_ascii=False, separators=(",", ":"))
    (out / ANNOTATIONS_FILE).write_bytes(gzip.compress(text.encode("utf-8"), 9, mtime=0))
    return {**archives, ANNOTATIONS_FILE: sha256_of(out / ANNOTATIONS_FILE)}


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Fetches the packages and writes the assets; `--out` names another folder."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description="Builds the emoji assets of jaxlab.")
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder to write the assets to")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    folders = {
        name: npm_package(name, package.version, sha256=package.sha256)
        for name, package in PACKAGES.items()
    }
    for name, digest in build_assets(folders, out).items():
        logger.info("%s  %s", digest, out / name)


if __name__ == "__main__":
    main()
