"""The tiny config from end to end: minutes of training, with the bars that it must meet."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
GIB = 2**30

BARS = {
    "unseen_drawing/image_to_text_r1": 31.0,
    "unseen_drawing/image_to_text_r10": 71.0,
    "unseen_combination/image_to_text_r1": 22.0,
    "unseen_combination/image_to_text_r10": 76.0,
    "unseen_concept/category_mean_per_class": 47.0,
}


@pytest.mark.tiny
@pytest.mark.timeout(2400)
def test_tiny_config_meets_its_bars_within_4_gib(tmp_path):
    # Without the single thread that the test settings give to every worker.
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run(
        [
            *(sys.executable, "-m", "experiments.chinese_clip.train"),
            *("--config=configs/chinese_clip/tiny.py", f"--workdir={tmp_path}"),
        ],
        cwd=CHECKOUT,
        env=env,
        check=True,
    )
    results = json.loads((tmp_path / "results.json").read_text("utf-8"))
    missed = {name: results[name] for name, bar in BARS.items() if results[name] < bar}
    assert not missed, f"below the bars: {missed}"
    assert results["unseen_drawing/image_to_text_r1"] > results["floor/unseen_drawing_r1"]
    assert results["unseen_concept/category_mean_per_class"] > results["floor/category_chance"]
    assert (tmp_path / "retrieval.png").stat().st_size > 10_000
    # Kibibytes on Linux; the largest of the children that have ended.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < 4 * GIB
