"""Ranking a gallery for many queries: ours, and the original's script on the same files.

Each runs in a process of its own, and they take turns. First their predictions must be equal. Timed
is what follows the loading of the gallery: ours from features in memory to the file of predictions,
the original from its own message that the gallery is loaded to the one that its file is written. As
it loops over the queries, it gets a part of them; its rate does not depend on their number.
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from experiments.chinese_clip.retrieve import predict
from jaxlab.data.pairs import (
    Features,
    read_features,
    read_predictions,
    write_features,
    write_predictions,
)
from jaxlab.data.pairs.features import Kind

K = 10
SEED = 0


def run(
    num_queries: int = 5008,
    num_items: int = 29_806,
    dim: int = 512,
    peer_queries: int = 256,
    rounds: int = 3,
) -> dict[str, dict[str, dict[str, float]]]:
    """Queries per second of both, on random unit vectors of the size of MUGE's validation split.

    Args:
      num_queries: texts.
      num_items: images.
      dim: length of the features.
      peer_queries: how many of the texts the original gets.
      rounds: timed runs of each, of which the median counts.

    Returns:
      Title of a table -> row -> column -> number.

    Raises:
      RuntimeError: if the two find different images.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, num_queries, num_items, dim, peer_queries)
        spawn = get_context("spawn")
        with (
            ProcessPoolExecutor(1, spawn) as ours,
            ProcessPoolExecutor(1, spawn) as peer,
        ):
            times: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": []}
            for _ in range(1 + rounds):  # the first compiles
                times["ours"].append(ours.submit(time_ours, folder).result())
                times["peer"].append(peer.submit(time_peer, folder).result())
        check_same(folder)
    rows = {
        "ours": _rates(num_queries, times["ours"][1:]),
        "the original": _rates(peer_queries, times["peer"][1:]),
    }
    rows["ratio"] = {
        column: rows["ours"][column] / rows["the original"][column] for column in rows["ours"]
    }
    return {f"{num_queries:,} texts among {num_items:,} images, {dim} numbers each": rows}


def write_inputs(
    folder: Path, num_queries: int, num_items: int, dim: int, peer_queries: int
) -> None:
    """Random features: ours as arrays, the original's as lines."""
    rng = np.random.default_rng(SEED)
    sizes: dict[Kind, tuple[int, int]] = {
        "image": (num_items, num_items),
        "text": (num_queries, peer_queries),
    }
    for kind, (rows, shared) in sizes.items():
        features = rng.standard_normal((rows, dim), dtype=np.float32)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        ids = np.arange(rows, dtype=np.int64)
        write_features(folder / f"{kind}.npy", Features(ids, features), kind)
        part = Features(ids[:shared], features[:shared])
        write_features(folder / f"{kind}.jsonl", part, kind)


def time_ours(folder: Path) -> tuple[float, float]:
    """Seconds from features to predictions, all queries: of the clock, and of processors."""
    queries, gallery = (_in_memory(folder, kind) for kind in ("text", "image"))
    start, cpu_start = time.perf_counter(), time.process_time()
    write_predictions(folder / "ours.jsonl", predict(queries, gallery, K), "text")
    return time.perf_counter() - start, time.process_time() - cpu_start


def time_peer(folder: Path) -> tuple[float, float]:
    """Seconds of the original's script, some of the queries: of the clock, and of processors."""
    from experiments.chinese_clip.peers.cn_clip_retrieval import run_script

    return run_script(folder / "image.jsonl", folder / "text.jsonl", folder / "peer.jsonl", K)


def _rates(num_queries: int, times: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Queries per second, and per second of a processor: the same on a machine that is busy."""
    seconds, cpu_seconds = (statistics.median(column) for column in zip(*times, strict=True))
    return {"queries/s": num_queries / seconds, "per CPU second": num_queries / cpu_seconds}


def _in_memory(folder: Path, kind: Kind) -> Features:
    ids, features = read_features(folder / f"{kind}.npy", kind)
    return Features(ids, np.array(features))


def check_same(folder: Path) -> None:
    """Refuse to compare two programs that find different images.

    Raises:
      RuntimeError: naming a query.
    """
    ours, peer = (read_predictions(folder / f"{who}.jsonl", "text") for who in ("ours", "peer"))
    differ = [query for query, found in peer.items() if ours[query] != found]
    if differ:
        raise RuntimeError(
            f"{len(differ)} of {len(peer)} queries differ, the first is {differ[0]}: ours "
            f"{ours[differ[0]]}, the original {peer[differ[0]]}"
        )
