"""FedAvg in pfl-research 0.6.0 on torch: its algorithm, its simulated backend, one process."""

from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel

from experiments.federated.peers.gate import Gate, open_gate, read_work
from experiments.federated.peers.torch_mlp import MLP, shuffled, to_layers


class Network(MLP):
    """The network with what the model of pfl asks for."""

    def loss(self, x: torch.Tensor, y: torch.Tensor, is_eval: bool = False) -> torch.Tensor:
        """Mean cross-entropy of a batch."""
        self.train(not is_eval)
        return torch.nn.functional.cross_entropy(self(x), y)

    def metrics(self, x: torch.Tensor, y: torch.Tensor, is_eval: bool = True) -> dict[str, Any]:
        """The loss, for evaluations."""
        return {"loss": Weighted(self.loss(x, y, is_eval).item() * len(y), len(y))}


class BetweenRounds(TrainingProcessCallback):
    """Waits at the gate after every round."""

    def __init__(self, gate: Gate) -> None:
        """Remember the gate."""
        self._gate = gate

    def after_central_iteration(
        self, aggregate_metrics: Any, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Whether to stop, and no metrics."""
        del aggregate_metrics, central_iteration
        return not self._gate.wait(lambda: to_layers(model.pytorch_model)), Metrics()


def main() -> None:
    """Run rounds until no other is wanted."""
    path, gate = open_gate()
    work, x, y, layers = read_work(path)
    network = Network(layers)
    model = PyTorchModel(
        network,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(network.parameters(), 1.0),
    )
    rng = np.random.default_rng(0)
    tensors = [(torch.from_numpy(a), torch.from_numpy(b)) for a, b in zip(x, y, strict=True)]

    def make_dataset(user: int) -> Any:
        return PyTorchTensorDataset(shuffled(tensors[user], rng), user_id=str(user))

    # Every user once before any comes again: with the cohort of the course no user comes twice.
    sampler = get_user_sampler("minimize_reuse", list(range(len(x))))
    data = FederatedDataset(make_dataset, sampler)
    gate.wait(lambda: to_layers(network))
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=work["num_rounds"],
            evaluation_frequency=work["num_rounds"] + 1,
            train_cohort_size=work["cohort_size"],
            val_cohort_size=0,
        ),
        SimulatedBackend(data, data, postprocessors=[WeightByDatapoints()]),
        model,
        NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=work["rate"],
            local_batch_size=work["batch_size"],
        ),
        NNEvalHyperParams(local_batch_size=work["client_size"]),
        [BetweenRounds(gate)],
    )  # fmt: skip


if __name__ == "__main__":
    main()
