"""An index of pictures: their features on disk, searched exactly by text, picture or vector.

Use::

    model = clip.load("ViT-B-16")
    index, report = clip.update_index("photos.index", "~/Photos", model)  # again after changes
    for hit in index.find(model, text="海边的日落", k=5):
        print(hit.path, hit.cosine, hit.probability)

Search is exact in both kinds. The scores of all pictures are computed with a bound on their error,
every picture that can be among the k best within these bounds is scored again from its float32
vector in float64, and equal scores keep the order of the rows. With int8, a quarter of the memory
is read for this, and of the float32 vectors only the few that are scored again.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int8

from jaxlab.chinese_clip.api import LoadedModel
from jaxlab.chinese_clip.calibration import MatchCalibration, background_percentile
from jaxlab.metrics import TopK

_BLOCK = 8192  # vectors at a time
_MAX_SCORES = 1 << 25  # scores in memory at a time
_UNIT_TOLERANCE = 1e-3
_LEVELS = 127  # int8, symmetric
_ROUNDING = 2.0**-24  # unit roundoff of float32
_NUM_QUANTILES = 101
_BACKGROUND_PICTURES = 4096

BACKGROUND_TEXTS = (
    *("天空", "大海", "山", "河流", "森林", "花", "树", "草地", "雪", "雨", "日落", "夜景"),
    *("猫", "狗", "鸟", "鱼", "马", "昆虫", "老虎", "熊猫", "大象", "兔子"),
    *("男人", "女人", "孩子", "老人", "一群人", "婚礼", "自拍", "笑脸", "手", "舞蹈"),
    *("米饭", "面条", "水果", "蔬菜", "蛋糕", "咖啡", "火锅", "饺子", "早餐", "酒"),
    *("汽车", "自行车", "火车", "飞机", "船", "公路", "桥", "地铁", "红绿灯"),
    *("房子", "高楼", "教堂", "寺庙", "商店", "学校", "医院", "厨房", "卧室", "花园"),
    *("手机", "电脑", "书", "衣服", "鞋子", "包", "手表", "椅子", "杯子", "玩具", "钱"),
    *("足球", "篮球", "游泳", "跑步", "滑雪", "音乐会", "钢琴", "绘画", "节日", "烟花"),
    *("文件", "截图", "地图", "文字", "图表", "标志", "红色", "蓝色", "黑白照片", "圆形"),
)
"""Common words of all kinds; the cosines of any pictures with them are what chance gives."""


class Item(NamedTuple):
    """A picture of an index.

    Attributes:
      path: below the folder, with `/`.
      num_bytes: size of the file.
      mtime_ns: when it was last changed.
      width: of the picture, in pixels.
      height: of the picture, in pixels.
    """

    path: str
    num_bytes: int
    mtime_ns: int
    width: int
    height: int


class Quantized(NamedTuple):
    """Vectors as 8-bit integers: vector = scale * codes + rest, and the rest is bounded.

    Attributes:
      codes: integers in [-127, 127].
      scales: one a vector.
      errors: at least the length of each rest.
    """

    codes: Int8[np.ndarray, "items dim"]
    scales: Float32[np.ndarray, " items"]
    errors: Float32[np.ndarray, " items"]


class Hit(NamedTuple):
    """A picture that was found.

    Attributes:
      row: its position in the index.
      path: below the folder.
      cosine: with the query.
      percentile: share of pairs that do not match with a lower cosine; None where it is unknown.
      probability: that it matches; None without a calibration, or for a picture as the query.
    """

    row: int
    path: str
    cosine: float
    percentile: float | None = None
    probability: float | None = None


@dataclasses.dataclass(frozen=True)
class IndexInfo:
    """What an index knows beside its vectors.

    Attributes:
      folder: the pictures lie below it.
      model: what the model was loaded from.
      fingerprints: checksum of each of its towers.
      compat: how pictures were made RGB.
      apply_exif: whether they were turned by their EXIF orientation.
      calibration: from cosines with texts to match probabilities.
      background: quantiles of the cosines with `BACKGROUND_TEXTS`; empty without a text tower.
      expected_matches: pictures that a text is expected to match, for the prior of its matches.
    """

    folder: str
    model: str
    fingerprints: Mapping[str, str]
    compat: str = "white"
    apply_exif: bool = False
    calibration: MatchCalibration | None = None
    background: tuple[float, ...] = ()
    expected_matches: float = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class PictureIndex:
    """Pictures with their features; `index_files` is its form on disk.

    Attributes:
      info: where they come from.
      items: one a row.
      vectors: float32 (items, dim), of length 1 (or 0).
      quantized: the same in 8 bits; None for a float32 index.
    """

    info: IndexInfo
    items: tuple[Item, ...]
    vectors: Float[np.ndarray, "items dim"]
    quantized: Quantized | None = None

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.items)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.vectors.shape[1]

    def add(self, items: Sequence[Item], vectors: Float[np.ndarray, "new dim"]) -> "PictureIndex":
        """The index with further pictures; one whose path is there already is replaced.

        Args:
          items: the pictures.
          vectors: their features, of length 1.

        Raises:
          ValueError: if the numbers differ, or a vector has another length or is not finite.
        """
        kept = self.remove([item.path for item in items], missing="ignore")
        joined = np.concatenate([kept.vectors, np.asarray(vectors, np.float32)])
        return make_index(self.info, (*kept.items, *items), joined, int8=self.quantized is not None)

    def remove(self, paths: Iterable[str], *, missing: str = "error") -> "PictureIndex":
        """The index without some pictures.

        Args:
          paths: as in `items`.
          missing: "error" refuses paths that are not there, "ignore" does not.

        Raises:
          KeyError: if a path is not there; all are named.
          ValueError: if `missing` is unknown.
        """
        if missing not in ("error", "ignore"):
            raise ValueError(f"missing={missing!r} is not one of 'error', 'ignore'")
        gone = set(paths)
        if missing == "error" and (absent := gone - {item.path for item in self.items}):
            raise KeyError(f"the index holds no {sorted(absent)}; see its items")
        rows = [row for row, item in enumerate(self.items) if item.path not in gone]
        if len(rows) == len(self.items):
            return self
        quantized = self.quantized
        return dataclasses.replace(
            self,
            items=tuple(self.items[row] for row in rows),
            vectors=np.asarray(self.vectors[rows]),
            quantized=quantized and Quantized(*(array[rows] for array in quantized)),
        )

    def search(self, queries: Float[np.ndarray, "queries dim"], k: int, *, offset: int = 0) -> TopK:
        """The exact best pictures of every query, as computed in float64.

        Args:
          queries: vectors; cosines are meant, so of length 1.
          k: how many pictures; fewer where there are no more.
          offset: leave out this many of the best, for the next page.

        Returns:
          Scores (float32) and rows, best first; equal scores in the order of the rows.

        Raises:
          ValueError: if the queries have another length or are not finite, or a number is out of
            range.
        """
        if k < 1 or offset < 0:
            raise ValueError(f"k={k}, offset={offset}: ask for at least one picture, from 0 on")
        queries = np.asarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(
                f"queries have shape {queries.shape}; this index takes (queries, {self.dim})"
            )
        if not np.isfinite(queries).all():
            raise ValueError("a query holds NaN or infinity; the model or its input is broken")
        wanted = min(offset + k, len(self))
        scores = np.zeros((len(queries), max(wanted - offset, 0)), np.float32)
        rows = np.zeros(scores.shape, np.int32)
        if not scores.size:
            return TopK(scores, rows)
        step = max(1, _MAX_SCORES // max(len(self), 1))
        for start in range(0, len(queries), step):
            block = queries[start : start + step]
            rough, slack = self._rough_scores(block)
            for number, query in enumerate(block):
                candidates = _possible_best(rough[number], slack[number], wanted)
                found = self._rank(query, candidates, wanted)
                scores[start + number] = found.scores[offset:]
                rows[start + number] = found.indices[offset:]
        return TopK(scores, rows)

    def find(
        self,
        model: LoadedModel,
        *,
        text: str | None = None,
        image: Any = None,
        row: int | None = None,
        k: int = 10,
        offset: int = 0,
    ) -> list[Hit]:
        """The pictures that fit a text, or are most like a picture.

        Args:
          model: the model that made the index.
          text: what is looked for; or
          image: a picture, see `LoadedModel.squash`; or
          row: a picture of the index, which is found first itself.
          k: how many.
          offset: leave out this many of the best.

        Raises:
          ValueError: if not exactly one query is given, or the model is another one.
          IndexError: if there is no such row.
        """
        if sum(query is not None for query in (text, image, row)) != 1:
            raise ValueError("give exactly one of text, image and row")
        if row is not None:
            if not 0 <= row < len(self):
                raise IndexError(f"row={row}; the index has rows 0 to {len(self) - 1}")
            return self.to_hits(self.search(self.vectors[row][None], k, offset=offset))[0]
        self.check_model(model)
        if text is not None:
            found = self.search(model.encode_text(text), k, offset=offset)
            return self.to_hits(found, of_text=True)[0]
        return self.to_hits(self.search(model.encode_image([image]), k, offset=offset))[0]

    def to_hits(self, found: TopK, *, of_text: bool = False) -> list[list[Hit]]:
        """What `search` found, with paths, and for texts with percentiles and probabilities.

        Args:
          found: of one query or several.
          of_text: whether the queries were texts; the cosines of two pictures are another matter.
        """
        return [
            [self._to_hit(int(row), float(score), of_text) for score, row in zip(*one, strict=True)]
            for one in zip(found.scores, found.indices, strict=True)
        ]

    def check_model(self, model: LoadedModel) -> None:
        """Refuses a model that did not make this index.

        Args:
          model: a loaded model; a single tower of it will do.

        Raises:
          ValueError: if a tower has other weights, or there is none to compare.
        """
        known, given = self.info.fingerprints, model.fingerprints
        shared = sorted(set(known) & set(given))
        differing = [tower for tower in shared if known[tower] != given[tower]]
        if differing or not shared:
            why = f"other weights ({', '.join(differing)} tower)" if shared else "other towers"
            made, remedy = self.info.model, "Load that model, or build"
            if made == model.name:
                made, remedy = f"{made} as it was before", "Build"
            raise ValueError(
                f"the index was made by {made}, and {model.name} has {why}: their features cannot "
                f"be compared. {remedy} an index with this one, in another folder or after "
                "removing the old one"
            )

    def to_path(self, row: int) -> Path:
        """Where a picture lies.

        Args:
          row: its position.

        Raises:
          IndexError: if there is no such row.
          ValueError: if the path leads out of the folder.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"row={row}; the index has rows 0 to {len(self) - 1}")
        folder = Path(self.info.folder)
        path = folder / self.items[row].path
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"{self.items[row].path!r} leads out of {folder}; build the index anew"
            )
        return path

    def _to_hit(self, row: int, cosine: float, of_text: bool) -> Hit:
        info = self.info
        if not of_text:
            return Hit(row, self.items[row].path, cosine)
        percentile = probability = None
        if info.background:
            percentile = float(background_percentile(cosine, info.background))
        if info.calibration is not None:
            prior = min(info.expected_matches / len(self), 0.5)
            probability = float(info.calibration.with_prior(prior).probability(cosine))
        return Hit(row, self.items[row].path, cosine, percentile, probability)

    def _rough_scores(
        self, queries: Float32[np.ndarray, "queries dim"]
    ) -> tuple[Float32[np.ndarray, "queries items"], Float32[np.ndarray, "queries items"]]:
        """Scores of all pictures in float32, and how far each may be from the exact one.

        A dot product of n float32 numbers is off by at most n units in the last place of the
        product of the lengths (Higham 2002, section 3.1); that of the codes also by the length of
        the rest times that of the query.
        """
        length = np.linalg.norm(queries, axis=1, keepdims=True) * np.float32(1 + 1e-6)
        rounding = np.float32(2 * self.dim * _ROUNDING * (1 + _UNIT_TOLERANCE) ** 2)
        scores = np.empty((len(queries), len(self)), np.float32)
        for start in range(0, len(self), _BLOCK):
            part = slice(start, start + _BLOCK)
            if self.quantized is None:
                scores[:, part] = queries @ self.vectors[part].T
            else:
                codes = self.quantized.codes[part].astype(np.float32)
                scores[:, part] = (queries @ codes.T) * self.quantized.scales[part]
        errors = np.zeros(1, np.float32) if self.quantized is None else self.quantized.errors
        return scores, np.broadcast_to(length * (errors + rounding)[None], scores.shape)

    def _rank(self, query: Float32[np.ndarray, " dim"], candidates: np.ndarray, k: int) -> TopK:
        """The best of some rows by their float32 vectors, computed in float64."""
        scores = self.vectors[candidates].astype(np.float64) @ query.astype(np.float64)
        order = np.lexsort((candidates, -scores))[:k]
        return TopK(scores[order].astype(np.float32), candidates[order].astype(np.int32))


