"""FedAvg in FederatedScope 0.3.0 on torch: its stand-alone runner, all clients share one model."""

import tempfile
from typing import Any

import numpy as np
import torch
from federatedscope.core.auxiliaries.runner_builder import get_runner
from federatedscope.core.configs.config import global_cfg
from federatedscope.core.data import ClientData, StandaloneDataDict
from federatedscope.core.workers import Client, Server
from federatedscope.register import register_model

from experiments.federated.peers.gate import open_gate, read_work
from experiments.federated.peers.torch_mlp import MLP, to_layers


class EndError(Exception):
    """No other round is wanted."""


def make_config(work: dict[str, Any], folder: str) -> Any:
    """The fastest settings: one model in memory, updates averaged as they come, no evaluation."""
    config = global_cfg.clone()
    config.merge_from_list(
        [
            "backend", "torch", "use_gpu", False, "seed", 0, "verbose", 0,
            "federate.mode", "standalone", "federate.method", "FedAvg",
            "federate.client_num", work["num_clients"],
            "federate.sample_client_num", work["cohort_size"],
            "federate.total_round_num", work["num_rounds"],
            "federate.share_local_model", True, "federate.online_aggr", True,
            "dataloader.batch_size", work["batch_size"],
            "model.type", "benchmark_mlp", "criterion.type", "CrossEntropyLoss",
            "train.local_update_steps", 1, "train.batch_or_epoch", "epoch",
            "train.optimizer.type", "SGD", "train.optimizer.lr", work["rate"],
            "trainer.type", "cvtrainer", "eval.freq", work["num_rounds"] + 1,
            "eval.count_flops", False, "early_stop.patience", 0, "data.type", "benchmark",
            "eval.report", ["weighted_avg"], "outdir", folder,
        ]
    )  # fmt: skip
    return config


def main() -> None:
    """Run rounds until no other is wanted."""
    path, gate = open_gate()
    work, x, y, layers = read_work(path)
    config = make_config(work, tempfile.mkdtemp())

    def make_model(model_config: Any, local_data: Any) -> Any:
        del local_data
        return MLP(layers) if model_config.type == "benchmark_mlp" else None

    register_model("benchmark_mlp", make_model)

    class GatedServer(Server):
        """Waits before it sends the model of a round."""

        def broadcast_model_para(self, msg_type: str = "model_para", *args: Any, **kw: Any) -> None:
            if msg_type == "model_para" and not gate.wait(lambda: to_layers(self.model)):
                raise EndError
            super().broadcast_model_para(msg_type, *args, **kw)

    pairs = zip(torch.from_numpy(x), torch.from_numpy(y), strict=True)
    rows = {
        client: ClientData(config, train=list(zip(inputs, labels, strict=True)))
        for client, (inputs, labels) in enumerate(pairs, start=1)
    }
    np.random.seed(0)
    runner = get_runner(GatedServer, Client, config, data=StandaloneDataDict(rows, config))
    try:
        runner.run()
    except EndError:
        pass


if __name__ == "__main__":
    main()
