"""The memory of a training step: what sharding and recomputing save, on virtual devices."""

import dataclasses

import pytest

from experiments.chinese_clip import memory
from experiments.chinese_clip.recipes import pretraining
from jaxlab import parallel

DEVICES = 8


RECIPE = pretraining("vit_h_14", stage_1_epochs=0, stage_2_epochs=1, stage_2_batch=64)
STAGE = dataclasses.replace(RECIPE.stage_2, num_steps=5001, global_batch_size=DEVICES)


def small(config):
    """The recipe with one small block a tower."""
    vision = dataclasses.replace(
        config.model.vision, image_size=28, num_layers=1, width=128, num_heads=4, mlp_width=512,
        output_dim=64,
    )  # fmt: skip
    text = dataclasses.replace(
        config.model.text, vocab_size=512, num_layers=1, width=128, num_heads=4, mlp_width=512
    )
    model = dataclasses.replace(config.model, vision=vision, text=text, context_length=8)
    loss = dataclasses.replace(config.loss, kind="dense")
    return dataclasses.replace(config, model=model, loss=loss, dtype="float32", remat=False)


def test_fsdp_divides_parameters_and_optimizer_of_h_14_by_the_number_of_devices():
    mesh = memory.virtual_mesh(DEVICES)
    held = {}
    for sharding in ("replicated", "fsdp"):
        config = dataclasses.replace(RECIPE, sharding=sharding)
        _, state, _, _ = memory.abstract_step(config, STAGE, mesh)
        held[sharding] = [memory.bytes_per_device(t) for t in (state.params, state.opt_state)]
    params, moments = held["replicated"]
    assert params == 4 * 957_598_209
    assert moments == pytest.approx(2 * params, abs=64)  # and a few scalars
    # All is divided but norms, biases and the class token, too small to be worth it.
    for whole, share in zip(held["replicated"], held["fsdp"], strict=True):
        assert whole / DEVICES < share < 1.01 * whole / DEVICES


def test_the_compiled_step_is_given_what_the_shardings_say():
    mesh, config = memory.virtual_mesh(DEVICES), small(RECIPE)
    found = memory.step_memory(dataclasses.replace(config, scan=False), STAGE, mesh, 4)
    rows = 4 * (28 * 28 * 3 + 4 * config.model.context_length)
    rest = found.arguments - found.params - found.optimizer - rows
    assert 0 <= rest < 256  # step, key, counters
    assert found.peak >= found.arguments + found.temporaries > found.arguments


def test_a_config_for_emoji_is_refused():
    config = dataclasses.replace(RECIPE, data="emoji")
    with pytest.raises(ValueError, match="data='emoji'; the memory is that of a config for pairs"):
        memory.step_memory(config, STAGE, parallel.make_mesh(), 1)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--remats=yes", "--remats=yes; wanted true or false"),
        ("--shardings=", "--shardings=; wanted"),
    ],
)
def test_choices_that_do_not_exist_are_refused(run_program, flag, message):
    config = "--config=configs/chinese_clip/rn50.py"
    code, _, errors = run_program("chinese_clip.memory", config, flag)
    assert code == 2 and message in errors and "Traceback" not in errors


@pytest.mark.tpu_aot
def test_the_step_of_h_14_fits_a_tpu_when_it_is_sharded():
    mesh = memory.virtual_mesh(DEVICES, "v5e:2x4")
    found = memory.step_memory(RECIPE, STAGE, mesh, 8)
    assert found.peak < 16 * 2**30
    assert found.params + found.optimizer < 1.5 * 2**30
