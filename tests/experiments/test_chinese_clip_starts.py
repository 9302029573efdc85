"""What a stage starts from, and the length of stages given in epochs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.chinese_clip.settings import RunConfig, StageConfig
from experiments.chinese_clip.starts import check_sources, stage_start, whole_model
from experiments.chinese_clip.tasks import count_steps
from jaxlab import chinese_clip as clip
from jaxlab import parallel, training
from jaxlab.checkpoints.foreign.names import flatten
from jaxlab.checkpoints.foreign.torch_zip import write_torch_zip
from jaxlab.checkpoints.run import RunCheckpoints
from jaxlab.chinese_clip.model import abstract_variables
from jaxlab.chinese_clip.published import config_to_dict
from jaxlab.chinese_clip.weights import original_state_dict
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.positions import resize_positions
from jaxlab.layers.vit import VisionTransformerConfig

MODEL = clip.ChineseClipConfig(
    VisionTransformerConfig(8, 4, 1, 8, 2, 16, 6),
    BertConfig(num_layers=1, width=8, num_heads=2, mlp_width=16, max_positions=12),
    context_length=8,
)
STAGE = StageConfig(
    num_steps=20,
    global_batch_size=8,
    optimizer=training.OptimizerConfig(learning_rate=1.0, warmup_steps=10),
)
RULES = parallel.ShardingRules.replicated()


def draw(config, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), abstract_variables(config)
    )


@pytest.fixture(scope="module")
def mine():
    return draw(MODEL, 0)


@pytest.fixture(scope="module")
def theirs():
    return draw(MODEL, 1)


def make_tx(stage=STAGE):
    return training.make_optimizer(stage.optimizer, stage.num_steps)


def begin(stage, workdir, variables, tx=None):
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    return stage_start(stage, MODEL, workdir, variables, tx or make_tx(), mesh, RULES)


@pytest.fixture
def other_run(tmp_path, theirs):
    """A run that has saved step 6: its moments are 0.5, its schedule at 6."""
    parts = clip.split_variables(theirs, image_locked=False)
    state = training.TrainState.create(parts.params, make_tx(), jax.random.key(9))
    moved = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.5), state.opt_state[0].mu)
    opt_state = (state.opt_state[0]._replace(mu=moved), *state.opt_state[1:])
    state = dataclasses.replace(state, step=jnp.int32(6), opt_state=training.at_step(opt_state, 6))
    with RunCheckpoints(tmp_path / "other/checkpoints") as checkpoints:
        checkpoints.save(6, state)
    return tmp_path / "other"


def next_rate(state, tx):
    """The rate that the next update has."""
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    return float(training.learning_rate(tx.update(zeros, state.opt_state, state.params)[1]))


@pytest.mark.parametrize("reset_optimizer", [True, False])
@pytest.mark.parametrize("reset_data_offset", [True, False])
def test_another_run_goes_on_without_its_optimizer_or_its_position(
    tmp_path, mine, theirs, other_run, reset_optimizer, reset_data_offset
):
    stage = dataclasses.replace(
        STAGE, continue_from=str(other_run), reset_optimizer=reset_optimizer,
        reset_data_offset=reset_data_offset,
    )  # fmt: skip
    start = begin(stage, tmp_path / "new", mine)
    if not (reset_optimizer or reset_data_offset):  # the loop's own affair
        assert start.config == stage
        return
    assert start.config.continue_from == ""
    jax.tree.map(np.testing.assert_array_equal, start.state.params, theirs["params"])
    step = 0 if reset_data_offset else 6
    assert int(start.state.step) == step
    moment = float(start.state.opt_state[0].mu["logit_scale"])
    assert moment == (0.0 if reset_optimizer else 0.5)
    # The schedule goes by the step, whatever became of the moments: (step + 1) / 10 of the rate.
    assert next_rate(start.state, make_tx()) == pytest.approx((step + 1) / 10)


def test_without_its_optimizer_a_run_may_go_on_with_another_one(tmp_path, mine, other_run):
    lion = training.OptimizerConfig(name="lion", learning_rate=1e-3)
    stage = dataclasses.replace(
        STAGE, continue_from=str(other_run), reset_optimizer=True, optimizer=lion
    )
    assert int(begin(stage, tmp_path / "new", mine, make_tx(stage)).state.step) == 6


def test_a_run_of_ones_own_comes_before_any_other(tmp_path, mine, other_run):
    stage = dataclasses.replace(STAGE, continue_from="nowhere", reset_optimizer=True)
    start = begin(stage, other_run, mine)
    jax.tree.map(np.testing.assert_array_equal, start.state.params, mine["params"])


@pytest.fixture
def trainer_file(tmp_path, theirs):
    """What the original's trainer leaves, with our sizes, which its own files do not need."""
    tensors = original_state_dict(theirs, MODEL)
    state_dict = {f"module.{name}": array for name, array in tensors.items()}
    tree = {"epoch": 2, "step": 7, "name": "run", "state_dict": state_dict, "optimizer": {}}
    tree["config"] = json.dumps(config_to_dict(MODEL))
    write_torch_zip(tmp_path / "epoch_latest.pt", tree)
    return tmp_path / "epoch_latest.pt"


