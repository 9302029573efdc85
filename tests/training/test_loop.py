import json
import logging
import runpy
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import parallel
from jaxlab.checkpoints.run import RunCheckpoints
from jaxlab.training import (
    Evaluator,
    OptimizerConfig,
    TrainConfig,
    TrainingInterrupted,
    TrainState,
    lock_workdir,
    make_optimizer,
    make_train_step,
    read_metrics,
    read_results,
    train_loop,
)

TOY = runpy.run_path(str(Path(__file__).with_name("toy.py")))
LAST = TOY["NUM_STEPS"]


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, mesh):
    """Workdir and result of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("unbroken")
    return workdir, TOY["run"](workdir, mesh)


def assert_same_end(workdir, result, unbroken):
    """Bit-identical parameters and log."""
    other, expected = unbroken
    jax.tree.map(
        np.testing.assert_array_equal, TOY["params_of"](result), TOY["params_of"](expected)
    )
    assert (workdir / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


def test_run_writes_what_people_and_scripts_read(unbroken):
    workdir, result = unbroken
    records = read_metrics(workdir)
    assert [r["step"] for r in records] == [2, 3, 4, 6, 8, 9, 10, 12]
    assert records[0].keys() == {
        "step", "train/loss", "train/error", "train/grad_norm", "train/learning_rate"
    }  # fmt: skip
    assert records[1].keys() == {"step", "test/norm"}
    assert records[3].keys() == records[0].keys() | {"test/norm"}
    assert records[-1]["train/loss"] < 0.5 * records[0]["train/loss"]
    results = json.loads((workdir / "results.json").read_text())
    assert results == read_results(workdir) == result.metrics
    assert results.items() >= {**records[-1], "step": LAST}.items()
    assert results["train/examples_per_s"] > 0
    assert json.loads((workdir / "config.json").read_text())["global_batch_size"] == TOY["ROWS"]
    assert list((workdir / "tensorboard").iterdir())
    with RunCheckpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() == [8, 12]
        saved = checkpoints.restore_params()
    jax.tree.map(np.testing.assert_array_equal, saved, TOY["params_of"](result))


def test_loss_of_a_step_is_that_of_its_batch_and_key(unbroken):
    # The first two steps by hand: batch s is that of position s, its key is fold_in(key, s).
    workdir, _ = unbroken
    first, rest = jax.random.split(jax.random.key(0))
    tx = make_optimizer(OptimizerConfig(learning_rate=0.05, warmup_steps=2), LAST)
    state = TrainState.create(TOY["init_params"](first), tx, rest, {"mean": jnp.zeros(())})
    step = jax.jit(make_train_step(TOY["loss_fn"], tx))
    for s in range(2):
        batch, _ = parallel.split_host_fields(TOY["batch_at"](s))
        state, metrics = step(state, {}, batch, jax.random.fold_in(rest, s))
    record = read_metrics(workdir)[0]
    assert record["train/loss"] == pytest.approx(float(metrics["loss"]), rel=1e-5)
    assert record["train/learning_rate"] == pytest.approx(0.05)


def test_finished_run_gives_its_result_at_once(unbroken, mesh, caplog):
    workdir, expected = unbroken

    def refuse(position, batch):
        raise AssertionError("no batch is needed")

    with caplog.at_level(logging.INFO, logger="jaxlab"):
        again = TOY["run"](workdir, mesh, refuse)
    assert again.metrics == expected.metrics
    assert_same_end(workdir, again, unbroken)
    assert "nothing to train" in caplog.text


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signal_saves_and_a_second_start_ends_the_same(tmp_path, mesh, unbroken, name, caplog):
    before = signal.getsignal(signal.SIGTERM)
    number = signal.Signals[name]
    with pytest.raises(TrainingInterrupted) as interrupted:
        TOY["run"](tmp_path, mesh, TOY["signal_at"](6, number))
    assert interrupted.value.code == 0
    assert "run it again to continue" in str(interrupted.value)
    assert signal.getsignal(signal.SIGTERM) is before
    with RunCheckpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        # The flag is seen with the loss of its step, read while the next one runs.
        assert checkpoints.latest_step() == interrupted.value.step in (7, 8)
    assert not (tmp_path / "results.json").exists()
    with caplog.at_level(logging.INFO, logger="jaxlab"):
        result = TOY["run"](tmp_path, mesh)
    assert f"checkpoint of step {interrupted.value.step}: continuing" in caplog.text
    assert_same_end(tmp_path, result, unbroken)


def test_records_after_the_checkpoint_are_made_again_once(tmp_path, mesh, unbroken):
    class Crash(Exception):
        pass

    def crash(position, batch):
        if position == 7:
            raise Crash

    with pytest.raises(Crash):
        TOY["run"](tmp_path, mesh, crash)
    assert [r["step"] for r in read_metrics(tmp_path)] == [2, 3, 4, 6]
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "train/lo')  # killed while writing
    result = TOY["run"](tmp_path, mesh)
    assert_same_end(tmp_path, result, unbroken)


def test_results_are_made_after_a_kill_before_them(tmp_path, mesh, unbroken):
    workdir, expected = unbroken
    result = TOY["run"](tmp_path, mesh)
    (tmp_path / "results.json").unlink()
    result = TOY["run"](tmp_path, mesh)
    results = read_results(tmp_path)
    assert results.items() <= expected.metrics.items() and results == result.metrics
    assert "train/loss" in results and "test/norm" in results
    assert_same_end(tmp_path, result, unbroken)


def test_eight_devices_equal_one(tmp_path, unbroken):
    result = TOY["run"](tmp_path, parallel.make_mesh())
    assert len(result.state.params["up"]["kernel"].sharding.device_set) == 8
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        TOY["params_of"](result),
        TOY["params_of"](unbroken[1]),
    )


@pytest.mark.parametrize("saved_before", [False, True])
def test_nan_names_step_examples_checkpoint_and_what_to_try(tmp_path, mesh, saved_before):
    position = 6 if saved_before else 1

    def poison(at, batch):
        if at == position:
            batch["x"][3] = np.nan

    with pytest.raises(FloatingPointError) as error:
        TOY["run"](tmp_path, mesh, poison)
    message = str(error.value)
    ids = TOY["batch_at"](position)["example_id"].tolist()
    assert f"step {position + 1} of {LAST} is not finite: loss nan" in message
    assert str(ids) in message and ids[0] > 2**32 - 1
    assert ("last good checkpoint is step 4 in" in message) == saved_before
    assert ("No checkpoint was saved" in message) == (not saved_before)
    assert "learning_rate (0.0" in message and "warmup_steps" in message and "clip_norm" in message
    assert all(np.isfinite(r.get("train/loss", 0)) for r in read_metrics(tmp_path))
    if saved_before:  # the poisoned state was not saved
        with RunCheckpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
            assert checkpoints.steps() == [4]


def test_second_run_in_a_workdir_gets_one_clear_error(tmp_path, mesh):
    with lock_workdir(tmp_path):
        with pytest.raises(BlockingIOError, match=r"in use by another run \(process \d+ on .*\)"):
            TOY["run"](tmp_path, mesh)
    with lock_workdir(tmp_path):  # free again
        pass


def test_best_states_are_saved_where_they_are_found(tmp_path, mesh):
    scores = iter([0.1, 0.7, 0.3, 0.2])
    evaluator = Evaluator("test", lambda state: {"test/score": next(scores)}, every_steps=3)
    result = TOY["run"](
        tmp_path, mesh, evaluators=[evaluator], save_every_steps=0,
        keep_last=1, keep_best=1, best_metric="test/score",
    )  # fmt: skip
    assert result.metrics["best/step"] == 6 and result.metrics["best/test/score"] == 0.7
    assert result.metrics["test/score"] == 0.2
    with RunCheckpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() == [6, 12]


PATIENT = {"save_every_steps": 0, "best_metric": "test/score", "patience": 2, "keep_best": 1}
SCORES = {3: 0.1, 5: 0.7, 6: 0.6, 7: 0.6, 9: 0.9, LAST: 0.2}


def score(state):
    """Measured after some of the steps; in step 5 best, but for the steps after an early end."""
    step = int(state.step)
    return {"test/score": SCORES[step]} if step in SCORES else {}


def test_patience_ends_a_run_whose_metric_stops_improving(tmp_path, mesh, caplog):
    evaluator = Evaluator("test", score, every_steps=1)
    result = TOY["run"](tmp_path, mesh, evaluators=[evaluator], **PATIENT)
    assert result.metrics["step"] == 7 and result.metrics["stopped_early"] == 1
    assert result.metrics["best/step"] == 5 and int(result.state.step) == 7
    with RunCheckpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps()[-1] == 7 and 5 in checkpoints.steps()
    # Started again, it has ended; with more patience, it goes on.
    with caplog.at_level(logging.INFO, logger="jaxlab"):
        again = TOY["run"](tmp_path, mesh, evaluators=[evaluator], **PATIENT)
    assert "has ended: nothing to train" in caplog.text and int(again.state.step) == 7
    longer = TOY["run"](tmp_path, mesh, evaluators=[evaluator], **PATIENT | {"patience": 0})
    assert longer.metrics["step"] == LAST and "stopped_early" not in longer.metrics


def test_patience_outlives_a_kill(tmp_path, mesh):
    evaluator = Evaluator("test", score, every_steps=1)
    with pytest.raises(TrainingInterrupted):
        TOY["run"](
            tmp_path, mesh, TOY["signal_at"](5, signal.SIGTERM), evaluators=[evaluator], **PATIENT
        )
    result = TOY["run"](tmp_path, mesh, evaluators=[evaluator], **PATIENT)
    assert result.metrics["step"] == 7  # one evaluation without an improvement before the kill
    (tmp_path / "results.json").unlink()
    result = TOY["run"](tmp_path, mesh, evaluators=[evaluator], **PATIENT)
    assert result.metrics["step"] == 7 and result.metrics["test/score"] == 0.6


def test_step_compiles_once_also_after_a_restore(tmp_path, caplog):
    mesh = parallel.make_mesh()
    messages = []
    for hook in (TOY["signal_at"](5, signal.SIGTERM), None):
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
            try:
                TOY["run"](tmp_path, mesh, hook)
            except TrainingInterrupted:
                pass
        messages.append(sum("XLA compilation of jit(train_step)" in m for m in caplog.messages))
    assert messages == [1, 1]


def test_stages_follow_each_other_with_a_frozen_part_and_a_given_state(tmp_path, mesh):
    tx = make_optimizer(OptimizerConfig(name="sgd", b1=0.0, learning_rate=0.1), 4)

    def loss(params, frozen, extra, batch, key):
        both = {**params, **frozen}
        out = batch["x"] @ both["up"]["kernel"] @ both["down"]["kernel"]
        return jnp.mean((out - batch["y"]) ** 2), (extra, {})

    params = TOY["init_params"](jax.random.key(3))
    del params["up"]["bias"]
    settings = {
        "config": TrainConfig(num_steps=4, global_batch_size=TOY["ROWS"]),
        "step": make_train_step(loss, tx),
        "make_batches": TOY["make_batches"](mesh),
        "mesh": mesh,
    }

    def stages():
        key = jax.random.key(4)
        one = TrainState.create({"down": params["down"]}, tx, key)
        first = train_loop(
            workdir=tmp_path / "stage1", init=one, frozen={"up": params["up"]}, **settings
        )
        two = TrainState.create({**first.state.params, "up": params["up"]}, tx, key)
        return first, train_loop(workdir=tmp_path / "stage2", init=two, **settings)

    first, second = stages()
    # The caller's arrays are the caller's: frozen ones unchanged, given ones not donated.
    assert params["up"]["kernel"].sum() and params["down"]["kernel"].sum()
    assert jax.tree.structure(first.state.params) == jax.tree.structure({"down": {"kernel": 0}})
    assert not np.array_equal(second.state.params["up"]["kernel"], params["up"]["kernel"])
    _, again = stages()
    jax.tree.map(np.testing.assert_array_equal, TOY["params_of"](again), TOY["params_of"](second))


def test_fresh_workdir_continues_another_run(tmp_path, mesh, unbroken, caplog):
    with pytest.raises(TrainingInterrupted) as interrupted:
        TOY["run"](tmp_path / "a", mesh, TOY["signal_at"](6, signal.SIGTERM))
    with caplog.at_level(logging.INFO, logger="jaxlab"):
        result = TOY["run"](tmp_path / "b", mesh, continue_from=str(tmp_path / "a"))
    assert f"from its step {interrupted.value.step}" in caplog.text
    jax.tree.map(
        np.testing.assert_array_equal, TOY["params_of"](result), TOY["params_of"](unbroken[1])
    )


def test_mistakes_are_told_before_the_first_step(tmp_path, unbroken, mesh):
    eight = parallel.make_mesh()
    with pytest.raises(ValueError, match="global_batch_size=12 does not divide.*8 and 16"):
        TOY["run"](tmp_path, eight, global_batch_size=12)
    with pytest.raises(ValueError, match="microbatch_size=4 does not divide over the 8 devices"):
        TOY["run"](tmp_path, eight, microbatch_size=4)
    with pytest.raises(ValueError, match=r"32 rows .*got \{'x': \(16, 4\), 'y': \(16, 2\)\}"):
        TOY["run"](tmp_path, mesh, global_batch_size=32)
    with pytest.raises(ValueError, match="at step 12, after num_steps=10; set num_steps to 12"):
        TOY["run"](unbroken[0], mesh, num_steps=10)
    with pytest.raises(ValueError, match="is an address.*Mount the bucket"):
        TOY["run"]("gs://bucket/run", mesh)


def test_evaluators_must_not_share_a_name_and_must_give_the_best_metric(tmp_path, mesh):
    twice = [Evaluator("a", TOY["norm"]), Evaluator("b", TOY["norm"])]
    with pytest.raises(ValueError, match=r"evaluator 'b' gives \['test/norm'\]"):
        TOY["run"](tmp_path / "a", mesh, evaluators=twice, num_steps=3)
    with pytest.raises(ValueError, match=r"best_metric='acc' was given by no.*test/norm"):
        TOY["run"](tmp_path / "b", mesh, num_steps=3, keep_best=1, best_metric="acc")


def test_batches_that_end_and_steps_that_do_not_count_are_errors(tmp_path, mesh):
    config = TrainConfig(num_steps=3, global_batch_size=2)

    def init(key):
        return TrainState(jnp.int32(0), {"w": jnp.zeros(())}, {}, {}, key)

    def run(workdir, step, num_batches=9):
        batch = {"x": np.zeros((2, 1), np.float32)}
        return train_loop(
            config=config, workdir=workdir, init=init, step=step, mesh=mesh,
            make_batches=lambda position: iter([batch] * num_batches),
        )  # fmt: skip

    with pytest.raises(ValueError, match="ended before step 3 of num_steps=3"):
        run(tmp_path / "a", lambda s, f, b, k: (s, {"loss": jnp.zeros(())}), 2)
    with pytest.raises(ValueError, match="state.step is 0 after 3 updates"):
        run(tmp_path / "b", lambda s, f, b, k: (s, {"loss": jnp.zeros(())}))
    with pytest.raises(ValueError, match=r"metrics \['cost'\] have no loss"):
        run(tmp_path / "c", lambda s, f, b, k: (s, {"cost": jnp.zeros(())}))


def test_changed_config_is_pointed_out_on_resume(tmp_path, mesh, caplog):
    with pytest.raises(TrainingInterrupted):
        TOY["run"](tmp_path, mesh, TOY["signal_at"](3, signal.SIGTERM))
    TOY["run"](tmp_path, mesh, log_every_steps=4)
    assert "log_every_steps: 2 -> 4" in caplog.text


def test_patience_needs_a_metric():
    with pytest.raises(ValueError, match="patience=3 needs best_metric"):
        TrainConfig(num_steps=1, global_batch_size=1, patience=3)


def test_train_config_lists_all_mistakes_at_once():
    with pytest.raises(ValueError) as error:
        TrainConfig(num_steps=0, global_batch_size=8, microbatch_size=3, keep_best=1)
    for part in ("num_steps=0", "microbatch_size=3 does not divide", "needs best_metric"):
        assert part in str(error.value)
    assert TrainConfig(num_steps=1, global_batch_size=8, microbatch_size=2).num_microbatches == 4
