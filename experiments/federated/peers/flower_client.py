"""The client of `flower_rounds`, in a module of its own, which Ray's actors import."""

import functools
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from experiments.federated.peers.gate import read_work
from experiments.federated.peers.torch_mlp import MLP, shuffled


@functools.cache
def read_once(path: str) -> Any:
    """The work, read once by an actor."""
    return read_work(path)


def make_client_app(path: str) -> ClientApp:
    """What a node does: an epoch over its part of the data."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        work, x, y, layers = read_once(path)
        client = int(context.node_config["partition-id"])
        network = MLP(layers)
        network.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(network.parameters(), lr=work["rate"])
        tensors = (torch.from_numpy(x[client]), torch.from_numpy(y[client]))
        mixed = shuffled(tensors, np.random.default_rng())
        for start in range(0, len(y[client]), work["batch_size"]):
            inputs, labels = (tensor[start : start + work["batch_size"]] for tensor in mixed)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(inputs), labels).backward()
            optimizer.step()
        content = {
            "arrays": ArrayRecord(network.state_dict()),
            "metrics": MetricRecord({"num-examples": len(y[client])}),
        }
        return Message(content=RecordDict(content), reply_to=message)

    return app
