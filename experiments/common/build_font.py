"""Builds the Chinese font of the pictures: a subset of Noto Sans SC small enough to ship.

`python -m experiments.common.build_font` fetches the npm package that carries the font at an exact
version (checked by its hash) and keeps the glyphs of `characters_to_keep`, without hinting and
without layout features, which plain horizontal text does not need. Timestamps are kept from the
source, so the same version of fontTools (of the `test` extra) writes the same bytes. Licence,
version and checksum are listed in `assets/README.md`.
"""

import argparse
import hashlib
import logging
import shutil
from collections.abc import Set
from pathlib import Path

from experiments.common.drawing import ASSETS, FONT_FILE
from jaxlab.data.emoji import EmojiSet, load_emoji
from jaxlab.packages import npm_package

logger = logging.getLogger(__name__)

PACKAGE, VERSION = "@expo-google-fonts/noto-sans-sc", "0.4.3"
SHA256 = "0d69d0f4971d2ff574e3d93cbc218dc950bf3f3f8f8e2c008d97687ed53aee59"
SOURCE_FONT = Path("400Regular", "NotoSansSC_400Regular.ttf")
SOURCE_LICENCE = Path("LICENSE_FONT")
LICENCE_FILE = "LICENSE-noto-sans-sc-OFL-1.1.txt"
FAMILY = "Noto Sans SC Subset"

# ASCII, Latin-1, general and CJK punctuation, full-width forms: first and last of each range.
RANGES = ((0x20, 0x7E), (0xA0, 0xFF), (0x2010, 0x2027), (0x3000, 0x301F), (0xFF00, 0xFF60))
GB2312_ROWS = (1, 2, *range(16, 56))  # symbols, numerals; 16 to 55 are the 3,755 of level 1
UNUSED_TABLES = ("BASE", "DSIG", "GDEF", "GPOS", "GSUB", "STAT", "VORG", "meta", "vhea", "vmtx")
NAME_IDS = (0, 1, 2, 3, 4, 5, 6, 7, 13, 14)  # names, version, copyright, trademark, licence


def gb2312_characters(rows: tuple[int, ...] = GB2312_ROWS) -> frozenset[str]:
    """The characters in some rows of GB 2312.

    Args:
      rows: row numbers (区), 1 to 94; the 3,755 most used Chinese characters are in 16 to 55.

    Example:
      >>> len(gb2312_characters(tuple(range(16, 56))))
      3755
    """
    codes = (bytes((0xA0 + row, 0xA0 + cell)) for row in rows for cell in range(1, 95))
    return frozenset("".join(code.decode("gb2312", errors="ignore") for code in codes))


def characters_to_keep(emoji: EmojiSet) -> frozenset[str]:
    """Every character of the Chinese and English names and keywords, and the common ones beside.

    Args:
      emoji: the set whose texts must be writable.
    """
    texts = (
        text
        for index in range(emoji.num_emoji)
        for language in ("zh", "en")
        for text in emoji.texts(index, language)
    )
    ranges = {chr(point) for first, last in RANGES for point in range(first, last + 1)}
    return frozenset(ranges | gb2312_characters() | {char for text in texts for char in text})


def subset_font(source: Path, target: Path, characters: Set[str]) -> None:
    """Writes the glyphs of some characters as a font of its own, named `FAMILY`.

    Characters that the source lacks are left out; the box that stands for them is kept.

    Args:
      source: TrueType file.
      target: file to write.
      characters: single characters.
    """
    from fontTools import subset
    from fontTools.ttLib import TTFont

    options = subset.Options(
        hinting=False, layout_features=[], name_IDs=list(NAME_IDS), notdef_outline=True
    )
    options.drop_tables = [*options.drop_tables, *UNUSED_TABLES]
    with TTFont(source, recalcTimestamp=False) as font:
        subsetter = subset.Subsetter(options)
        subsetter.populate(unicodes=[ord(char) for char in characters])
        subsetter.subset(font)
        version = font["name"].getDebugName(5)
        names = {1: FAMILY, 3: f"{FAMILY}; {version}", 4: FAMILY, 6: FAMILY.replace(" ", "")}
        for name_id, name in names.items():
            font["name"].setName(name, name_id, 3, 1, 0x409)
        font.save(target)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Fetches the package and writes font and licence; `--out` names another folder."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    parser = argparse.ArgumentParser(description="Builds the Chinese font of the pictures.")
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder to write the font to")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    folder = npm_package(PACKAGE, VERSION, sha256=SHA256)
    subset_font(folder / SOURCE_FONT, out / FONT_FILE, characters_to_keep(load_emoji()))
    shutil.copyfile(folder / SOURCE_LICENCE, out / LICENCE_FILE)
    logger.info("%s  %s", sha256_of(out / FONT_FILE), out / FONT_FILE)


if __name__ == "__main__":
    main()
