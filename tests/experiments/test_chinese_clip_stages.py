"""The stages of a run on a tiny model: devices, resumption, pairs of one's own, cached features."""

import dataclasses
import io
import itertools
import logging
import shutil
import types

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from experiments.chinese_clip import starts, tasks, train
from experiments.chinese_clip.settings import RunConfig, StageConfig
from jaxlab import chinese_clip as clip
from jaxlab import parallel
from jaxlab.checkpoints.foreign.names import flatten
from jaxlab.checkpoints.run import RunCheckpoints
from jaxlab.chinese_clip.data import PairDataConfig, prepare_pixels
from jaxlab.chinese_clip.emoji import compose_inputs, make_prepare
from jaxlab.chinese_clip.evaluate import encode
from jaxlab.chinese_clip.model import abstract_variables
from jaxlab.data.augment import AugmentConfig
from jaxlab.data.device_augment import NO_AUGMENTATION
from jaxlab.data.emoji import load_emoji
from jaxlab.data.images import decode_image, normalize, squash_resize
from jaxlab.data.pairs import ImageRecord, TextRecord, write_images_tsv, write_texts
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.resnet import ModifiedResNetConfig
from jaxlab.training import OptimizerConfig, read_metrics, read_results

ROWS, STEPS = 16, 4
MODEL = clip.ChineseClipConfig(
    ModifiedResNetConfig(8, 16, (1,), expansion=2, num_heads=2, output_dim=16, stem_pool=1),
    BertConfig(
        num_layers=1, width=32, num_heads=2, mlp_width=32, max_positions=8, hidden_dropout=0.0,
        attention_dropout=0.0,
    ),
    context_length=8,
)  # fmt: skip
# Plain descent: Adam would turn the rounding of a gradient that is zero into steps.
OPTIMIZER = OptimizerConfig(name="sgd", learning_rate=0.05, warmup_steps=1)
STAGE = StageConfig(
    num_steps=STEPS, global_batch_size=ROWS, save_every_steps=2, log_every_steps=1,
    optimizer=OPTIMIZER,
)  # fmt: skip
CONFIG = RunConfig(
    model=MODEL, stage_1=dataclasses.replace(STAGE, image_locked=True, seed=3), stage_2=STAGE
)