def make_index(
    info: IndexInfo,
    items: Sequence[Item],
    vectors: Float[np.ndarray, "items dim"],
    *,
    int8: bool = False,
) -> PictureIndex:
    """An index of vectors that are there.

    Args:
      info: where they come from.
      items: one a vector, with distinct paths.
      vectors: float32 (items, dim), of length 1, or 0.
      int8: also quantise them.

    Raises:
      ValueError: if the numbers differ, a path occurs twice, or a vector is not finite or has
        another length.
    """
    vectors = np.asarray(vectors, np.float32)
    if vectors.ndim != 2 or len(vectors) != len(items):
        raise ValueError(
            f"{len(items)} items and vectors of shape {vectors.shape}; wanted (n, dim)"
        )
    if len({item.path for item in items}) != len(items):
        raise ValueError("a path occurs twice among the items; an index holds a picture once")
    lengths = np.linalg.norm(vectors, axis=1)
    wrong = np.flatnonzero(~((np.abs(lengths - 1) <= _UNIT_TOLERANCE) | (lengths == 0)))
    if wrong.size:
        raise ValueError(
            f"{wrong.size} vectors are not of length 1, the first is {wrong[0]} "
            f"({items[wrong[0]].path}, length {lengths[wrong[0]]}); normalise features first. NaN "
            "means that the model is broken"
        )
    return PictureIndex(info, tuple(items), vectors, quantize(vectors) if int8 else None)


