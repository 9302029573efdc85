"""The original's retrieval script (`cn_clip/eval/make_topk_predictions.py` of 1.6.0), timed."""

import builtins
import contextlib
import io
import runpy
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import torch

# What it prints when the gallery is loaded, and when the last prediction is written.
BEGIN, END = "Begin to compute", "Top-"


def run_script(images: Path, texts: Path, output: Path, k: int = 10) -> tuple[float, float]:
    """Run the script, on the CPU where there is no GPU.

    Args:
      images: features of the gallery, the original's `.jsonl`.
      texts: features of the queries.
      output: the predictions.
      k: items a query gets.

    Returns:
      Seconds from the end of loading the gallery to the last prediction: of the clock, and of
      processors.
    """
    package = find_spec("cn_clip")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("cn_clip is not installed; run in the parity environment")
    script = Path(package.submodule_search_locations[0]) / "eval" / "make_topk_predictions.py"
    arguments = ["--image-feats", images, "--text-feats", texts, "--top-k", k, "--output", output]
    times: dict[str, tuple[float, float]] = {}

    def note_time(*values: object, **_: object) -> None:
        for mark in (BEGIN, END):
            if str(values[0]).startswith(mark):
                times[mark] = time.perf_counter(), time.process_time()

    cuda = torch.Tensor.cuda if torch.cuda.is_available() else _stay
    with (
        mock.patch.object(sys, "argv", [str(script), *map(str, arguments)]),
        mock.patch.object(torch.Tensor, "cuda", cuda),
        mock.patch.object(builtins, "print", note_time),
        contextlib.redirect_stderr(io.StringIO()),  # its progress bars
    ):
        runpy.run_path(str(script), run_name="__main__")
    seconds, cpu_seconds = (
        end - begin for begin, end in zip(times[BEGIN], times[END], strict=True)
    )
    return seconds, cpu_seconds


def _stay(tensor: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    return tensor
