"""Makes federated_aggregators.npz: what the aggregators of FederatedScope 0.3.0 give.

    git clone https://github.com/alibaba/FederatedScope
    pip install torch==2.13.0 numpy yacs pyyaml scikit-learn pandas grpcio protobuf==3.20.3 pympler
    PYTHONPATH=FederatedScope python tests/golden/make_federated_aggregators.py

The original's own builder makes each of them from a configuration; models and updates are drawn by
NumPy (`draw`, which the test uses, too), so that only results are stored. Where a rule keeps
something, several aggregations follow one another.
"""

import functools
import operator
import types
from pathlib import Path

import numpy as np

SHAPES = {
    "scale": (3,),
    "conv.weight": (4, 3, 2),
    "conv.bias": (4,),
    "fc.weight": (5, 4),
    "fc.bias": (5,),
}
CASES = ((0, 11), (1, 11), (2, 12))
"""Seed and number of clients; the last two clients of every case are far away."""
BYZANTINE, SELECTED, BOUND, RATIO, BETA = 2, 4, 4.0, 0.25, 0.7
EXPONENTS = (0.0, 0.2, 0.5, 1.0)
SWA_ROUNDS, SWA_START, SWA_EVERY = 7, 2, 2
OPTIMIZERS = {
    "sgd": {"optimizer.lr": 0.5},
    "annealed": {
        "optimizer.lr": 0.5, "annealing": True, "annealing_step_size": 2, "annealing_gamma": 0.5
    },
    "momentum": {"optimizer.lr": 0.5, "optimizer.momentum": 0.9},
    "adam": {"optimizer.type": "Adam", "optimizer.lr": 0.1},
}  # fmt: skip
"""Settings of FedOpt; `OPT_ROUNDS` aggregations of each."""
OPT_ROUNDS = 5
ROBUST = {
    "krum": {"robust_rule": "krum", "BFT_args.krum_agg_num": 1},
    "multi_krum": {"robust_rule": "krum", "BFT_args.krum_agg_num": SELECTED},
    "bulyan": {"robust_rule": "bulyan"},
    "median": {"robust_rule": "median"},
    "trimmed_mean": {
        "robust_rule": "trimmedmean", "BFT_args.trimmedmean_excluded_ratio": RATIO
    },
    "norm_bounding": {
        "robust_rule": "normbounding", "BFT_args.normbounding_norm_bound": BOUND
    },
}  # fmt: skip


def draw(seed, num_clients):
    """A model, updates of all clients (clients, ...), their weights and their staleness."""
    rng = np.random.RandomState(seed)
    model = {name: rng.randn(*shape).astype(np.float32) for name, shape in SHAPES.items()}
    updates = {name: rng.randn(num_clients, *shape) for name, shape in SHAPES.items()}
    for update in updates.values():
        update *= rng.uniform(0.2, 1.0, (num_clients, *[1] * (update.ndim - 1)))
        update[-BYZANTINE:] += 8
    updates = {name: update.astype(np.float32) for name, update in updates.items()}
    return model, updates, rng.randint(1, 90, num_clients), rng.randint(0, 6, num_clients)


def make_model(tensors):
    """A module with the parameters of a model."""
    import torch

    module = torch.nn.Module()
    module.scale = torch.nn.Parameter(torch.zeros(3))
    module.conv, module.fc = torch.nn.Conv1d(3, 4, 2), torch.nn.Linear(4, 5)
    module.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
    return module


def make_aggregator(model, num_clients, options, *, method="FedAvg", online=False):
    """What the original makes of a configuration."""
    from federatedscope.core.auxiliaries.aggregator_builder import get_aggregator
    from federatedscope.core.configs.config import global_cfg

    config = global_cfg.clone()
    settings = {
        "federate.client_num": num_clients, "federate.sample_client_rate": 1.0,
        "federate.method": method, "aggregator.byzantine_node_num": BYZANTINE, **options,
    }  # fmt: skip
    for name, value in settings.items():
        *path, last = name.split(".")
        functools.reduce(operator.getitem, path, config)[last] = value  # some have no default
    return get_aggregator(method, model=model, device="cpu", online=online, config=config)


def feedback(sent, weights):
    """Messages of all clients, new tensors every time: aggregators write into them."""
    import torch

    return [
        (int(n), {name: torch.from_numpy(value[i].copy()) for name, value in sent.items()})
        for i, n in enumerate(weights)
    ]


def to_models(model, updates):
    """Where clients arrive that start from a model."""
    return {name: model[name] + update for name, update in updates.items()}