@pytest.mark.parametrize("image_locked", [True, False])
def test_a_file_of_the_originals_trainer_gives_weights_and_step(
    tmp_path, mine, theirs, trainer_file, image_locked
):
    stage = dataclasses.replace(
        STAGE, continue_from=str(trainer_file), reset_optimizer=True, image_locked=image_locked
    )
    start = begin(stage, tmp_path / "new", mine)
    joined = clip.join_variables(start.state.params, start.frozen, start.state.extra)
    jax.tree.map(np.testing.assert_array_equal, joined, theirs)
    assert int(start.state.step) == 7 and start.config.continue_from == ""
    assert next_rate(start.state, make_tx()) == pytest.approx(0.8)
    start = begin(dataclasses.replace(stage, reset_data_offset=True), tmp_path / "new", mine)
    assert int(start.state.step) == 0


def test_what_cannot_be_continued_is_told(tmp_path, mine, trainer_file):
    stage = dataclasses.replace(STAGE, continue_from=str(trainer_file))
    with pytest.raises(ValueError, match="optimizer state is not read; set reset_optimizer=True"):
        begin(stage, tmp_path / "new", mine)
    short = dataclasses.replace(stage, reset_optimizer=True, num_steps=7)
    with pytest.raises(ValueError, match="is at step 7, and the stage ends at num_steps=7"):
        begin(short, tmp_path / "new", mine)
    missing = dataclasses.replace(STAGE, continue_from="nowhere", reset_optimizer=True)
    with pytest.raises(FileNotFoundError):
        begin(missing, tmp_path / "new", mine)
    with pytest.raises(ValueError, match="reset_optimizer and reset_data_offset say how"):
        dataclasses.replace(STAGE, reset_optimizer=True)


def test_a_whole_model_starts_a_run_with_its_positions_resized(tmp_path, mine):
    clip.save_published(tmp_path / "model", mine, MODEL)
    larger = dataclasses.replace(
        MODEL, vision=dataclasses.replace(MODEL.vision, image_size=12), context_length=12
    )
    found = flatten(whole_model(str(tmp_path / "model"), larger))
    wanted = {path: leaf.shape for path, leaf in flatten(abstract_variables(larger)).items()}
    assert {path: leaf.shape for path, leaf in found.items()} == wanted
    name = "params/visual/positional_embedding"
    np.testing.assert_array_equal(found.pop(name), resize_positions(flatten(mine)[name], 3))
    for path, leaf in found.items():
        np.testing.assert_array_equal(leaf, flatten(mine)[path])


