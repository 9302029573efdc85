"""The emoji set: 3,786 names in Chinese and English, each drawn in two styles.

A small real Chinese image-text set that needs no download: Google (Noto, Apache-2.0) and Twitter
(Twemoji, CC-BY-4.0) drawings, with short names and keywords of Unicode CLDR (Unicode-3.0). The
files, their sources and licences are described in `assets/README.md`.
"""

import dataclasses
import functools
import gzip
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8

STYLES = ("google", "twitter")
IMAGE_SIZE = 64
FORMAT_VERSION = 1
ASSETS = Path(__file__).parent / "assets"
ANNOTATIONS_FILE = "emoji.json.gz"
REBUILD = "Reinstall jaxlab, or rebuild the assets with `python -m jaxlab.data.emoji.build`."

# Chinese words for the ten groups of Unicode; the first is the principal one.
CATEGORY_NAMES_ZH: Mapping[str, tuple[str, ...]] = {
    "Smileys & Emotion": ("表情", "笑脸", "情感"),
    "People & Body": ("人物", "人", "身体"),
    "Component": ("肤色", "发型"),
    "Animals & Nature": ("动物和植物", "动物", "自然"),
    "Food & Drink": ("食物和饮料", "食物", "饮料"),
    "Travel & Places": ("旅行和地点", "交通工具", "建筑"),
    "Activities": ("活动", "运动", "游戏"),
    "Objects": ("物品", "工具", "用品"),
    "Symbols": ("符号", "标志", "按钮"),
    "Flags": ("旗帜", "国旗", "旗"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class EmojiSet:
    """Texts and structure of the emoji, and access to their drawings.

    Items are in the order of Unicode (`sort_order`), each base emoji followed by its skin-tone
    variations; index i means the same item in every field. A concept is a base emoji with its
    variations.

    Attributes:
      code_points: hexadecimal code points joined by "-", such as "1F3C3-1F3FD".
      names_zh: Chinese short names, all distinct.
      keywords_zh: Chinese keywords without the name.
      names_en: English short names.
      keywords_en: English keywords without the name.
      category_names: English names of the ten groups.
      category_names_zh: Chinese words for the ten groups, the principal one first.
      categories: group of each item, index into `category_names`.
      concepts: concept of each item, 0 to `num_concepts - 1`.
      is_base: True for base emoji, False for skin-tone variations.
      skin_tones: "" for base emoji, else the modifiers, such as "1F3FB" or "1F3FB-1F3FF".
      sources: package -> version that the set was built from.
      sha256: drawing archive -> checksum.
      folder: where the assets lie.
    """

    code_points: tuple[str, ...]
    names_zh: tuple[str, ...]
    keywords_zh: tuple[tuple[str, ...], ...]
    names_en: tuple[str, ...]
    keywords_en: tuple[tuple[str, ...], ...]
    category_names: tuple[str, ...]
    category_names_zh: tuple[tuple[str, ...], ...]
    categories: Int[np.ndarray, " emoji"]
    concepts: Int[np.ndarray, " emoji"]
    is_base: Bool[np.ndarray, " emoji"]
    skin_tones: tuple[str, ...]
    sources: Mapping[str, str]
    sha256: Mapping[str, str]
    folder: Path

    def __repr__(self) -> str:
        return f"EmojiSet(num_emoji={self.num_emoji}, folder={str(self.folder)!r})"

    @property
    def num_emoji(self) -> int:
        """Number of items, 3,786."""
        return len(self.code_points)

    @property
    def num_concepts(self) -> int:
        """Number of base emoji, 1,911."""
        return int(self.is_base.sum())

    @functools.cached_property
    def base_index(self) -> Int[np.ndarray, " concepts"]:
        """Item index of the base emoji of each concept, int32."""
        return np.flatnonzero(self.is_base).astype(np.int32)

    def texts(self, index: int | np.integer, language: str = "zh") -> tuple[str, ...]:
        """The name of an item, then its keywords.

        Args:
          index: item, 0 to `num_emoji - 1`.
          language: "zh" or "en".

        Raises:
          ValueError: for another language.
        """
        if language not in ("zh", "en"):
            raise ValueError(f"language={language!r} is not one of 'zh', 'en'")
        names, keywords = (
            (self.names_zh, self.keywords_zh)
            if language == "zh"
            else (self.names_en, self.keywords_en)
        )
        return (names[index], *keywords[index])

    def character(self, index: int | np.integer) -> str:
        """The emoji of an item as text, such as "🥟"."""
        return "".join(chr(int(point, 16)) for point in self.code_points[index].split("-"))

    def encoded_images(self, style: str) -> list[bytes]:
        """The WebP file of every drawing of a style, after its archive's checksum was compared.

        Raises:
          ValueError: for an unknown style or a damaged archive.
          FileNotFoundError: if the archive is missing.
        """
        if style not in STYLES:
            raise ValueError(f"style={style!r} is not one of {', '.join(map(repr, STYLES))}")
        path = self.folder / f"{style}.zip"
        content = _read_asset(path)
        digest = hashlib.sha256(content).hexdigest()
        if digest != self.sha256[path.name]:
            raise ValueError(
                f"{path} is damaged: SHA-256 {digest}, expected {self.sha256[path.name]}. {REBUILD}"
            )
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return [archive.read(f"{points.lower()}.webp") for points in self.code_points]

    def images(self, style: str) -> UInt8[np.ndarray, "emoji 64 64 4"]:
        """All drawings of a style as RGBA; invisible pixels are (0, 0, 0, 0).

        Decoded at each call (about half a second): keep the result.

        Raises:
          ValueError: for an unknown style or a damaged archive.
          FileNotFoundError: if the archive is missing.
        """
        from PIL import Image

        pixels = np.empty((self.num_emoji, IMAGE_SIZE, IMAGE_SIZE, 4), np.uint8)
        for index, encoded in enumerate(self.encoded_images(style)):
            with Image.open(io.BytesIO(encoded), formats=("WEBP",)) as image:
                pixels[index] = np.asarray(image.convert("RGBA"))
        return pixels


def load_emoji(folder: str | Path | None = None) -> EmojiSet:
    """The emoji set that ships with jaxlab; drawings are read later, by `EmojiSet.images`.

    Args:
      folder: assets built elsewhere; the shipped ones by default.

    Raises:
      FileNotFoundError: if the annotations are missing.
      ValueError: if they are damaged or of another format.

    Example:
      >>> emoji = load_emoji()
      >>> emoji.names_zh[emoji.code_points.index("1F95F")]
      '饺子'
    """
    folder = ASSETS if folder is None else Path(folder)
    path = folder / ANNOTATIONS_FILE
    content = _read_asset(path)
    try:
        columns: dict[str, Any] = json.loads(gzip.decompress(content))
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}). {REBUILD}") from error
    if columns.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version={columns.get('format_version')}, expected "
            f"{FORMAT_VERSION}. {REBUILD}"
        )
    skin_tones = tuple(columns["skin_tones"])
    return EmojiSet(
        code_points=tuple(columns["code_points"]),
        names_zh=tuple(columns["names_zh"]),
        keywords_zh=tuple(map(tuple, columns["keywords_zh"])),
        names_en=tuple(columns["names_en"]),
        keywords_en=tuple(map(tuple, columns["keywords_en"])),
        category_names=tuple(columns["category_names"]),
        category_names_zh=tuple(CATEGORY_NAMES_ZH[name] for name in columns["category_names"]),
        categories=np.asarray(columns["categories"], np.int32),
        concepts=np.asarray(columns["concepts"], np.int32),
        is_base=np.asarray([tone == "" for tone in skin_tones]),
        skin_tones=skin_tones,
        sources=columns["sources"],
        sha256=columns["sha256"],
        folder=folder,
    )


def composite(
    images: UInt8[np.ndarray, "*batch height width 4"],
    background: tuple[int, int, int] = (255, 255, 255),
) -> UInt8[np.ndarray, "*batch height width 3"]:
    """RGBA drawings over a plain background, rounded to uint8.

    Args:
      images: RGBA.
      background: red, green, blue, 0 to 255; white by default.
    """
    alpha = images[..., 3:].astype(np.uint16)
    paint = np.asarray(background, np.uint16)
    mixed = images[..., :3] * alpha + paint * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def _read_asset(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing. {REBUILD}") from error
