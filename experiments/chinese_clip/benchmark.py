r"""Measure Chinese CLIP beside the original (cn_clip 1.6.0), in its environment.

    python -m experiments.chinese_clip.benchmark --suite=speed --json=speed.json
    python -m experiments.chinese_clip.benchmark --suite=speed --device=gpu --model=ViT-L-14 \
        --batch=64,256,1024 --dtype=bfloat16 --peer=fused --peak_tflops=989
    python -m experiments.chinese_clip.benchmark --suite=retrieval

Suites: `speed` (encoding and training steps per second), `compile` (seconds until the first
training step), `retrieval` (ranking a gallery). `experiments/BENCHMARKS.md` holds the numbers last
measured.
"""

import importlib
from typing import cast

from absl import flags

from experiments.chinese_clip.benchmark_speed import (
    ATTENTION,
    PEERS,
    TASKS,
    SpeedSettings,
    compile_times,
    speed,
)
from experiments.common import print_grid, run
from experiments.common.json_file import json_target, write_json
from jaxlab.chinese_clip.model import MODELS
from jaxlab.layers.attention import AttentionImplementation

_SUITE = flags.DEFINE_enum("suite", None, ["speed", "compile", "retrieval"], "What to measure.")
_MODEL = flags.DEFINE_enum("model", "ViT-B-16", sorted(MODELS), "Published size.")
_DEPTH = flags.DEFINE_integer("depth", 0, "Layers of both towers; 0: as published.", 0)
_TASKS = flags.DEFINE_list("tasks", list(TASKS), f"What to time, of {', '.join(TASKS)}.")
_BATCH = flags.DEFINE_list("batch", ["8"], "Pairs of a batch; several are timed one by one.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")
_DEVICE = flags.DEFINE_enum("device", "cpu", ["cpu", "gpu"], "Of both.")
_PEER = flags.DEFINE_enum("peer", "original", PEERS, "fused: torch's attention in its BERT, too.")
_ATTENTION = flags.DEFINE_enum("attention", "auto", ATTENTION, "Ours.")
_SCAN = flags.DEFINE_bool("scan", False, "Compile one layer a tower (ours).")
_THREADS = flags.DEFINE_integer("threads", 2, "Processors of each process.", 1)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Timed runs, of which the median counts.", 1)
_PEAK = flags.DEFINE_float("peak_tflops", None, "Of the device, for the share that is reached.")


def main() -> None:
    """Run a suite, print its table, save its numbers."""
    if _SUITE.value is None:
        raise ValueError("--suite is missing; give speed, compile or retrieval")
    target = json_target()
    if _SUITE.value == "retrieval":
        # A suite of its own, loaded when it is asked for.
        found = importlib.import_module("experiments.chinese_clip.benchmark_retrieval").run()
    else:
        measure = speed if _SUITE.value == "speed" else compile_times
        found = {
            f"{_MODEL.value}, {_DTYPE.value}, batches of {settings.batch_size}": measure(settings)
            for settings in _all_settings()
        }
    for title, grid in found.items():
        print_grid(grid, title)
    if target is not None:
        write_json(target, found)


def _all_settings() -> list[SpeedSettings]:
    if wrong := [text for text in _BATCH.value if not text.isdecimal() or int(text) < 2]:
        raise ValueError(f"--batch={','.join(_BATCH.value)} has {wrong}; wanted integers from 2")
    return [
        SpeedSettings(
            model=_MODEL.value,
            depth=_DEPTH.value,
            tasks=tuple(_TASKS.value),
            batch_size=int(size),
            dtype=_DTYPE.value,
            device=_DEVICE.value,
            peer=_PEER.value,
            attention=cast(AttentionImplementation, _ATTENTION.value),
            scan=_SCAN.value,
            threads=_THREADS.value,
            rounds=_ROUNDS.value,
            peak_tflops=_PEAK.value,
        )
        for size in _BATCH.value
    ]


if __name__ == "__main__":
    run(main)