def aggregate_once(seed, num_clients):
    """Case -> the model after one aggregation by name."""
    model, updates, weights, staleness = draw(seed, num_clients)
    ends = to_models(model, updates)
    found = {}

    def note(name, aggregator, sent, **info):
        result = aggregator.aggregate({"client_feedback": feedback(sent, weights), **info})
        found[name] = {key: value.detach().numpy().copy() for key, value in result.items()}

    def make(options, **how):
        return make_aggregator(make_model(model), num_clients, options, **how)

    note("mean", make({}), ends)
    note("ignore_weight", make({"federate.ignore_weight": True}), ends)
    online = make({}, online=True)
    online.reset()
    for content in feedback(ends, weights):
        online.inc(content)
    note("online", online, ends)
    late = [(client, int(tau)) for client, tau in enumerate(staleness, start=1)]
    for exponent in EXPONENTS:
        options = {"asyn.use": True, "asyn.staleness_discount_factor": exponent}
        note(f"late_{exponent}", make(options), updates, staleness=late)
    options |= {"federate.ignore_weight": True}
    note("late_ignore_weight", make(options), updates, staleness=late)
    note("pfedme", make({"personalization.beta": BETA}, method="pFedMe"), ends)
    for name, options in ROBUST.items():
        options = {f"aggregator.{option}": value for option, value in options.items()}
        note(name, make(options), updates)
    options = {"aggregator.robust_rule": "bulyan", "federate.sample_client_rate": 0.5}
    note("bulyan_half", make(options), updates)
    return found


def run_optimizer(options, seed, num_clients):
    """The model after some aggregations of FedOpt."""
    model = make_model(draw(seed, num_clients)[0])
    options = {"use": True, "optimizer.type": "SGD", **options}
    options = {f"fedopt.{option}": value for option, value in options.items()}
    aggregator = make_aggregator(model, num_clients, options)
    for number in range(OPT_ROUNDS):
        _, updates, weights, _ = draw(seed + 10 * number, num_clients)
        now = {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}
        sent = feedback(to_models(now, updates), weights)
        model.load_state_dict(aggregator.aggregate({"client_feedback": sent}))
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}


def run_swa():
    """The mean of models, one after another, that the original's server wrapper makes."""
    import torch
    from federatedscope.core.configs.config import global_cfg
    from federatedscope.core.workers.wrapper.fedswa import wrap_swa_server

    config = global_cfg.clone()
    settings = {
        "federate.sample_client_num": 1, "fedswa.start_rnd": SWA_START,
        "fedswa.freq": SWA_EVERY, "eval.freq": SWA_ROUNDS + 1,
    }  # fmt: skip
    config.merge_from_list([item for pair in settings.items() for item in pair])
    model = make_model(draw(0, 3)[0])
    server = types.SimpleNamespace(
        _cfg=config, state=0, sample_client_num=1, total_round_num=SWA_ROUNDS, models=[model],
        check_buffer=lambda *args: True, staled_msg_buffer=[],
        msg_buffer={"train": {number: {} for number in range(SWA_ROUNDS)}},
        _start_new_training_round=lambda *args: None,
    )  # fmt: skip

    def aggregate():
        updates = draw(server.state, 3)[1]
        moved = {
            name: value + torch.from_numpy(updates[name][0])
            for name, value in model.state_dict().items()
        }
        model.load_state_dict(moved)
        return 1

    server._perform_federated_aggregation = aggregate
    wrap_swa_server(server).eval = lambda: None
    with torch.no_grad():
        for _ in range(SWA_ROUNDS):
            server.check_and_move_on()
    return {name: value.numpy().copy() for name, value in server.swa_models_ws[0].items()}


def flat(tensors):
    """All numbers of a model, in the order of `SHAPES`."""
    return np.concatenate([np.ravel(tensors[name]) for name in SHAPES])


def main():
    """Write the goldens."""
    import torch

    found = {"torch": np.array(torch.__version__), "swa": flat(run_swa())}
    for seed, num_clients in CASES:
        cases = aggregate_once(seed, num_clients)
        for name, options in OPTIMIZERS.items():
            cases[f"fedopt_{name}"] = run_optimizer(options, seed, num_clients)
        found |= {f"{seed}/{name}": flat(tensors) for name, tensors in cases.items()}
    np.savez_compressed(Path(__file__).with_name("federated_aggregators.npz"), **found)


if __name__ == "__main__":
    main()
