"""A stage whose step has all of it: a teacher, the sigmoid loss, parts of a batch, an average."""

import dataclasses
import itertools
import json
import types

import jax
import numpy as np
import pytest

from experiments.chinese_clip import tasks, train
from experiments.chinese_clip.settings import RunConfig, StageConfig
from jaxlab import chinese_clip as clip
from jaxlab import parallel
from jaxlab.checkpoints.foreign.names import flatten
from jaxlab.checkpoints.run import RunCheckpoints
from jaxlab.chinese_clip.data import prepare_pixels
from jaxlab.chinese_clip.model import abstract_variables
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.vit import VisionTransformerConfig
from jaxlab.training import OptimizerConfig, read_metrics

ROWS, STEPS = 16, 3


def model(size, dim):
    text = BertConfig(num_layers=1, width=16, num_heads=2, mlp_width=16, max_positions=6)
    text = dataclasses.replace(text, vocab_size=30)
    return clip.ChineseClipConfig(VisionTransformerConfig(size, 4, 1, 16, 2, 16, dim), text, 6)


STUDENT, TEACHER = model(8, 6), model(12, 9)
STAGE = StageConfig(
    num_steps=STEPS, global_batch_size=ROWS, microbatch_size=8, log_every_steps=1, mask_ratio=0.5,
    optimizer=OptimizerConfig(learning_rate=1e-2, schedule="constant", ema_decay=0.5),
)  # fmt: skip


def draw(config):
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape, scale=0.4).astype(np.float32),
        abstract_variables(config),
    )


def make_batches(stage, features):
    def batches(start_step):
        for step in itertools.count(start_step):
            rng = np.random.default_rng(step)
            yield {
                "image": rng.integers(0, 256, (ROWS, 8, 8, 3)).astype(np.uint8),
                "ids": rng.integers(1, 30, (ROWS, 6)).astype(np.int32),
            }

    return batches


def test_a_stage_takes_all_parts_of_a_step_from_its_settings(tmp_path):
    clip.save_published(tmp_path / "teacher", draw(TEACHER), TEACHER)
    config = RunConfig(
        model=STUDENT,
        loss=clip.LossConfig(kind="sigmoid", chunk_size=5, equal_texts_match=True),
        teacher=str(tmp_path / "teacher"),
        distillation=clip.DistillationConfig(image_map="linear", similarity_weight=0.1),
        stage_2=STAGE,
    )
    nothing = types.SimpleNamespace()
    task = tasks.Task(prepare_pixels, make_batches, *[nothing] * 5)
    mesh = parallel.make_mesh(devices=jax.devices()[:2])
    workdir = tmp_path / "stage_2"
    student, start = clip.ChineseClip(STUDENT), draw(STUDENT)
    after = train.run_stage(config, STAGE, workdir, task, student, start, mesh)

    names = {"loss", "pair_loss", "image_distillation_loss", "similarity_distillation_loss", "bias",
             "scale", "image_to_text_accuracy", "text_to_image_accuracy", "grad_norm",
             "learning_rate"}  # fmt: skip
    records = read_metrics(workdir)
    assert len(records) == STEPS
    assert all(r.keys() == {"step", *(f"train/{name}" for name in names)} for r in records)
    assert records[0]["train/bias"] == -10.0 != records[-1]["train/bias"]
    results = json.loads((workdir / "results.json").read_text())
    flops = clip.train_flops(STUDENT, mask_ratio=0.5, teacher=TEACHER, teacher_text=True)
    rate = results["train/examples_per_s"] * flops / 1e12
    assert results["train/tflops_per_s"] == pytest.approx(rate)

    assert after["objective"].keys() == {"bias", "image_map"}
    published = clip.model_variables(after)
    clip.save_published(tmp_path / "model", published, STUDENT)
    assert flatten(published).keys() == flatten(start).keys()
    # What a stage ends with is the average of its parameters.
    with RunCheckpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        last = checkpoints.restore_params()
    moved, average = (
        p["text_projection"] - start["params"]["text_projection"]
        for p in (last, published["params"])
    )
    assert 0 < np.abs(average).mean() < 0.9 * np.abs(moved).mean()


def test_cached_features_leave_nothing_for_a_teacher():
    stage = StageConfig(num_steps=1, global_batch_size=2, image_locked=True, cached_views=2)
    with pytest.raises(ValueError, match=r"stage_1\.cached_views=2 leaves no images for the teach"):
        RunConfig(model=STUDENT, teacher="somewhere", stage_1=stage)
