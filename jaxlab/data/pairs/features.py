"""Feature and prediction files of Chinese-CLIP, and binary forms of the features.

`{split}_imgs.img_feat.jsonl` has `{"image_id": 7, "feature": [...]}`,
`{split}_texts.txt_feat.jsonl` `{"text_id": 1, "feature": [...]}`; predictions are
`{"text_id": 1, "image_ids": [...]}` and `{"image_id": 7, "text_ids": [...]}`, best first. Binary
forms, smaller and read without parsing: an `.npz` with `ids` and `features`, and an `.npy` with ids
beside it that is mapped into memory (`feature_store`).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from jaxlab.data.pairs.feature_store import read_feature_arrays, write_feature_arrays
from jaxlab.data.pairs.jsonl import dump_line, numbered_lines, parse_ids, parse_object
from jaxlab.data.pairs.records import ProblemList, parse_id, replaced_file, require_file

Kind = Literal["image", "text"]


class Features(NamedTuple):
    """Embeddings with the ids that they belong to.

    Attributes:
      ids: image or text ids, int64.
      features: one L2-normalised row per id, float32.
    """

    ids: Int64[np.ndarray, " rows"]
    features: Float32[np.ndarray, "rows dim"]


def write_features(path: str | Path, features: Features, kind: Kind) -> None:
    """Writes features; the file appears only when complete.

    Args:
      path: ends in `.jsonl` for the original's form, in `.npz` or `.npy` for a binary one.
      features: ids and rows.
      kind: "image" or "text": names the id in the original's form.

    Raises:
      ValueError: for another ending, or different numbers of ids and rows.
    """
    path = _check_ending(path)
    ids, rows = features
    if len(ids) != len(rows):
        raise ValueError(f"{len(ids)} ids and {len(rows)} features; expected one row per id")
    if path.suffix == ".npy":
        write_feature_arrays(path, ids, rows)
        return
    with replaced_file(path) as file:
        if path.suffix == ".npz":
            np.savez(file, ids=ids, features=rows)
            return
        for row_id, row in zip(ids.tolist(), rows, strict=True):
            file.write(dump_line({f"{kind}_id": row_id, "feature": row.tolist()}))


def read_features(path: str | Path, kind: Kind) -> Features:
    """Reads features of any form.

    Args:
      path: a `.jsonl`, `.npz` or `.npy` file; the rows of the last are mapped into memory.
      kind: "image" or "text".

    Raises:
      FileNotFoundError: if the file is missing.
      ValueError: listing broken lines with file and line; or if there is none.
    """
    path = _check_ending(path)
    if path.suffix == ".npy":
        return Features(*read_feature_arrays(path))
    path = require_file(path, "features, as written by write_features")
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            missing = {"ids", "features"} - set(arrays)
            if missing:
                raise ValueError(f"{path} lacks {sorted(missing)}; it holds {sorted(arrays)}")
            return Features(arrays["ids"].astype(np.int64), arrays["features"].astype(np.float32))
    problems = ProblemList(path, "error")
    rows: dict[int, np.ndarray] = {}
    dim = None
    for number, line in numbered_lines(path):
        try:
            fields = parse_object(line, (f"{kind}_id", "feature"))
            row_id = parse_id(fields[f"{kind}_id"], f"{kind}_id")
            row = _parse_feature(fields["feature"], dim)
            if row_id in rows:
                raise ValueError(f"{kind}_id={row_id} repeats an earlier line")
        except ValueError as error:
            problems.add(str(number), str(error))
            continue
        rows[row_id], dim = row, len(row)
    problems.finish(len(rows), "features")
    return Features(np.fromiter(rows, np.int64, len(rows)), np.stack(list(rows.values())))


def write_predictions(
    path: str | Path, predictions: Mapping[int, Iterable[int]], kind: Kind
) -> None:
    """Writes ranked ids, best first.

    Args:
      path: the `.jsonl` file; it appears only when complete.
      predictions: query id -> ids found.
      kind: what the queries are: "text" finds images, "image" finds texts.
    """
    found = "text" if kind == "image" else "image"
    with replaced_file(path) as file:
        for query, ids in predictions.items():
            file.write(dump_line({f"{kind}_id": query, f"{found}_ids": list(ids)}))


def read_predictions(path: str | Path, kind: Kind) -> dict[int, tuple[int, ...]]:
    """Reads ranked ids: query id -> ids found, best first.

    Args:
      path: the `.jsonl` file.
      kind: what the queries are: "text" finds images, "image" finds texts.

    Raises:
      FileNotFoundError: if the file is missing.
      ValueError: listing broken lines with file and line; or if there is none.
    """
    path = require_file(path, "predictions, as written by write_predictions")
    found = "text_ids" if kind == "image" else "image_ids"
    problems = ProblemList(path, "error")
    predictions: dict[int, tuple[int, ...]] = {}
    for number, line in numbered_lines(path):
        try:
            fields = parse_object(line, (f"{kind}_id", found))
            query = parse_id(fields[f"{kind}_id"], f"{kind}_id")
            if query in predictions:
                raise ValueError(f"{kind}_id={query} repeats an earlier line")
            predictions[query] = parse_ids(fields[found], found)
        except ValueError as error:
            problems.add(str(number), str(error))
    problems.finish(len(predictions), "predictions")
    return predictions


def _check_ending(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix not in (".jsonl", ".npz", ".npy"):
        raise ValueError(
            f"{path} ends in {path.suffix!r}; features are '.jsonl', '.npz' or '.npy' files"
        )
    return path


def _parse_feature(value: object, dim: int | None) -> Float32[np.ndarray, " dim"]:
    try:
        row = np.asarray(value, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"feature is no list of numbers ({error})") from error
    if row.ndim != 1 or not len(row):
        raise ValueError(f"feature has shape {row.shape}, expected a list of numbers")
    if dim is not None and len(row) != dim:
        raise ValueError(f"feature has {len(row)} numbers, the lines before have {dim}")
    return row
