"""Makes federated_courses.npz: three rounds of courses of FederatedScope 0.3.0.

    git clone https://github.com/alibaba/FederatedScope
    pip install torch==2.13.0 numpy yacs pyyaml scikit-learn pandas grpcio protobuf==3.20.3 pympler
    PYTHONPATH=FederatedScope python tests/golden/make_federated_courses.py

Three clients with 5, 9 and 8 examples, all of them in every round, batches of four in the order of
the examples; logistic regression of 6 numbers into 3 classes, and its ConvNet2 for pictures of
8 x 8, whose weights are set at the start. What the server ends with is stored for every method, of
FedEM all models; of ConvNet2 every 37th number of every tensor. FedBN and FedRep have two layers
and batches of five (a batch norm stops on one example), and the tensors that clients keep are
stored of all clients.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from federatedscope.core.auxiliaries.runner_builder import get_runner
from federatedscope.core.auxiliaries.worker_builder import get_client_cls, get_server_cls
from federatedscope.core.configs.config import global_cfg
from federatedscope.core.data import ClientData, StandaloneDataDict
from federatedscope.cv.model.cnn import ConvNet2
from federatedscope.register import register_model

SIZES, INPUTS, HIDDEN, CLASSES, ROUNDS, MODELS = (5, 9, 8), 6, 4, 3, 3, 3
RATE, STRIDE = 0.3, 37
METHODS = {
    "FedAvg": {},
    "FedProx": {"fedprox.use": True, "fedprox.mu": 0.5},
    "FedOpt": {"fedopt.use": True, "fedopt.optimizer.type": "SGD", "fedopt.optimizer.lr": 0.5},
    "Ditto": {
        "federate.method": "Ditto",
        "personalization.regular_weight": 0.4,
        "personalization.local_update_steps": 2,
    },
    "pFedMe": {
        "federate.method": "pFedMe",
        "personalization.regular_weight": 2.0,
        "personalization.lr": 0.2,
        "personalization.K": 3,
        "personalization.beta": 0.7,
    },
    "FedEM": {"federate.method": "FedEM", "model.model_num_per_trainer": MODELS},
}

LAYERED = {
    "FedBN": {"personalization.local_param": ["bn"]},
    "FedRep": {
        "federate.method": "FedRep",
        "personalization.local_param": ["fc2"],
        "personalization.lr_feature": 0.2,
        "personalization.lr_linear": 0.1,
        "personalization.epoch_feature": 1,
        "personalization.epoch_linear": 2,
    },
}


def draw(seed=0):
    """Inputs, labels, and weights of all models."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(sum(SIZES), INPUTS)).astype(np.float32)
    y = rng.integers(0, CLASSES, sum(SIZES))
    kernels = rng.normal(size=(MODELS, CLASSES, INPUTS)).astype(np.float32)
    biases = rng.normal(size=(MODELS, CLASSES)).astype(np.float32)
    return x, y, kernels, biases


def make_config(method, options):
    """The configuration of a course."""
    config = global_cfg.clone()
    settings = {
        "backend": "torch", "use_gpu": False, "seed": 0, "verbose": 0,
        "federate.mode": "standalone", "federate.method": "FedAvg",
        "federate.client_num": len(SIZES), "federate.sample_client_num": len(SIZES),
        "federate.total_round_num": ROUNDS, "dataloader.batch_size": 4,
        "dataloader.shuffle": False, "model.type": f"golden_{method}",
        "criterion.type": "CrossEntropyLoss", "train.local_update_steps": 1,
        "train.batch_or_epoch": "epoch", "train.optimizer.type": "SGD",
        "train.optimizer.lr": RATE, "trainer.type": "cvtrainer", "eval.freq": ROUNDS + 1,
        "eval.count_flops": False, "early_stop.patience": 0, "data.type": "golden",
        "eval.report": ["weighted_avg"], "eval.split": ["train"],
        "eval.best_res_update_round_wise_key": "train_loss",
        "outdir": tempfile.mkdtemp(), **options,
    }  # fmt: skip
    config.merge_from_list([item for pair in settings.items() for item in pair])
    return config


def play(name, options, make, x, y):
    """The original's course: the server's models at the end, and those of the clients.

    Args:
      name: of the model, of no other course.
      options: settings that differ from those of `make_config`.
      make: number of a model -> the model as it is at the start.
      x: inputs.
      y: labels.
    """
    config = make_config(name, options)

    def make_model(model_config, local_data):
        del local_data
        return make(0) if model_config.type == f"golden_{name}" else None

    register_model(f"golden_{name}", make_model)
    runner = make_runner(config, x, y)
    models = getattr(runner.server, "models", None) or [runner.server.model]
    for number, model in enumerate(models):
        model.load_state_dict(make(number).state_dict())
    runner.run()
    clients = [runner.client[number].model for number in range(1, len(SIZES) + 1)]
    return models, clients


