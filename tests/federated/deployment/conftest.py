"""Deployments without Flower: nodes in this process that answer when their time has come."""

import dataclasses
import heapq

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxlab.federated.algorithms.scaffold import scaffold
from jaxlab.federated.client_data import Schedule, gather_clients
from jaxlab.federated.deployment import agreement as agreements
from jaxlab.federated.deployment.codec import Packer, unpack
from jaxlab.federated.deployment.learner import make_learner
from jaxlab.federated.deployment.live import LiveConfig, LiveState, run_live
from jaxlab.federated.deployment.memory import Memory
from jaxlab.federated.deployment.node import answer, make_node
from jaxlab.federated.deployment.transport import Delivery
from jaxlab.federated.labelled import regression
from jaxlab.federated.learning import make_simulation
from jaxlab.federated.server_state import CourseConfig
from jaxlab.federated.simulation import run_course
from jaxlab.federated.strategy import Strategy
from jaxlab.parallel import make_mesh

DIM, SIZES = 3, (8, 8, 8)  # of one size, whose programs are compiled once
MAX_BYTES = 10**6


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(1)(x)


def draw(seed, sizes):
    """Examples of every client, each with a line of its own."""
    rng = np.random.default_rng(seed)
    parts = []
    for client, size in enumerate(sizes):
        x = rng.normal(size=(size, DIM)).astype(np.float32)
        slope = np.array([1.0, -2.0, 0.5 + client], np.float32)
        parts.append({"x": x, "y": (x @ slope).astype(np.float32)})
    return parts


@dataclasses.dataclass
class World:
    """A course that can be deployed here, and simulated."""

    task: object
    schedule: Schedule
    train: list
    test: list
    variables: object
    made: dict = dataclasses.field(default_factory=dict)

    def agreement(self, algorithm, strategy=None, num_rounds=4, **config):
        config.setdefault("answer_timeout_s", 10.0)
        strategy = strategy or Strategy(cohort_size=len(self.train))
        course = CourseConfig(len(self.train), num_rounds, strategy, **config)
        return agreements.Agreement(
            course, algorithm, self.variables, self.schedule,
            {
                "x": jax.ShapeDtypeStruct((DIM,), jnp.float32),
                "y": jax.ShapeDtypeStruct((), jnp.float32),
            },
        )  # fmt: skip

    def nodes(self, agreement, numbers=(1, 2, 3)):
        """Nodes by id; made once, since nothing of a course but its seed reaches them."""
        made = (id(agreement.algorithm), numbers)
        if made not in self.made:
            self.made[made] = {
                100 + i: make_node(
                    agreement, self.train[i - 1], {"test": self.test[i - 1]}, number=numbers[i - 1]
                )
                for i in range(1, len(self.train) + 1)
            }
        return dict(self.made[made])

    def simulation(self, agreement, **options):
        def together(parts):
            joined = {k: np.concatenate([p[k] for p in parts]) for k in ("x", "y")}
            ends = np.cumsum([len(p["y"]) for p in parts])
            return gather_clients(joined, np.split(np.arange(ends[-1]), ends[:-1]))

        return make_simulation(
            agreement.config, agreement.algorithm, together(self.train), agreement.variables,
            agreement.schedule, mesh=make_mesh(devices=jax.devices()[:1]),
            splits={"test": together(self.test)}, **options,
        )  # fmt: skip

    def simulate(self, agreement, **options):
        simulation = self.simulation(agreement, **options)
        return run_course(simulation.course, simulation.start()).server


@pytest.fixture(scope="session")
def world():
    task = regression(Linear(), jax.ShapeDtypeStruct((DIM,), jnp.float32))
    variables = task.init(jax.random.key(0))
    return World(task, Schedule(4, 1), draw(0, SIZES), draw(1, (4, 4, 4)), variables)


@pytest.fixture(scope="session")
def keeping(world):
    """An algorithm whose clients keep something, which training twice would change."""
    return scaffold(world.task, 0.05, world.schedule, len(SIZES))


class FakeGrid:
    """Nodes that answer after some seconds of a clock that only waiting moves."""

    def __init__(self, nodes, folder, seconds=None):
        self.all, self.folder = nodes, folder
        self.seconds = seconds or {node: 1.0 for node in nodes}
        self.online = set(nodes)
        self.now, self.count, self.heap, self.gone = 0.0, 0, [], []
        self.free = dict.fromkeys(nodes, 0.0)
        self.parcels = []
        self.swallow = lambda node, messages: False
        self.change = lambda node, answers: answers

    def clock(self):
        return self.now

    def wait(self, seconds):
        self.now = round(self.now + seconds, 9)

    def nodes(self):
        return self.online

    def send(self, node, kind, messages):
        if node not in self.online:
            return None
        self.count += 1
        ticket = f"ticket{self.count}"
        asked = [unpack(packed, MAX_BYTES) for packed in messages]
        self.parcels.append((node, kind, asked))
        works = kind == "train"
        ready = max(self.now, self.free[node]) + (self.seconds[node] if works else 0.0)
        self.free[node] = ready
        heapq.heappush(self.heap, (ready, self.count, ticket, node, asked))
        return ticket

    def stop(self, node, *, tell=True):
        """The node is gone, and with it what it was asked for; Flower may know it or not."""
        self.online.discard(node)
        kept = [entry for entry in self.heap if entry[3] != node]
        if tell:
            self.gone += [entry[2] for entry in self.heap if entry[3] == node]
        self.heap = kept
        heapq.heapify(self.heap)

    def receive(self):
        deliveries = [Delivery(ticket, is_lost=True) for ticket in self.gone]
        self.gone = []
        while self.heap and self.heap[0][0] <= self.now:
            _, _, ticket, node, asked = heapq.heappop(self.heap)
            if self.swallow(node, asked):
                continue
            memory = Memory(self.folder / str(node), self.all[node].forms.client)
            answers = self.change(node, answer(self.all[node], memory, asked))
            packed = [a if isinstance(a, tuple) else Packer()(a) for a in answers]
            deliveries.append(Delivery(ticket, tuple(packed)))
        return deliveries


@pytest.fixture
def deploy(world, tmp_path):
    """Runs a course over nodes in this process."""

    def deploy(
        agreement, grid=None, state=None, *, learner=None, on_progress=lambda state: None,
        seconds=None, **config,
    ):  # fmt: skip
        learner = learner or make_learner(agreement)
        grid = grid or FakeGrid(world.nodes(agreement), tmp_path, seconds)
        config.setdefault("poll_s", 0.25)
        return run_live(
            learner, state or LiveState(learner.start()), grid,
            LiveConfig(max_message_bytes=MAX_BYTES, **config), clock=grid.clock, wait=grid.wait,
            on_progress=on_progress,
        )  # fmt: skip

    return deploy


@pytest.fixture
def make_grid(world, tmp_path):
    def make_grid(agreement, seconds=None, numbers=(1, 2, 3)):
        return FakeGrid(world.nodes(agreement, numbers), tmp_path, seconds)

    return make_grid
