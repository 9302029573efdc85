import json
import resource
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab.checkpoints.run import RunCheckpoints, tree_to_paths
from jaxlab.parallel import make_mesh, state_shardings, with_shardings
from jaxlab.parallel.sharding import ShardingRules

TX = optax.adam(1e-2)


class State(NamedTuple):
    step: Any
    params: Any
    extra: Any
    opt_state: Any
    key: Any


def make_state(size=8, seed=0):
    params = {"layer_0": {"kernel": jax.random.normal(jax.random.key(seed), (size, 3))}}
    extra = {"mean": jnp.full((2,), 0.5, jnp.bfloat16), "queue": (jnp.arange(4), [])}
    return State(jnp.int32(0), params, extra, TX.init(params), jax.random.key(seed + 1))


def assert_equal_trees(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype, path
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=str(path))


def on_mesh(state, num_devices):
    mesh = make_mesh(devices=jax.devices()[:num_devices])
    rules = ShardingRules.fsdp(min_size=8)
    return with_shardings(state, state_shardings(mesh, state, state.params, rules))


def test_state_moves_from_8_devices_to_1_and_2(tmp_path):
    state = make_state()
    placed = jax.tree.map(
        lambda leaf, abstract: jax.device_put(leaf, abstract.sharding), state, on_mesh(state, 8)
    )
    kernel = placed.params["layer_0"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (1, 3)
    with RunCheckpoints(tmp_path) as checkpoints:
        checkpoints.save(3, placed)
    with RunCheckpoints(tmp_path) as checkpoints:
        for num_devices in (1, 2):
            got = checkpoints.restore_latest(on_mesh(state, num_devices))
            assert_equal_trees(got, state)
            assert len(got.params["layer_0"]["kernel"].addressable_shards) == num_devices
            assert len(got.key.sharding.device_set) == num_devices


def test_save_is_not_changed_by_steps_that_reuse_the_buffers(tmp_path):
    state = make_state(size=200_000)
    expected = np.array(state.params["layer_0"]["kernel"])
    with RunCheckpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        params = state.params
        step = jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)
        for _ in range(3):
            params = step(params)
        jax.block_until_ready(params)
        checkpoints.wait()
        got = checkpoints.restore_params(1)
    np.testing.assert_array_equal(got["layer_0"]["kernel"], expected)


def test_keeps_the_last_and_the_best(tmp_path):
    state = make_state()
    accuracy = {1: 0.2, 2: 0.9, 3: None, 4: 0.5, 5: None, 6: 0.9, 7: float("nan")}
    settings = {"keep_last": 2, "keep_best": 2, "best_metric": "accuracy"}
    with RunCheckpoints(tmp_path, **settings) as checkpoints:
        assert checkpoints.would_keep(0.0) and not checkpoints.would_keep(float("nan"))
        for step, value in accuracy.items():
            checkpoints.save(step, state, None if value is None else {"accuracy": value})
    with RunCheckpoints(tmp_path, **settings) as checkpoints:
        assert checkpoints.steps() == [2, 6, 7]
        assert checkpoints.best_step() == 2 and checkpoints.latest_step() == 7
        assert checkpoints.metrics(6) == {"accuracy": 0.9} and checkpoints.metrics(7) == {}
        assert not checkpoints.would_keep(0.9) and checkpoints.would_keep(0.91)
        assert_equal_trees(checkpoints.restore_best(state), state)
    with RunCheckpoints(tmp_path, **settings | {"best_mode": "min", "keep_best": 3}) as least:
        assert least.would_keep(5.0)
    with RunCheckpoints(tmp_path, **settings | {"best_mode": "min"}) as least:
        assert least.would_keep(0.89) and not least.would_keep(0.91)


def test_parameters_restore_alone_with_or_without_their_shapes(tmp_path):
    state = make_state()
    with RunCheckpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state)
    shutil.rmtree(tmp_path / "5" / "state" / "d")  # not needed
    with RunCheckpoints(tmp_path, read_only=True) as checkpoints:
        assert_equal_trees(checkpoints.restore_params(), state.params)
        abstract = jax.eval_shape(lambda: state.params)
        assert_equal_trees(checkpoints.restore_params(5, abstract), state.params)


def test_parts_of_a_state_can_be_left_out(tmp_path):
    state = make_state()
    with RunCheckpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state)
        mine = jnp.full(7, 3.0)  # of another optimizer, which the one that was saved does not fit
        other = state._replace(opt_state=(mine,), key=jax.random.key(9))
        got = checkpoints.restore(5, other, skip=("opt_state", "key"))
        assert_equal_trees(got._replace(opt_state=state.opt_state, key=state.key), state)
        assert got.opt_state[0] is mine
        with pytest.raises(ValueError, match="extra/mean"):
            wrong = other._replace(extra={"mean": jnp.zeros(5)})
            checkpoints.restore(5, wrong, skip=("opt_state", "key"))


