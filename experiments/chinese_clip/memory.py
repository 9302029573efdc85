"""What a training step of a config needs of every device, without the devices.

    python -m experiments.chinese_clip.memory --config=configs/chinese_clip/vit_h_14.py --devices=8
    python -m experiments.chinese_clip.memory --config=... --topology=v5e:2x4

The step is lowered and compiled for a mesh of virtual devices, with parameters and optimizer on
every device (`replicated`) and sharded over them (`fsdp`), with and without recomputing blocks in
the backward pass (`remat`). Arguments and temporaries are what the compiler reports of a device;
parameters and optimizer are the share of it that the shardings give. On virtual CPU devices the
temporaries are those of the CPU's compiler, which fuses less than those of accelerators do. With
`--topology` the real TPU compiler is asked (`pip install libtpu`), which also says what does not
fit. Nothing is computed and no weights are read.
"""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import Mesh
from jaxtyping import PyTree

from experiments.chinese_clip.settings import RunConfig, StageConfig
from experiments.chinese_clip.train import make_model, make_step
from experiments.common import print_grid, run
from jaxlab import chinese_clip as clip
from jaxlab import parallel, training
from jaxlab.chinese_clip.data import prepare_pixels
from jaxlab.chinese_clip.model import abstract_variables
from jaxlab.training.step import TrainStep

_DEVICES = flags.DEFINE_integer(
    "devices", 8, "Virtual CPU devices, where there is no --topology.", lower_bound=1
)
_TOPOLOGY = flags.DEFINE_string("topology", None, "TPU topology, such as v5e:2x4.")
_BATCH = flags.DEFINE_integer("batch_per_device", 8, "Pairs on a device at a time.", lower_bound=1)
_STAGE = flags.DEFINE_enum("stage", "stage_2", ("stage_1", "stage_2"), "Stage of the config.")
_SHARDINGS = flags.DEFINE_list("shardings", ["replicated", "fsdp"], "Placements to compare.")
_REMATS = flags.DEFINE_list("remats", ["true", "false"], "With or without remat, to compare.")


class StepMemory(NamedTuple):
    """Bytes on one device.

    Attributes:
      params: parameters, trained and frozen.
      optimizer: state of the optimizer.
      arguments: all that the step is given, batch included.
      temporaries: activations, gradients and what else lives during the step.
      peak: all that is needed at once, as the compiler plans it.
    """

    params: int
    optimizer: int
    arguments: int
    temporaries: int
    peak: int


def main(config: RunConfig) -> None:
    """Compile the step of a config in each way, and print what it needs."""
    stage = getattr(config, _STAGE.value)
    if stage is None:
        raise ValueError(f"the config has no {_STAGE.value}; give the other one as --stage")
    check_choices()
    mesh = virtual_mesh(_DEVICES.value, _TOPOLOGY.value)
    rows: dict[str, dict[str, float]] = {}
    for sharding in _SHARDINGS.value:
        for remat in (text == "true" for text in _REMATS.value):
            chosen = dataclasses.replace(
                config, sharding="fsdp" if sharding == "fsdp" else "replicated", remat=remat
            )
            memory = step_memory(chosen, stage, mesh, _BATCH.value)
            name = f"{sharding}, {'remat' if remat else 'no remat'}"
            rows[name] = {f: value / 2**30 for f, value in memory._asdict().items()}
            print_grid({name: rows[name]}, "GiB a device")
    where = _TOPOLOGY.value or f"{_DEVICES.value} virtual CPU devices"
    print_grid(rows, f"GiB a device: {_STAGE.value}, {_BATCH.value} pairs a device, {where}")


def check_choices() -> None:
    """Refuse what is no placement and no truth value.

    Raises:
      ValueError: if a list is empty or holds something else.
    """
    for flag, allowed in ((_SHARDINGS, ("replicated", "fsdp")), (_REMATS, ("true", "false"))):
        if not flag.value or not set(flag.value) <= set(allowed):
            raise ValueError(
                f"--{flag.name}={','.join(flag.value)}; wanted {' or '.join(allowed)}, or both "
                "with a comma between them"
            )


