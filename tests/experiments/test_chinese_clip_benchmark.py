"""The benchmark beside the original counts work rightly and refuses unequal work."""

import dataclasses
import re

import numpy as np
import pytest

from experiments.chinese_clip import benchmark_speed
from experiments.chinese_clip.benchmark_speed import SpeedSettings, compare, draw_batch
from experiments.common.workers import Timed, Worker
from jaxlab.chinese_clip.model import MODELS, ChineseClip

# GFLOP a sample, counted on the original's graph; texts of 52 tokens.
FLOPS = {
    "RN50": (11.59, 2.23),  # 12.22 with the attention pool's queries that are not used
    "ViT-B-16": (35.13, 8.93),
    "ViT-L-14": (162.03, 8.93),
    "ViT-L-14-336": (381.92, 8.93),
    "ViT-H-14": (334.59, 31.67),
}


def unused(tokens, width, mlp_width):
    """GFLOP of the original's last block for the tokens that nobody reads."""
    a_token = 2 * width * width + 2 * tokens * width + 2 * width * mlp_width
    return 2e-9 * (tokens - 1) * a_token


@pytest.mark.parametrize("name", sorted(FLOPS))
def test_operations_are_those_counted_on_the_original(name):
    config = MODELS[name]
    images, ids = draw_batch(config, 1)
    counted = benchmark_speed.forward_flops(ChineseClip(config, scan=True), images, ids)
    image, text = FLOPS[name]
    if name != "RN50":
        vision = config.vision
        image -= unused(1 + vision.grid_size**2, vision.width, vision.mlp_width)
    text -= unused(52, config.text.width, config.text.mlp_width)
    assert counted == pytest.approx([1e9 * image, 1e9 * text], rel=0.02)


class Fake:
    """A worker whose tasks give fixed values, and take fixed times."""

    def __init__(self, seconds, value=0.5):
        self.seconds, self.value, self.asked = seconds, value, []

    def ask(self, action):
        self.asked.append(action)
        value = 3e12 if action.startswith("flops") else np.full(2, self.value)
        return Timed(value, next(self.seconds), 1.0)


def test_medians_ratio_and_share_of_the_peak():
    ours = Fake(iter([9, 9, 1, 5, 2, 0]))
    peer = Fake(iter([9, 9, 8, 3, 4, 0]))
    settings = SpeedSettings(tasks=("image",), batch_size=4, rounds=3, peak_tflops=6.0)
    row = compare(ours, peer, settings)["image"]
    assert row["ours/s"] == 4 / 2 and row["peer/s"] == 4 / 4
    assert row["ours / peer"] == 2 and row["by CPU time"] == 1
    assert row["TFLOP/s"] == 1.5 and row["of the peak"] == 0.25


@pytest.mark.parametrize(("task", "difference"), [("text", 3e-5), ("train", 2e-4)])
def test_unequal_work_is_refused(task, difference):
    ours, peer = (Fake(iter([1.0] * 9), value) for value in (0.5, 0.5 + difference))
    with pytest.raises(RuntimeError, match="do not do the same work"):
        compare(ours, peer, SpeedSettings(tasks=(task,)))
    assert not any(action.startswith("flops") for action in ours.asked)


def test_unknown_tasks_are_refused():
    with pytest.raises(ValueError, match=re.escape("tasks has ['video']")):
        SpeedSettings(tasks=("image", "video"))


def test_our_side_encodes_and_trains(monkeypatch):
    """At a small size; trimmed texts give the same features, training moves the loss."""
    tiny = MODELS["ViT-B-16"]
    vision = dataclasses.replace(
        tiny.vision, image_size=32, width=32, num_heads=2, mlp_width=64, num_layers=1
    )
    text = dataclasses.replace(tiny.text, width=32, num_heads=2, mlp_width=64, num_layers=1)
    small = dataclasses.replace(tiny, vision=vision, text=text)
    monkeypatch.setattr(benchmark_speed, "published_config", lambda _: small)
    actions = benchmark_speed.make_ours(SpeedSettings(batch_size=3))
    image, text, trimmed = (actions[task]() for task in benchmark_speed.TASKS[:3])
    assert image.shape == text.shape == (3, 512)
    np.testing.assert_allclose(trimmed, text, atol=1e-6)
    losses = [actions["train_without_dropout"]() for _ in range(2)]
    assert np.isfinite(losses).all() and losses[0] != losses[1]
    assert actions["flops of train"]() > 3 * actions["flops of image"]() > 0


def make_two():
    def fail():
        raise ValueError("no such column")

    return {"one": lambda: 1, "fail": fail, "die": lambda: __import__("os")._exit(7)}


def test_a_worker_answers_tells_errors_and_says_when_it_dies():
    with Worker("ours", make_two, threads=1) as worker:
        timed = worker.ask("one")
        assert timed.value == 1 and timed.seconds >= 0 and timed.cpu_seconds >= 0
        with pytest.raises(ValueError, match="no such column"):
            worker.ask("fail")
        with pytest.raises(RuntimeError, match=r"ours died \(exit code 7\).*'die'"):
            worker.ask("die")