def test_a_model_of_other_sizes_or_without_a_tower_is_refused_by_name(tmp_path, mine):
    clip.save_published(tmp_path / "model", mine, MODEL)
    other = dataclasses.replace(MODEL, text=dataclasses.replace(MODEL.text, num_heads=4))
    with pytest.raises(ValueError, match=r"text.num_heads: 4 in the config, 2 in the weights"):
        whole_model(str(tmp_path / "model"), other)
    sizes = r"is a model of its own sizes, and the config's is ViT-B-16: vision\.patch_size: 16 in"
    with pytest.raises(ValueError, match=f"{sizes}.* Give the config for that size"):
        whole_model(str(tmp_path / "model"), clip.MODELS["ViT-B-16"])
    tower = {"params": {"visual": mine["params"]["visual"]}}
    clip.save_published(tmp_path / "tower", tower, MODEL)
    with pytest.raises(ValueError, match=r"lacks \['bert', 'logit_scale', 'text_projection'\]"):
        whole_model(str(tmp_path / "tower"), MODEL)
    with pytest.raises(ValueError, match="holds both towers"):
        RunConfig(model=MODEL, stage_1=STAGE, weights="a", image_tower="b")


@pytest.mark.parametrize("setting", ["weights", "teacher", "image_tower", "text_tower"])
def test_weights_that_are_not_there_are_told_by_the_setting_that_names_them(setting):
    config = RunConfig(model=MODEL, stage_1=STAGE, **{setting: "runs/absent"})
    with pytest.raises(
        FileNotFoundError, match=f"^--config.{setting}=runs/absent: .*absent'? (is|d)"
    ):
        check_sources(config)


def test_a_tower_is_no_teacher_and_no_whole_model(tmp_path, mine):
    write_torch_zip(tmp_path / "tower.pt", {"visual.conv1.weight": np.zeros((1, 3, 2, 2), "f4")})
    for setting in ("weights", "teacher"):
        config = RunConfig(model=MODEL, stage_1=STAGE, **{setting: str(tmp_path / "tower.pt")})
        with pytest.raises(ValueError, match=f"^--config.{setting}=.* and no whole Chinese CLIP"):
            check_sources(config)


@pytest.mark.parametrize(
    ("num_examples", "batch", "parts", "remainder", "steps"),
    [
        (100, 10, 1, "wrap", 10),
        (101, 10, 1, "wrap", 11),
        (101, 10, 1, "drop", 10),
        (101, 10, 2, "wrap", 10),  # floor(ceil(101 / 5) / 2)
        (5, 10, 1, "carry", 1),
        (5, 10, 1, "drop", 1),
    ],
)
def test_epochs_are_counted_as_the_original_counts_them(
    num_examples, batch, parts, remainder, steps
):
    stage = StageConfig(num_epochs=1, global_batch_size=batch, microbatch_size=batch // parts)
    assert count_steps(num_examples, stage, remainder) == steps


def test_steps_come_before_epochs_and_intervals_turn_into_steps():
    stage = StageConfig(num_epochs=2.5, global_batch_size=8, eval_every_epochs=0.5,
                        save_every_epochs=1)  # fmt: skip
    resolved = stage.with_steps(7)
    assert resolved.num_steps == 17
    assert (resolved.eval_every_steps, resolved.save_every_steps) == (3, 7)
    assert resolved.with_steps(100).num_steps == 17
    fixed = dataclasses.replace(stage, num_steps=5, eval_every_steps=2)
    assert fixed.with_steps(7).num_steps == 5 and fixed.with_steps(7).eval_every_steps == 2
    assert not STAGE.counts_epochs and stage.counts_epochs


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "num_steps=0 and num_epochs=0: wanted one of them positive"),
        ({"num_epochs": -1.0}, "num_epochs=-1.0 is negative"),
        ({"num_epochs": 1, "result": "best"}, "result='best' needs keep_best"),
        ({"num_epochs": 1, "cached_views": 2}, "cached_views=2 needs image_locked=True"),
        ({"num_epochs": 1, "log_every_steps": 0}, "log_every_steps=0 must be at least 1"),
    ],
)
def test_stages_that_contradict_themselves_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        StageConfig(global_batch_size=8, **fields)