def test_every_leaf_that_does_not_fit_is_listed(tmp_path):
    state = make_state()
    with RunCheckpoints(tmp_path) as checkpoints:
        checkpoints.save(5, state)
        other = state._replace(
            params={"layer_0": {"kernel": jnp.ones((9, 3))}, "layer_1": {"bias": jnp.ones(2)}},
            extra={"mean": jnp.zeros(2)},
        )
        with pytest.raises(ValueError) as error:
            checkpoints.restore_latest(other)
    for line in (
        "4 leaves differ",
        "params/layer_0/kernel: float32[8, 3] in the checkpoint, float32[9, 3] in the run",
        "params/layer_1/bias: missing in the checkpoint, the run has float32[2]",
        "extra/mean: bfloat16[2] in the checkpoint, float32[2] in the run",
        "extra/queue/0: int32[4] in the checkpoint, unknown to the run",
    ):
        assert line in str(error.value)


def test_restoring_waits_for_the_save_under_way(tmp_path):
    state = make_state(size=200_000)
    with RunCheckpoints(tmp_path, keep_best=1, best_metric="r1") as checkpoints:
        checkpoints.save(1, state, {"r1": 1.0})
        assert_equal_trees(checkpoints.restore(1, state), state)
        checkpoints.save(2, state, {"r1": 2.0})
        assert_equal_trees(checkpoints.restore_params(), state.params)
        assert checkpoints.latest_step() == 2
        checkpoints.save(3, state, {"r1": 3.0})
        assert_equal_trees(checkpoints.restore_best(state), state)
        assert checkpoints.best_step() == 3


@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_damaged_checkpoint_names_the_folder_and_the_way_out(tmp_path, damage):
    state = make_state()
    with RunCheckpoints(tmp_path) as checkpoints:
        checkpoints.save(4, state)
        checkpoints.save(8, state)
    if damage == "removed":
        shutil.rmtree(tmp_path / "8" / "params")
    else:
        for path in (tmp_path / "8" / "params").rglob("d/*"):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with RunCheckpoints(tmp_path) as checkpoints:
        with pytest.raises(OSError, match=r"/8 is incomplete or damaged.*continue from step 4"):
            checkpoints.restore_latest(state)
    shutil.rmtree(tmp_path / "8")
    with RunCheckpoints(tmp_path) as checkpoints:
        assert_equal_trees(checkpoints.restore_latest(state), state)


def test_full_disk_is_an_error_that_leaves_the_last_checkpoint(tmp_path):
    state = make_state(size=100_000)
    with RunCheckpoints(tmp_path, keep_last=1) as checkpoints:
        checkpoints.save(1, state)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = RunCheckpoints(tmp_path, keep_last=1)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, limits[1]))
        with pytest.raises(OSError, match=r"(?s)could not be written.*step 1\. Free disk space"):
            checkpoints.save(2, state)
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1"]
    with RunCheckpoints(tmp_path) as checkpoints:
        assert_equal_trees(checkpoints.restore_latest(state), state)


def test_what_a_killed_run_left_unfinished_is_removed_but_not_by_readers(tmp_path):
    state = make_state()
    with RunCheckpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    half = tmp_path / "2.orbax-checkpoint-tmp"
    half.mkdir()
    with RunCheckpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [1] and half.exists()
    with RunCheckpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1] and not half.exists()


def test_missing_checkpoints_say_what_there_is(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoints at .*nowhere.*workdir of a run"):
        RunCheckpoints(tmp_path / "nowhere", read_only=True)
    with RunCheckpoints(tmp_path) as checkpoints:
        with pytest.raises(FileNotFoundError, match=r"no such checkpoint .* it has \[\]"):
            checkpoints.restore_latest(make_state())
        with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 3"):
            checkpoints.restore(3, make_state())


def test_retention_is_checked():
    with pytest.raises(ValueError) as error:
        RunCheckpoints("unused", keep_last=0, keep_best=1)
    assert "keep_last=0" in str(error.value) and "needs best_metric" in str(error.value)


def test_meta_is_json_that_people_can_read(tmp_path):
    with RunCheckpoints(tmp_path) as checkpoints:
        checkpoints.save(7, make_state(), {"accuracy": 0.25, "lost": float("inf")})
    found = json.loads((tmp_path / "7" / "meta" / "metadata").read_text())
    assert found == {"step": 7, "metrics": {"accuracy": 0.25}}


def test_paths_name_fields_keys_and_positions():
    state = make_state()
    paths = {"/".join(path) for path in tree_to_paths(state)}
    assert {"step", "key", "params/layer_0/kernel", "extra/queue/0"} <= paths
    assert "opt_state/0/mu/layer_0/kernel" in paths