def virtual_mesh(num_devices: int, topology: str | None = None) -> Mesh:
    """A mesh of devices that need not exist.

    Args:
      num_devices: virtual CPU devices.
      topology: name of a TPU topology instead, such as `v5e:2x4`.

    Raises:
      ValueError: if JAX has been started with fewer devices, or knows no such topology.
    """
    if topology is not None:
        from jax.experimental import topologies

        try:
            devices = topologies.get_topology_desc(topology, platform="tpu").devices
        except Exception as error:  # the TPU library raises several unrelated kinds
            raise ValueError(
                f"--topology={topology}: no TPU compiler for it ({error}); install the libtpu that "
                "jax's extra 'tpu' names, and give a topology such as v5e:2x4"
            ) from error
        return parallel.make_mesh(devices=devices)
    with contextlib.suppress(RuntimeError):  # JAX has been started: with enough devices, or not
        jax.config.update("jax_num_cpu_devices", num_devices)
    devices = jax.devices("cpu")
    if len(devices) < num_devices:
        raise ValueError(f"--devices={num_devices}: JAX has been started with {len(devices)}")
    return parallel.make_mesh(devices=devices[:num_devices])


def step_memory(
    config: RunConfig, stage: StageConfig, mesh: Mesh, batch_per_device: int
) -> StepMemory:
    """What a training step needs of each device of a mesh.

    Args:
      config: the run; its data must be pairs.
      stage: the stage; its batch is replaced.
      mesh: the devices, which need not exist.
      batch_per_device: pairs that go through the towers at once on a device; with accumulation the
        step is that of `num_microbatches` such parts.

    Raises:
      ValueError: if the config trains on emoji, or the program does not fit the device.
    """
    if config.data != "pairs":
        raise ValueError(f"data={config.data!r}; the memory is that of a config for pairs")
    micro = batch_per_device * mesh.shape[parallel.DATA_AXIS]
    stage = dataclasses.replace(
        stage,
        num_steps=stage.optimizer.warmup_steps + 1,  # of no influence on the program
        global_batch_size=micro * stage.num_microbatches,
        microbatch_size=micro,
    )
    step, state, frozen, batch = abstract_step(config, stage, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)

    def train_step(state: Any, frozen: PyTree, batch: PyTree) -> Any:
        return step(state, frozen, batch, jax.random.fold_in(state.key, state.step))

    jitted = jax.jit(
        train_step, donate_argnums=0, out_shardings=(shardings, parallel.replicated(mesh))
    )
    analysis = jitted.lower(state, frozen, batch).compile().memory_analysis()
    if analysis is None:
        raise ValueError("this compiler reports no memory; use CPU devices or a TPU topology")
    return StepMemory(
        params=bytes_per_device((state.params, state.extra, frozen)),
        optimizer=bytes_per_device(state.opt_state),
        arguments=analysis.argument_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        peak=analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes,
    )


def abstract_step(
    config: RunConfig, stage: StageConfig, mesh: Mesh
) -> tuple[TrainStep, training.TrainState, PyTree, PyTree]:
    """A step and the shapes, with their places on the mesh, of state, frozen tree and batch.

    Args:
      config: the run.
      stage: the stage.
      mesh: the devices.
    """
    rules = getattr(parallel.ShardingRules, config.sharding)()
    tx, step = make_step(config, stage, make_model(config), prepare_pixels, mesh)
    parts = clip.split_variables(abstract_variables(config.model), image_locked=stage.image_locked)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(
        lambda params, extra, key: training.TrainState.create(params, tx, key, extra),
        parts.params, parts.extra, key,
    )  # fmt: skip
    state = parallel.with_shardings(
        state, parallel.state_shardings(mesh, state, state.params, rules)
    )
    is_cached = bool(stage.cached_views)
    frozen = {} if is_cached else parts.frozen
    fsdp = parallel.ShardingRules(fsdp_min_size=rules.fsdp_min_size)
    frozen = parallel.with_shardings(frozen, parallel.state_shardings(mesh, frozen, {}, fsdp))
    rows, vision = stage.global_batch_size, config.model.vision
    fields: dict[str, tuple[Sequence[int], Any]] = {
        "ids": ((rows, config.model.context_length), jnp.int32)
    }
    if is_cached:
        fields["image_features"] = ((rows, config.model.embed_dim), jnp.float32)
    else:
        fields["image"] = ((rows, vision.image_size, vision.image_size, 3), jnp.uint8)
    by_row = parallel.batch_sharding(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=by_row)
        for name, (shape, dtype) in fields.items()
    }
    return step, state, frozen, batch


def bytes_per_device(tree: PyTree) -> int:
    """Bytes that a device of the mesh holds of a tree of shapes with shardings.

    Args:
      tree: of `jax.ShapeDtypeStruct`.
    """
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


if __name__ == "__main__":
    run(main)