def quantize(vectors: Float[np.ndarray, "items dim"]) -> Quantized:
    """Vectors as 8-bit integers, each with the scale that takes its largest entry to 127.

    Args:
      vectors: float32.

    Returns:
      Codes, scales, and bounds of the length of what they leave out.
    """
    codes = np.empty(vectors.shape, np.int8)
    scales, errors = (np.empty(len(vectors), np.float32) for _ in range(2))
    for start in range(0, len(vectors), _BLOCK):
        part = slice(start, start + _BLOCK)
        block = np.asarray(vectors[part], np.float32)
        largest = np.abs(block).max(axis=1, initial=0.0)
        scale = np.where(largest > 0, largest / _LEVELS, 1.0).astype(np.float32)
        codes[part] = np.rint(block / scale[:, None])
        rest = block - codes[part].astype(np.float64) * scale[:, None]
        scales[part] = scale
        errors[part] = np.linalg.norm(rest, axis=1) * (1 + 1e-6)  # never below, once rounded
    return Quantized(codes, scales, errors)


def background_of(model: LoadedModel, vectors: Float[np.ndarray, "items dim"]) -> tuple[float, ...]:
    """Quantiles of the cosines of pictures with common words; () without a text tower.

    Args:
      model: the model.
      vectors: features of pictures; of many, evenly spaced ones are taken.
    """
    if not model.has_text_tower or not len(vectors):
        return ()
    step = -(-len(vectors) // _BACKGROUND_PICTURES)
    cosines = model.encode_text(BACKGROUND_TEXTS) @ np.asarray(vectors[::step]).T
    return tuple(np.quantile(cosines, np.linspace(0.0, 1.0, _NUM_QUANTILES)).tolist())


def _possible_best(
    scores: Float32[np.ndarray, " items"], slack: Float32[np.ndarray, " items"], k: int
) -> np.ndarray:
    """The rows that can be among the k best, when every score may be off by its slack.

    The k-th largest lower bound is passed by k rows for certain, so that whoever cannot reach it
    is not among the k best.
    """
    lower = scores - slack
    place = len(lower) - k
    return np.flatnonzero(scores + slack >= np.partition(lower, place)[place])
