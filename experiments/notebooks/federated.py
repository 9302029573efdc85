# ---
# jupyter:
#   jupytext:
#     formats: py:percent,ipynb
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Learning from data that stays where it is
#
# Many clients train one model without showing their data; a server averages what they send. This
# notebook simulates such courses on virtual time, after Xie et al. 2023 (FederatedScope),
# [arXiv:2204.05011](https://arxiv.org/abs/2204.05011). It fetches nothing and runs in a few minutes
# on a CPU, a Colab machine or a TPU host.
#
# 1. Clients that differ, and a course.
# 2. Synchronous and asynchronous, on the same slow and fast devices.
# 3. A model for every client.
# 4. Your own data.
# 5. Your own message.

# %% [markdown]
# ## 0. Setup
#
# In the checkout of the project this cell only looks around. Elsewhere, as on Colab, put the git
# address of the project into `SOURCE`: it is fetched and installed.

# %%
import importlib.util
import subprocess
import sys
from pathlib import Path

SOURCE = ""  # git address of the project, where this notebook does not lie in a checkout of it


def find_checkout() -> Path:
    here = Path.cwd()
    for folder in (here, *here.parents, here / "jaxlab-checkout"):
        if (folder / "experiments" / "notebooks").is_dir():
            return folder
    if not SOURCE:
        raise FileNotFoundError(f"{here} is in no checkout: set SOURCE to the git address")
    target = here / "jaxlab-checkout"
    subprocess.run(["git", "clone", "--quiet", "--depth=1", SOURCE, str(target)], check=True)
    return target


checkout = find_checkout()
if any(importlib.util.find_spec(name) is None for name in ("jaxtyping", "flax", "optax")):
    packages = [sys.executable, "-m", "pip", "install", "--quiet", "-e", str(checkout)]
    subprocess.run(packages, check=True)
sys.path.insert(0, str(checkout))

# %% [markdown]
# On a CPU, JAX is told to make a device of every core: each trains clients of its own. Real
# accelerators are taken as they are.

# %%
import os

import jax

jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)  # before JAX is first used
print(jax.device_count(), "devices:", jax.devices()[0].device_kind)

# %% [markdown]
# ## 1. Clients that differ, and a course
#
# Forty clients. The labels of each follow a mixture of two linear rules, and most clients follow
# nearly one of them: what is right for one client is wrong for another.

# %%
import jax.numpy as jnp
import numpy as np
import optax

from jaxlab import federated, parallel
from jaxlab.federated import datasets, models

NUM_CLIENTS = 40
data = datasets.make_logistic_mixture(
    NUM_CLIENTS, dim=20, num_components=2, alpha=0.2, num_val=50, num_test=200
)
sizes = np.asarray(data.train.sizes)
print(f"{NUM_CLIENTS} clients train on {sizes.min()} to {sizes.max()} examples")

# %% [markdown]
# A course is an algorithm (what is exchanged), a strategy (when the server aggregates), and data. A
# round asks ten clients to train for ten steps.

# %%
example = jax.ShapeDtypeStruct((20,), jnp.float32)
task = federated.classification(models.LogisticRegression(2), example, masked=True)
schedule = federated.Schedule(batch_size=20, amount=10, unit="step")
algorithm = federated.fed_avg(task, optax.sgd(0.3), schedule)
mesh = parallel.make_mesh()


def simulate(algorithm, strategy, num_rounds, every_rounds=1, variables=None, **options):
    config = federated.CourseConfig(
        NUM_CLIENTS, num_rounds, strategy, eval_every_rounds=every_rounds
    )
    start = task.init(jax.random.key(0)) if variables is None else variables
    return federated.make_simulation(
        config, algorithm, data.train, start, schedule, mesh=mesh, splits={"test": data.test},
        **options,
    )  # fmt: skip


simulation = simulate(algorithm, federated.Strategy(cohort_size=10), num_rounds=20)
state = federated.run_course(simulation.course, simulation.start())
print(state.server.evaluations[-1].metrics)
print(simulation.report(state))

# %% [markdown]
# ## 2. Synchronous and asynchronous
#
# Real clients are slow and fast. Give everyone a device, and time becomes part of the course: it is
# virtual, an integer of microseconds, and does not depend on the machine that simulates.
#
# The synchronous server waits for the slowest of ten. The asynchronous one (FedBuff) aggregates as
# soon as four updates have come, counts late ones less, and sends the model to a new client
# whenever one has answered.

# %%
rng = np.random.default_rng(0)
devices = [
    federated.Device(compute_ms=20 * speed, bandwidth_kbps=5000 / speed)
    for speed in np.exp(rng.standard_normal(NUM_CLIENTS))
]
paces = {
    "synchronous": federated.Strategy(cohort_size=10),
    "asynchronous": federated.Strategy(
        kind="goal_achieved", cohort_size=10, min_updates=4, max_staleness=10,
        staleness_exponent=0.5, broadcast="after_receiving",
    ),
}  # fmt: skip
courses = {}
for name, strategy in paces.items():
    rounds = 20 if name == "synchronous" else 50
    simulation = simulate(algorithm, strategy, rounds, devices=devices)
    courses[name] = federated.run_course(simulation.course, simulation.start()).server.evaluations
    last = courses[name][-1]
    print(
        f"{name}: {last.time_us / 1e6:.0f} virtual s, accuracy {last.metrics['test/correct']:.3f}"
    )

# %%
from experiments.common.axes import Axis
from experiments.common.plots import Plot, Series, draw_plots