def run(method, options):
    """The kernels and biases of the server's models after the course."""
    x, y, kernels, biases = draw()

    def make(number):
        model = torch.nn.Linear(INPUTS, CLASSES)
        tensors = {"weight": kernels[number], "bias": biases[number]}
        model.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
        return model

    models, _ = play(method, options, make, x, y)
    ends = [[p.detach().numpy().copy() for p in model.parameters()] for model in models]
    return [np.stack(parts) for parts in zip(*ends, strict=True)]


def make_runner(config, x, y):
    """The original's course over the examples that `SIZES` shares out."""
    rows = np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])
    data = {
        client: ClientData(
            config, train=[(torch.from_numpy(x[i]), torch.tensor(int(y[i]))) for i in own]
        )
        for client, own in enumerate(rows, start=1)
    }
    return get_runner(
        get_server_cls(config), get_client_cls(config), config,
        data=StandaloneDataDict(data, config),
    )  # fmt: skip


def draw_state(shapes, number):
    """Weights of a ConvNet2 by name."""
    rng = np.random.default_rng(number)
    state = {}
    for name in sorted(shapes):
        value = 0.1 * rng.normal(size=shapes[name])
        is_scale = name.startswith("bn") and name.endswith(("weight", "running_var"))
        state[name] = (abs(value) + 1 if is_scale else value).astype(np.float32)
    return state


def run_convnet(method, options):
    """Every `STRIDE`th number of the tensors of the server's models, (models, numbers)."""
    x, y = draw_pictures()
    models, _ = play(f"convnet_{method}", options, make_convnet, x, y)
    return {
        f"convnet/{method}/{name}": np.stack(
            [model.state_dict()[name].numpy().ravel()[::STRIDE] for model in models]
        )
        for name in models[0].state_dict()
        if not name.endswith(("num_batches_tracked", "running_mean", "running_var"))
    }


def draw_pictures():
    """Pictures, channels first, and labels."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(sum(SIZES), 1, 8, 8)).astype(np.float32)
    return x, rng.integers(0, CLASSES, sum(SIZES))


def make_convnet(number):
    """A ConvNet2 with drawn weights."""
    model = ConvNet2(1, 8, 8, hidden=16, class_num=CLASSES, use_bn=True)
    counted = "num_batches_tracked"
    shapes = {n: tuple(v.shape) for n, v in model.state_dict().items() if not n.endswith(counted)}
    tensors = {n: torch.from_numpy(v) for n, v in draw_state(shapes, number).items()}
    model.load_state_dict({**model.state_dict(), **tensors})
    return model


class Layered(torch.nn.Module):
    """A body and a head, with a batch norm between them or without."""

    def __init__(self, norm):
        super().__init__()
        self.fc1, self.fc2 = torch.nn.Linear(INPUTS, HIDDEN), torch.nn.Linear(HIDDEN, CLASSES)
        self.bn = torch.nn.BatchNorm1d(HIDDEN) if norm else torch.nn.Identity()

    def forward(self, x):
        """Logits."""
        return self.fc2(torch.tanh(self.bn(self.fc1(x))))


def run_layered(method, options):
    """The tensors of the server's model, and of the clients' those that they keep."""
    x, y, _, _ = draw()

    def make(number):
        model = Layered(norm=method == "FedBN")
        shapes = {n: tuple(v.shape) for n, v in model.state_dict().items() if v.ndim}
        tensors = {n: torch.from_numpy(v) for n, v in draw_state(shapes, 5 + number).items()}
        model.load_state_dict(tensors, strict=False)
        return model

    (server,), clients = play(method, {"dataloader.batch_size": 5, **options}, make, x, y)
    own = options["personalization.local_param"][0]
    found = {f"{method}/{name}": v.numpy() for name, v in server.state_dict().items()}
    for name in [name for name in found if own in name]:
        tensor = name.removeprefix(f"{method}/")
        found[name] = np.stack([client.state_dict()[tensor].numpy() for client in clients])
    return found


def main():
    """Write the goldens."""
    x, y, kernels, biases = draw()
    found = {"x": x, "y": y, "kernels": kernels, "biases": biases, "torch": torch.__version__}
    for method, options in METHODS.items():
        kernel, bias = run(method, options)
        found |= {f"{method}/kernel": kernel, f"{method}/bias": bias}
        print(method, kernel.shape, np.abs(kernel[0] - kernels[0]).max())
        if method != "FedOpt":  # it leaves the statistics of batch norms as they are
            found |= run_convnet(method, {**options, "train.optimizer.lr": 0.05})
    for method, options in LAYERED.items():
        found |= run_layered(method, options)
    np.savez_compressed(Path(__file__).with_name("federated_courses.npz"), **found)


if __name__ == "__main__":
    main()
