"""FedAvg in Flower's simulation (flwr 1.42 on Ray) with torch: one actor a processor."""

import os
from typing import Any

from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from experiments.federated.peers.flower_client import make_client_app
from experiments.federated.peers.gate import open_gate, read_work
from experiments.federated.peers.torch_mlp import MLP, to_layers


class EndError(Exception):
    """No other round is wanted."""


def main() -> None:
    """Run rounds until no other is wanted."""
    path, gate = open_gate()
    work, _, _, layers = read_work(path)
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        del context
        strategy = FedAvg(
            fraction_train=work["cohort_size"] / work["num_clients"],
            fraction_evaluate=0.0,
            min_train_nodes=work["cohort_size"],
            min_available_nodes=work["num_clients"],
        )

        def between_rounds(number: int, arrays: ArrayRecord) -> None:
            del number
            network = MLP(layers)
            network.load_state_dict(arrays.to_torch_state_dict())
            if not gate.wait(lambda: to_layers(network)):
                raise EndError

        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(MLP(layers).state_dict()),
            num_rounds=work["num_rounds"],
            evaluate_fn=between_rounds,
        )

    resources: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0.0}
    try:
        run_simulation(
            server_app, make_client_app(path), num_supernodes=work["num_clients"],
            backend_config={
                "client_resources": resources,
                "init_args": {"num_cpus": len(os.sched_getaffinity(0))},
            },
        )  # fmt: skip
    except (EndError, RuntimeError) as error:
        if not isinstance(error, EndError) and not isinstance(error.__cause__, EndError):
            raise


if __name__ == "__main__":
    main()