lines = [
    Series(
        name,
        [evaluation.time_us / 1e6 for evaluation in evaluations],
        [evaluation.metrics["test/correct"] for evaluation in evaluations],
    )
    for name, evaluations in courses.items()
]
plot = Plot(lines, Axis("virtual time", kind="seconds"), Axis("test accuracy", kind="percent"))
draw_plots([plot], title="The same clients, two paces")

# %% [markdown]
# What went into an aggregation is on record: who was fresh, who was late and by how much.

# %%
simulation = simulate(algorithm, paces["asynchronous"], 6, every_rounds=0, devices=devices)
for done in federated.run_course(simulation.course, simulation.start()).server.aggregations:
    late = ", ".join(f"{client} of round {version}" for version, client in done.stale) or "none"
    print(f"round {done.round} at {done.time_us / 1e6:4.1f} s: fresh {done.fresh}; late: {late}")

# %% [markdown]
# ## 3. A model for every client
#
# One model cannot follow two rules. Ditto keeps a model of its own at every client, held near the
# shared one; FedEM learns two models and how each client mixes them; fine-tuning trains a little
# before every evaluation. Each is another `Algorithm`, and runs under every pace.

# %%
tuning = federated.Schedule(batch_size=20, amount=20, unit="step")
algorithms = {
    "shared model": algorithm,
    "fine-tuned": federated.fine_tuned(
        algorithm, federated.fed_avg(task, optax.sgd(0.3), tuning), tuning
    ),
    "Ditto": federated.ditto(task, optax.sgd(0.3), schedule, regularisation=0.1),
    "FedEM": federated.fed_em(task, optax.sgd(0.3), schedule),
}
accuracies = {}
for name, each in algorithms.items():
    start = federated.init_models(task, jax.random.key(1), 2) if name == "FedEM" else None
    simulation = simulate(each, paces["synchronous"], 40, every_rounds=40, variables=start)
    state = federated.run_course(simulation.course, simulation.start())
    accuracies[name] = state.server.evaluations[-1].metrics["test/correct"]
    print(f"{name:13} {accuracies[name]:.3f}")

# %% [markdown]
# The mean hides who fares badly; `simulation.evaluate` gives the sums of every client.

# %%
correct = simulation.evaluate(state)["test"]["correct"]
of_clients = np.sort(correct[:, 0] / correct[:, 1])
worst = of_clients[: NUM_CLIENTS // 10].mean()
print(f"the worst tenth of the clients with FedEM: {worst:.3f}")

# %% [markdown]
# ## 4. Your own data
#
# Arrays and a column that says whose a row is are enough. (`datasets.load_csv` and `load_npz` read
# files; splitters such as `split_by_dirichlet` make clients of data that has none.)

# %%
x = rng.normal(size=(900, 4)).astype(np.float32)
user = rng.choice(["ada", "bob", "eve"], 900, p=[0.6, 0.3, 0.1])
y = (x @ np.array([1.0, -2.0, 0.5, 0.0]) + 0.3 * rng.normal(size=900) > 0).astype(np.int32)

info = datasets.DataInfo("mine", "drawn in this notebook", num_classes=2)
split, users = federated.split_by_key(user)
mine = datasets.federate(
    datasets.CentralData(info, {"x": x, "y": y}),
    split,
    shares=(0.8, 0.0, 0.2),
    names=users.tolist(),
)
print(dict(zip(mine.names, np.asarray(mine.train.sizes).tolist(), strict=True)))

own_task = federated.classification(
    models.LogisticRegression(2), jax.ShapeDtypeStruct((4,), jnp.float32), masked=True
)
simulation = federated.make_simulation(
    federated.CourseConfig(3, 15, federated.Strategy(cohort_size=3), eval_every_rounds=15),
    federated.fed_avg(own_task, optax.sgd(0.5), schedule),
    mine.train, own_task.init(jax.random.key(0)), schedule, mesh=mesh, splits=mine.splits,
)  # fmt: skip
state = federated.run_course(simulation.course, simulation.start())
print(
    f"accuracy on what they kept apart: {state.server.evaluations[-1].metrics['test/correct']:.3f}"
)

# %% [markdown]
# ## 5. Your own message
#
# Server and clients are maps from messages to handlers. Here clients tell the charge of their
# battery with every update, in a message of a new type, and the server no longer asks those that
# run low. Before the start the graph of messages is checked: a message without a handler, or a
# course that cannot end, is an error and not a course that hangs.

# %%
from jaxlab.federated.messages import FAILURE, MODEL

charge = {client: 100 for client in range(1, NUM_CLIENTS + 1)}
simulation = simulate(algorithm, federated.Strategy(cohort_size=10), 6, every_rounds=0)
train = simulation.course.client.rules[MODEL].handler


def on_model(state, message):
    state, sent = train(state, message)
    charge[state.id] -= 30
    return state, [*sent, message.reply("battery", charge[state.id])]


def on_battery(state, message):
    if message.content < 50:
        state.excluded.add(message.sender)
    return state, []


client = simulation.course.client.on(MODEL, on_model, may_send=(MODEL, FAILURE, "battery"))
print(federated.check_completeness(simulation.course.server, client).problems[0])

# %%
server = simulation.course.server.on("battery", on_battery)
print(federated.check_completeness(server, client).verdict)
course = simulation.course._replace(server=server, client=client)
state = federated.run_course(course, simulation.start())
print(f"{len(state.server.excluded)} clients run low, none below {min(charge.values())} %")

# %% [markdown]
# Commands run larger courses, on data, models and losses of your own, too, with progress,
# checkpoints, tables and pictures. This one is MNIST over 500 clients:
#
#     python -m experiments.federated.simulate --config=configs/federated/tiny.py --workdir=DIR
