"""A course that is saved and resumed ends with the bits of one that never stopped."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxlab.federated.algorithms.ditto import ditto
from jaxlab.federated.algorithms.sam import sharpness_aware
from jaxlab.federated.algorithms.scaffold import scaffold
from jaxlab.federated.checkpoint import find_checkpoints, restore_course, save_course
from jaxlab.federated.client_data import Schedule, gather_clients
from jaxlab.federated.compression import chain, compressed, quantize, top_k
from jaxlab.federated.devices import Device, slowness
from jaxlab.federated.fedavg import fed_avg
from jaxlab.federated.hooks import hook_task
from jaxlab.federated.labelled import regression
from jaxlab.federated.learning import make_simulation
from jaxlab.federated.robust import median
from jaxlab.federated.samplers import make_group_sampler
from jaxlab.federated.server_state import CourseConfig
from jaxlab.federated.simulation import run_course, step
from jaxlab.federated.store import ClientStore
from jaxlab.federated.strategy import ConfigError, Strategy
from jaxlab.federated.wire import WireError, load_tree, save_tree
from jaxlab.parallel import make_mesh

NUM_CLIENTS, DIM, NUM_ROUNDS = 12, 3, 10
SCHEDULE = Schedule(4, 1)
DEVICES = [Device(float(n), 100.0 * n) for n in range(1, NUM_CLIENTS + 1)]
SLOWNESS = {n: slowness(device, 1000) for n, device in enumerate(DEVICES, 1)}
BUFFERED = Strategy(
    kind="goal_achieved", cohort_size=4, min_updates=3, max_staleness=2, staleness_exponent=0.5
)
STRATEGIES = {
    "synchronous": Strategy(cohort_size=4),
    "over_selected": Strategy(cohort_size=4, min_updates=2),
    "goal_achieved": BUFFERED,
    "fedbuff": dataclasses.replace(BUFFERED, broadcast="after_receiving"),
    "time_up": Strategy(kind="time_up", cohort_size=4, time_budget_s=0.4, max_staleness=3),
}


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(1)(x)


TASK = regression(Linear(), jax.ShapeDtypeStruct((DIM,), jnp.float32))
ALGORITHMS = {
    "fedopt": fed_avg(TASK, optax.sgd(0.1), SCHEDULE, server_tx=optax.adam(1e-2)),
    "scaffold": scaffold(TASK, 0.1, SCHEDULE, NUM_CLIENTS),
    "ditto": ditto(TASK, optax.sgd(0.1), SCHEDULE),
    "compressed": compressed(
        fed_avg(TASK, optax.sgd(0.1), SCHEDULE),
        up=chain(top_k(0.5), quantize(8, stochastic=True)),
        error_feedback=True,
        down=quantize(16, stochastic=True),
    ),
}


def clients(seed, sizes):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(sum(sizes), DIM)).astype(np.float32)
    y = (x @ [1.0, -2.0, 0.5] + rng.normal(size=len(x))).astype(np.float32)
    return gather_clients({"x": x, "y": y}, np.split(np.arange(len(x)), np.cumsum(sizes)[:-1]))


def fails(client, number):
    return (7 * client + number) % 5 == 0


DATA = clients(0, [8] * 11 + [0])
TEST = clients(1, [2] * NUM_CLIENTS)


def make(strategy="fedbuff", algorithm="fedopt", *, devices=4, store=None, **options):
    """A new simulation: nothing of another one is in it."""
    strategy = STRATEGIES[strategy] if isinstance(strategy, str) else strategy
    config = CourseConfig(NUM_CLIENTS, NUM_ROUNDS, strategy, seed=options.pop("seed", 3))
    algorithm = ALGORITHMS[algorithm] if isinstance(algorithm, str) else algorithm
    options.setdefault("splits", {"test": TEST})
    return make_simulation(
        config, algorithm, DATA, TASK.init(jax.random.key(0)), SCHEDULE,
        mesh=make_mesh(devices=jax.devices()[:devices]), devices=DEVICES, fails=fails,
        store=None if store is None else ClientStore(
            algorithm.init_client(TASK.init(jax.random.key(0))), NUM_CLIENTS, store
        ),
        **options,
    )  # fmt: skip


def outcome(simulation, state):
    """All that a course comes to, the bits of numbers included."""
    bits = jax.tree.map(lambda leaf: (np.asarray(leaf).tobytes(), leaf.dtype), state.server.model)
    kept = jax.tree.map(lambda leaf: leaf.tobytes(), simulation.executor.snapshot()["clients"])
    names = [f.name for f in dataclasses.fields(state.server) if f.name not in ("model", "sampler")]
    return {
        "model": bits,
        "clients": kept,
        "server": {name: getattr(state.server, name) for name in names},
        "roles": (state.clients, list(state.to_clients), state.to_server, state.num_sent),
        "sampler": state.server.sampler.tolist(),
        "report": simulation.report(state),
        "exchanges": simulation.traffic.exchanges.tolist(),
    }


def run_to_the_end(simulation, state=None):
    state = run_course(simulation.course, state or simulation.start())
    assert state.server.finished
    return outcome(simulation, state)


def run_until(simulation, is_there):
    state = simulation.start()
    while not is_there(state):
        assert step(simulation.course, state)
    return state


@pytest.mark.parametrize(
    "strategy, algorithm",
    [
        *(("synchronous", "scaffold"), ("over_selected", "fedopt"), ("goal_achieved", "ditto")),
        *(("fedbuff", "compressed"), ("time_up", "fedopt")),
    ],
)
def test_ten_rounds_are_five_and_a_new_simulation_and_five(tmp_path, strategy, algorithm):
    straight = run_to_the_end(make(strategy, algorithm))
    first = make(strategy, algorithm)
    state = run_until(first, lambda state: state.server.round == 5)
    save_course(tmp_path, first, state)
    second = make(strategy, algorithm)
    assert run_to_the_end(second, restore_course(tmp_path, second)) == straight
    assert straight["report"]["failed_clients"] > 0 and straight["report"]["bytes_up"] > 0


@pytest.mark.parametrize("strategy, algorithm", [("fedbuff", "scaffold"), ("time_up", "fedopt")])
def test_an_asynchronous_course_resumes_from_between_any_two_messages(
    tmp_path, strategy, algorithm
):
    straight = run_to_the_end(make(strategy, algorithm))
    messages = 0
    simulation = make(strategy, algorithm)
    state, seen = simulation.start(), {"asked": 0, "done": 0, "evaluating": 0, "stale": 0}
    while not (state.server.finished and not state.to_clients):
        step(simulation.course, state)
        messages += 1
        held = simulation.executor.snapshot()
        now = {
            "asked": bool(held["asked"]), "done": bool(held["done"]),
            "evaluating": state.server.evaluating is not None, "stale": bool(state.server.stale),
        }  # fmt: skip
        if messages % 61 == 0 or any(now[name] and not seen[name] for name in seen):
            seen = {name: seen[name] + now[name] for name in seen}
            save_course(tmp_path, simulation, state)
            state = restore_course(tmp_path, simulation := make(strategy, algorithm))
    assert outcome(simulation, state) == straight
    assert messages > 300 and all(seen.values()), seen


def test_a_sampler_with_a_state_goes_on_where_it_was(tmp_path):
    def new():
        return make("goal_achieved", sampler=make_group_sampler(SLOWNESS, 3))

    first = new()
    save_course(tmp_path, first, run_until(first, lambda state: state.server.round == 4))
    second = new()
    assert run_to_the_end(second, restore_course(tmp_path, second)) == run_to_the_end(new())


def test_clients_that_are_kept_in_files_are_saved_and_restored(tmp_path):
    first = make("fedbuff", "scaffold", store=tmp_path / "one")
    state = run_until(first, lambda state: state.server.round == 5)
    path = save_course(tmp_path / "checkpoints", first, state)
    second = make("fedbuff", "scaffold", store=tmp_path / "two")
    resumed = run_to_the_end(second, restore_course(path, second))
    assert resumed == run_to_the_end(make("fedbuff", "scaffold"))
    on_disk = np.load(tmp_path / "two" / "leaf_0.npy")
    assert np.abs(on_disk).sum() > 0


def test_a_course_goes_on_on_other_devices(tmp_path):
    """Sums may be taken in another order there: equal to rounding, and event by event."""
    first = make("fedbuff", "fedopt")
    state = run_until(
        first, lambda state: state.server.round >= 3 and first.executor.snapshot()["done"]
    )
    save_course(tmp_path, first, state)
    second = make("fedbuff", "fedopt", devices=3)
    there = run_course(second.course, restore_course(tmp_path, second)).server
    here = run_course(first.course, state).server
    assert there.aggregations == here.aggregations and there.counts == here.counts
    for a, b in zip(jax.tree.leaves(there.model), jax.tree.leaves(here.model), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


SCRIPT = """
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("test_checkpoint", sys.argv[1])
test = importlib.util.module_from_spec(spec)
spec.loader.exec_module(test)
simulation, folder = test.make("fedbuff", "fedopt"), pathlib.Path(sys.argv[2])
state = test.restore_course(folder, simulation)
(folder / "outcome").write_text(repr(test.run_to_the_end(simulation, state)))
"""


def test_another_process_resumes(tmp_path):
    first = make("fedbuff", "fedopt")
    state = run_until(first, lambda state: state.server.round == 5)
    save_course(tmp_path, first, state)
    environ = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-c", SCRIPT, __file__, str(tmp_path)]
    subprocess.run(command, check=True, env=environ, cwd=os.getcwd(), timeout=100)
    assert (tmp_path / "outcome").read_text() == repr(run_to_the_end(first, state))


@pytest.fixture(name="saved", scope="module")
def make_saved(tmp_path_factory):
    """A folder with a checkpoint of round 2."""
    folder = tmp_path_factory.mktemp("saved")
    simulation = make()
    save_course(folder, simulation, run_until(simulation, lambda state: state.server.round == 2))
    return folder


@pytest.mark.parametrize(
    "options, wrong",
    [
        ({"seed": 4}, "seed was 3 and is 4"),
        (
            {"strategy": dataclasses.replace(STRATEGIES["fedbuff"], max_staleness=9)},
            "strategy.max_staleness was 2 and is 9",
        ),
        ({"aggregator": median()}, r"aggregator was 'mean in which .*' and is 'the median"),
        ({"splits": {"val": TEST}}, r"splits\['val'\].sizes is a setting of this only"),
        ({"answer_time": lambda *given: 5}, r"answer times \(us\) was .* and is \[5 5"),
    ],
)
def test_a_checkpoint_of_another_course_is_refused_by_the_setting(saved, options, wrong):
    with pytest.raises(ConfigError, match=wrong):
        restore_course(saved, make(**options))


def test_a_checkpoint_of_another_algorithm_is_refused_by_the_entry(saved):
    with pytest.raises(WireError, match="model of the server .*opt_state/0/mu.* is unexpected"):
        restore_course(saved, make(algorithm="scaffold", answer_time=_same_times()))


def line_with(scale):
    """A task with an array of its own, which the text of a program only names."""
    rates = np.full((1, DIM), scale, np.float32)

    def scaled(batch, key, train):
        return {**batch, "x": batch["x"] * rates}

    return hook_task(TASK, batch=scaled)


def like_fedopt(task=TASK, rate=0.1, server_rate=1e-2, **options):
    return fed_avg(task, optax.sgd(rate), SCHEDULE, server_tx=optax.adam(server_rate), **options)


def test_a_checkpoint_knows_the_numbers_and_functions_of_its_algorithm(saved):
    restore_course(saved, make(algorithm=like_fedopt()))  # made anew, and still the same
    others = (
        like_fedopt(rate=0.2),
        like_fedopt(rate=0.1 + 1e-8),
        like_fedopt(server_rate=2e-2),
        like_fedopt(prox_mu=0.1),
        like_fedopt(line_with(1.0)),
        like_fedopt(gradient=sharpness_aware(0.1)),
    )
    for algorithm in others:
        with pytest.raises(ConfigError, match="of another algorithm: its learning rate, another"):
            restore_course(saved, make(algorithm=algorithm))
    assert restore_course(saved, make(algorithm=others[0]), check_algorithm=False).server.round == 2


def test_fingerprints_tell_arrays_apart_and_repeat_themselves():
    prints = [make(algorithm=like_fedopt(line_with(s))).fingerprint() for s in (1.0, 1.0, 2.0)]
    assert prints[0] == prints[1] != prints[2]


def test_checkpoints_whose_algorithm_cannot_be_compared_are_taken_with_a_warning(tmp_path, caplog):
    simulation = make()
    path = save_course(tmp_path, simulation, simulation.start())
    tree = load_tree(path)
    plain = {name: value for name, value in tree.items() if name != "algorithm"}
    older = {**tree, "algorithm": {"jax": "0.1.0", "fingerprint": "another"}}
    for saved, told in ((plain, "does not tell"), (older, "saved with jax 0.1.0")):
        save_tree(path, saved)
        caplog.clear()
        assert restore_course(path, make()).server.round == 0
        assert [told in record.getMessage() for record in caplog.records] == [True]


def _same_times():
    """Answer times of `make()`, whatever is sent."""
    times = iter(make().settings["answer times (us)"].tolist())
    return lambda *given: next(times)


def test_the_last_checkpoints_are_kept_and_an_interrupted_write_loses_none(tmp_path, monkeypatch):
    simulation = make()
    state = run_until(simulation, lambda state: state.server.round == 1)
    paths = [save_course(tmp_path, simulation, state, keep=3) for _ in range(5)]
    assert find_checkpoints(tmp_path) == paths[2:]

    def full(file):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "fsync", full)
        save_course(tmp_path, simulation, state)
    assert find_checkpoints(tmp_path) == paths[2:] == sorted(tmp_path.iterdir())
    # A killed process leaves a part of a file, which counts for nothing and goes with the next.
    (tmp_path / ".course_00000006.jaxlab.1.partial").write_bytes(paths[-1].read_bytes()[:100])
    restore_course(tmp_path, make())
    last = save_course(tmp_path, simulation, state, keep=1)
    assert list(tmp_path.iterdir()) == [last] and last.name == "course_00000006.jaxlab"
    with pytest.raises(ValueError, match="keep=0"):
        save_course(tmp_path, simulation, state, keep=0)


def test_a_broken_checkpoint_is_told_and_an_earlier_one_can_be_named(tmp_path):
    simulation = make()
    state = run_until(simulation, lambda state: state.server.round == 1)
    earlier, last = (save_course(tmp_path, simulation, state) for _ in range(2))
    whole = last.read_bytes()
    for broken, wrong in (
        (whole[:-5], "truncated"), (b"", "truncated"), (whole[:-1] + b"?", "checksum"),
        (b"PK" + whole, "begins with"),
    ):  # fmt: skip
        last.write_bytes(broken)
        with pytest.raises(WireError, match=f"{last.name}: .*{wrong}"):
            restore_course(tmp_path, make())
    assert restore_course(earlier, make()).server.round == 1


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no checkpoint of a course"):
        restore_course(tmp_path, make())
    with pytest.raises(FileNotFoundError):
        restore_course(tmp_path / "course_00000001.jaxlab", make())