@pytest.fixture(scope="module", autouse=True)
def shared_programs(tmp_path_factory):
    """Keeps compiled programs while this module runs: its runs differ in data only."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def start():
    """Variables drawn by NumPy, which compiles nothing."""
    rng = np.random.default_rng(1)
    drawn = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape, scale=0.4).astype(np.float32),
        abstract_variables(MODEL),
    )
    drawn["batch_stats"] = jax.tree.map(lambda a: 1 + np.abs(a), drawn["batch_stats"])
    drawn["params"]["logit_scale"] = np.float32(2.0)
    return drawn


def batch_at(step):
    rng = np.random.default_rng(step)
    return {
        "image": rng.integers(0, 256, (ROWS, 8, 8, 3)).astype(np.uint8),
        "ids": rng.integers(1, 21128, (ROWS, 8)).astype(np.int32),
        "example_id": np.arange(ROWS, dtype=np.int64),
    }


class Killed(Exception):
    """Stands for the end of a process."""


def make_task(killed_at=None):
    """A task whose batches are functions of the step; it dies when it loads the one named."""

    def make_batches(stage, features):
        def batches(start_step):
            for step in itertools.count(start_step):
                if (stage.image_locked, step) == killed_at:
                    raise Killed
                yield batch_at(step)

        return batches

    nothing = types.SimpleNamespace()
    return tasks.Task(prepare_pixels, make_batches, *[nothing] * 5)


def run_stages(workdir, start, task, mesh, config=CONFIG):
    """Both stages as `train.main` runs them; the variables after each."""
    model = clip.ChineseClip(MODEL)
    after = [start]
    for name in ("stage_1", "stage_2"):
        stage = getattr(config, name)
        after.append(train.run_stage(config, stage, workdir / name, task, model, after[-1], mesh))
    return after[1:]


@pytest.fixture(scope="module")
def one_device():
    return parallel.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, start, one_device):
    """Workdir of a run of both stages on one device, and the variables after each."""
    workdir = tmp_path_factory.mktemp("unbroken")
    return workdir, run_stages(workdir, start, make_task(), one_device)


def test_stages_lock_and_train_what_they_should(start, unbroken):
    _, (first, second) = unbroken
    before, first, second = flatten(start), flatten(first), flatten(second)
    for path, array in first.items():
        locked = path.startswith(("params/visual/", "batch_stats/"))
        still = locked or path.endswith("attention/key/bias")  # whose gradient is zero
        changed = not np.array_equal(array, before[path])
        assert changed != locked or still, path
    moved = [p for p in second if not np.array_equal(second[p], first[p])]
    assert {p for p in second if p.startswith("batch_stats/")} <= set(moved)
    assert len(moved) >= len(second) - 2


def test_eight_devices_train_both_stages_to_the_numbers_of_one(tmp_path, start, unbroken):
    workdir, wanted = unbroken
    found = run_stages(tmp_path, start, make_task(), parallel.make_mesh())
    for one, other in zip(found, wanted, strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, other
        )
    for name in ("stage_1", "stage_2"):
        losses = [
            [r["train/loss"] for r in read_metrics(folder / name)] for folder in (tmp_path, workdir)
        ]
        np.testing.assert_allclose(*losses, rtol=1e-5)
        assert len(losses[0]) == STEPS and losses[0][-1] < losses[0][0]


def test_the_best_model_by_validation_is_the_result_of_a_stage_in_epochs(
    tmp_path, start, unbroken, one_device
):
    measured = iter([50.0, 60.0, 55.0, 54.0])
    task = make_task()._replace(
        steps_per_epoch=lambda stage: 1,
        validate=lambda model, variables: {"valid/mean_recall": next(measured)},
    )
    stage = dataclasses.replace(
        STAGE, num_steps=0, num_epochs=4, eval_every_epochs=1, save_every_steps=0, keep_best=1,
        best_metric="valid/mean_recall", result="best",
    )  # fmt: skip
    first = unbroken[1][0]
    model = clip.ChineseClip(MODEL)
    after = train.run_stage(CONFIG, stage, tmp_path, task, model, first, one_device)
    # That of step 2, where the unbroken run has a checkpoint too.
    with RunCheckpoints(unbroken[0] / "stage_2/checkpoints", read_only=True) as checkpoints:
        wanted = checkpoints.restore_params(2)
    jax.tree.map(np.testing.assert_array_equal, after["params"], wanted)
    results = read_results(tmp_path)
    assert results["best/step"] == 2 and results["step"] == 4


# Killed inside the first stage; between them, before the second has done a step; inside it.
@pytest.mark.parametrize("killed_at", [(True, 3), (False, 0), (False, 3)])
def test_a_killed_run_ends_with_the_same_numbers(
    tmp_path, start, unbroken, one_device, killed_at, caplog
):
    workdir, wanted = unbroken
    with pytest.raises(Killed):
        run_stages(tmp_path, start, make_task(killed_at), one_device)
    with caplog.at_level(logging.INFO, logger="jaxlab"):
        found = run_stages(tmp_path, start, make_task(), one_device)
    for one, other in zip(found, wanted, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    for name in ("stage_1", "stage_2"):
        logs = [(folder / name / "metrics.jsonl").read_bytes() for folder in (tmp_path, workdir)]
        assert logs[0] == logs[1]
    stage, step = ("stage_1" if killed_at[0] else "stage_2"), killed_at[1]
    resumed = f"{tmp_path / stage} has a checkpoint of step 2: continuing" in caplog.text
    assert resumed == (step > 0)
    assert (f"{tmp_path / 'stage_1'} has ended: nothing to train" in caplog.text) != killed_at[0]


def with_first_stage(**fields):
    return dataclasses.replace(CONFIG, stage_1=dataclasses.replace(CONFIG.stage_1, **fields))


def check_stages(config, workdir):
    starts.check_stages(config, workdir, lambda stage: stage.with_steps(2))


@pytest.mark.parametrize("length", [{"num_steps": 7}, {"num_steps": 0, "num_epochs": 3.0}])
def test_the_first_stage_is_not_trained_on_below_a_second_one(unbroken, length):
    workdir, _ = unbroken
    with pytest.raises(ValueError, match=r"stage_1, which is at step 4, and would now end at") as e:
        check_stages(with_first_stage(**length), workdir)
    assert "--config.stage_1.num_steps=4 to leave it" in str(e.value)
    assert f"or remove {workdir / 'stage_2'}, and stage_2 is trained anew" in str(e.value)


def test_a_second_stage_whose_first_has_gone_goes_on_alone(tmp_path, unbroken, caplog):
    shutil.copytree(unbroken[0] / "stage_2", tmp_path / "stage_2")
    with pytest.raises(ValueError, match=r"has no checkpoint.* --config\.stage_1=None to go on"):
        check_stages(CONFIG, tmp_path)
    check_stages(dataclasses.replace(CONFIG, stage_1=None), tmp_path)
    (tmp_path / "stage_2").rename(tmp_path / "stage_1")
    check_stages(with_first_stage(num_steps=7), tmp_path)  # no second stage: it is trained on
    assert "has ended" not in caplog.text


def test_settings_that_a_finished_stage_was_not_trained_with_are_named(unbroken, caplog):
    workdir, _ = unbroken
    longer = dataclasses.replace(CONFIG, stage_2=dataclasses.replace(STAGE, num_steps=9))
    with caplog.at_level(logging.WARNING, logger="experiments"):
        check_stages(CONFIG, workdir)
        check_stages(longer, workdir)  # the last stage goes on: the loop says with what
        assert not caplog.messages
        check_stages(with_first_stage(log_every_steps=3), workdir)
    (message,) = caplog.messages
    assert message.startswith(f"{workdir / 'stage_1'} has ended and is not trained again")
    assert "since: stage_1.log_every_steps: 1 -> 3; give another --workdir" in message


def test_a_calibration_of_another_model_is_set_aside(tmp_path, start, caplog):
    clip.save_published(tmp_path, start, MODEL)
    calibration = tmp_path / "calibration.json"
    calibration.write_text("{}")
    train.set_calibration_aside(tmp_path, start)
    assert calibration.is_file() and not caplog.messages
    scaled = {**start["params"], "logit_scale": start["params"]["logit_scale"] + np.float32(1)}
    train.set_calibration_aside(tmp_path, {**start, "params": scaled})
    assert not calibration.exists() and (tmp_path / "calibration.old.json").read_text() == "{}"
    assert "is now calibration.old.json; fit it again" in caplog.text
    train.set_calibration_aside(tmp_path, start)  # none is there


@pytest.fixture(scope="module")
def pictures():
    """Twenty emoji as PNG files."""
    pictures = []
    for encoded in load_emoji().encoded_images("google")[:20]:
        buffer = io.BytesIO()
        with Image.open(io.BytesIO(encoded)) as image:
            image.convert("RGBA").save(buffer, "PNG")
        pictures.append(buffer.getvalue())
    return pictures


@pytest.fixture
def folder(tmp_path, pictures):
    names = load_emoji().names_zh
    for split in ("train", "valid"):
        write_images_tsv(
            tmp_path / f"{split}_imgs.tsv", [ImageRecord(i, p) for i, p in enumerate(pictures)]
        )
        write_texts(
            tmp_path / f"{split}_texts.jsonl",
            [TextRecord(100 + i, names[i], (i,)) for i in range(len(pictures))],
        )
    return tmp_path


def break_image(path, pictures, number):
    images = [ImageRecord(i, p) for i, p in enumerate(pictures)]
    images[number] = ImageRecord(number, b"no picture")
    write_images_tsv(path, images)


def pairs_config(folder, **fields):
    pairs = PairDataConfig(
        folder=str(folder), augmentation=AugmentConfig(auto_augment=False), **fields
    )
    stage = dataclasses.replace(STAGE, num_steps=2)
    return dataclasses.replace(CONFIG, data="pairs", pairs=pairs, stage_1=None, stage_2=stage)


def train_on_pairs(folder, start, mesh, **fields):
    config = pairs_config(folder, **fields)
    task, model = tasks.make_task(config), clip.ChineseClip(MODEL)
    variables = train.run_stage(config, config.stage_2, folder / "run", task, model, start, mesh)
    return task.evaluate(model, variables)


def test_pairs_of_ones_own_train_and_are_retrieved(folder, start, one_device):
    evaluation = train_on_pairs(folder, start, one_device)
    records = read_metrics(folder / "run")
    assert [record["step"] for record in records] == [1, 2]
    assert all(np.isfinite(value) for record in records for value in record.values())
    directions = ("image_to_text", "text_to_image")
    assert evaluation.metrics.keys() >= {f"valid/{d}_r{k}" for d in directions for k in (1, 5, 10)}
    assert all(0 <= value <= 100 for value in evaluation.metrics.values())
    assert evaluation.draw is None
    assert tasks.make_task(pairs_config(folder)).floors() == tasks.Floors({}, {})


def test_a_corrupt_picture_stops_the_run_by_name(folder, pictures, start, one_device):
    break_image(folder / "train_imgs.tsv", pictures, 7)
    with pytest.raises(ValueError, match=r"image of example 7 \(image_id 7\): 10 bytes that begin"):
        train_on_pairs(folder, start, one_device)


def test_corrupt_pictures_are_skipped_and_counted_where_asked(
    folder, pictures, start, one_device, caplog
):
    break_image(folder / "train_imgs.tsv", pictures, 7)
    break_image(folder / "valid_imgs.tsv", pictures, 9)
    with caplog.at_level(logging.WARNING, logger="jaxlab"):
        evaluation = train_on_pairs(folder, start, one_device, on_error="skip")
    assert "record 7 is corrupt, skipped (1 so far)" in caplog.text
    assert read_metrics(folder / "run")[-1]["step"] == 2
    # The picture and its text are out of the evaluation too: 19 of each.
    share = evaluation.metrics["valid/image_to_text_r1"] * 19 / 100
    assert share == pytest.approx(round(share), abs=1e-6)
    assert "valid_imgs.tsv" in caplog.text and "skipped 1 broken records" in caplog.text


def test_a_mistake_in_the_evaluated_pairs_shows_before_training(folder, pictures):
    break_image(folder / "valid_imgs.tsv", pictures, 9)
    with pytest.raises(ValueError, match=r"valid_imgs\.tsv"):
        tasks.make_task(pairs_config(folder))
    (folder / "valid_imgs.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"valid_imgs\.tsv"):
        tasks.make_task(pairs_config(folder))
    task = tasks.make_task(pairs_config(folder, eval_split=""))
    assert task.evaluate(clip.ChineseClip(MODEL), {}).metrics == {}


def test_features_of_pairs_are_cached_on_disk_and_trained_on(
    folder, pictures, start, one_device, caplog
):
    config = pairs_config(folder, augment=False, eval_split="", eval_batch_size=8)
    stage = dataclasses.replace(
        config.stage_2, image_locked=True, cached_views=2, num_steps=0, num_epochs=1.0
    )
    config = dataclasses.replace(config, stage_1=stage, stage_2=None)
    task, model = tasks.make_task(config), clip.ChineseClip(MODEL)
    with caplog.at_level(logging.INFO, logger="experiments"):
        after = train.run_stage(config, stage, folder / "run", task, model, start, one_device)
    assert "2 steps an epoch, 2 in all" in caplog.text  # 20 pairs in batches of 16
    assert "does not run in 2 steps of 16 pairs" in caplog.text
    assert [record["step"] for record in read_metrics(folder / "run")] == [1, 2]
    moved = after["params"]["text_projection"] != start["params"]["text_projection"]
    assert moved.any()

    features = np.load(folder / "run" / "features" / "features_00000.npy", mmap_mode="r")
    assert features.shape == (20, 2, 16)
    pixels = np.stack([squash_resize(decode_image(picture), 8) for picture in pictures])
    tower = jax.jit(lambda variables, x: encode(model, variables, normalize(x), "encode_image"))
    wanted = tower(start, pixels)
    for view in range(2):  # without augmentation all views are the same
        np.testing.assert_allclose(features[:, view], wanted, rtol=0, atol=1e-5)

    other = jax.tree.map(lambda leaf: leaf + 1, start)
    with pytest.raises(ValueError, match="holds features of something else: tower: "):
        task.cache_features(model, other, stage, folder / "run" / "features")


def test_cached_views_are_the_features_of_the_locked_tower(start):
    # 300 drawings: a whole batch and a part of one. Without augmentation every view is the same.
    rng = np.random.default_rng(0)
    drawings = rng.integers(0, 256, (2, 170, 64, 64, 4)).astype(np.uint8)
    rows = np.argwhere(np.ones((2, 170), bool))[:300].astype(np.int32)
    split, model = types.SimpleNamespace(train=rows), clip.ChineseClip(MODEL)

    def cache(augment, seed):
        stage = dataclasses.replace(STAGE, image_locked=True, cached_views=2, seed=seed)
        return tasks.cache_views(model, start, make_prepare(augment, 8), drawings, split, stage)

    plain = cache(NO_AUGMENTATION, 0)
    assert plain.shape == (2, 2, 170, 16) and plain.dtype == np.float32
    np.testing.assert_allclose(plain[0], plain[1], rtol=0, atol=1e-6)

    @jax.jit
    def features_of(variables, drawings):
        return encode(model, variables, compose_inputs(drawings, 8), "encode_image")

    wanted = features_of(start, drawings[:, :40].reshape(80, 64, 64, 4))
    np.testing.assert_allclose(plain[0, :, :40].reshape(80, 16), wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(plain[0, 0], axis=1), 1.0, rtol=1e-5)
    assert not plain[:, 1, 130:].any(), "drawings that are not trained on stay unseen"

    augment = dataclasses.replace(NO_AUGMENTATION, background_probability=1.0, hue=1.0)
    views = cache(augment, 0)
    np.testing.assert_array_equal(views, cache(augment, 0))
    assert np.abs(views[0] - views[1]).max() > 1e-3
    assert np.abs(views - cache(augment, 1)).max() > 1e-3


@pytest.fixture(scope="module")
def emoji_task():
    return tasks.make_task(CONFIG)


def test_an_emoji_batch_holds_every_concept_once(emoji_task):
    stage = dataclasses.replace(STAGE, global_batch_size=512)
    batches = emoji_task.make_batches(stage, None)(0)
    for _ in range(10):  # three epochs
        batch = next(batches)
        assert len(np.unique(batch["example_id"])) == 512
        assert batch["image"].shape == (512, 64, 64, 4) and batch["ids"].shape == (512, 8)
    again = emoji_task.make_batches(stage, None)(9)
    jax.tree.map(np.testing.assert_array_equal, batch, next(again))


def test_an_emoji_batch_takes_cached_features_in_place_of_drawings(emoji_task):
    table = np.random.default_rng(0).normal(size=(3, 2, 3786, 4)).astype(np.float32)
    batch = next(emoji_task.make_batches(STAGE, table)(0))
    assert batch.keys() == {"image_features", "ids", "example_id"}
    flat = {row.tobytes() for row in table.reshape(-1, 4)}
    assert all(row.tobytes() in flat for row in batch["image_features"])


def test_floors_are_those_of_the_metrics_beside_which_they_stand(emoji_task):
    floors = emoji_task.floors()
    assert floors.metrics["floor/unseen_drawing_r1"] == pytest.approx(24.08, abs=0.01)
    assert floors.metrics["floor/category_chance"] == 10.0
    assert floors.beside["unseen_drawing/image_to_text_r10"] == pytest.approx(48.69, abs=0.01)
    assert floors.beside["unseen_concept/image_to_text_r10"] == pytest.approx(1000 / 191)
    assert floors.beside["unseen_combination/image_to_text_r1"] == 0.0


def test_a_start_without_a_trained_tower_and_with_one(tmp_path, start):
    tower = {"params": {"visual": start["params"]["visual"]}, "batch_stats": start["batch_stats"]}
    clip.save_published(tmp_path / "tower", tower, MODEL)
    config = dataclasses.replace(CONFIG, image_tower=str(tmp_path / "tower"))
    variables = train.initial_variables(config)
    assert flatten(variables).keys() == flatten(start).keys()
    jax.tree.map(
        np.testing.assert_array_equal, variables["params"]["visual"], start["params"]["visual"]
    )
    jax.tree.map(np.testing.assert_array_equal, variables["batch_stats"], start["batch_stats"])
    assert not np.array_equal(
        variables["params"]["text_projection"], start["params"]["text_projection"]
    )
    with pytest.raises(FileNotFoundError, match="englsh does not exist; give a folder with model"):
        train.initial_variables(dataclasses.replace(CONFIG, image_tower="englsh"))
    with pytest.raises(ValueError, match=r"^--config\.image_tower=english: .*does not fit the mod"):
        train.initial_variables(dataclasses.replace(CONFIG, image_tower="english"))
