"""CIFAR-10 with two convolutions, as published: a synchronous course and an asynchronous one.

    python -m experiments.federated.simulate --config=configs/federated/cifar10.py:asynchronous \
        --workdir=runs/cifar10 --config.data.path=data/cifar-10-batches-py \
        --config.devices.path=client_device_capacity.json

`synchronous`: 5 clients that differ much (Dirichlet 0.05), one of them a round, 300 rounds of one
epoch in batches of 64 at rate 0.01, gradients clipped at 5. (The original's file gives the model 62
outputs; here it has the 10 that there are classes.)

`asynchronous` is the example of the original: 200 clients (Dirichlet 0.2, of a fifth of the
pictures), 13 of which work at a time; 2 steps of 10 pictures at rate 0.5, gradients clipped at 5;
the server aggregates 10 updates that are at most 10 rounds old, worth (1 + staleness) ** -0.2, and
sends the model to a client whenever one has answered; 20 rounds. The devices are those of FedScale,
whose file is to be placed; `drawn` takes drawn ones.

The original publishes no accuracy of either. A neighbouring figure, of FedScale: 27,618 virtual
seconds for 100 synchronous rounds (top-5 accuracy 91.4 %) and 18,913 for 180 asynchronous ones
(92 %).

References:
  Xie et al. 2023, arXiv:2204.05011; `federatedscope/cv/baseline/fedavg_convnet2_on_cifar10.yaml`
  and `scripts/example_configs/asyn_cifar10.yaml` of FederatedScope.
"""

from experiments.common import to_config_dict
from experiments.federated.settings import (
    DataConfig,
    DevicesConfig,
    EarlyStopConfig,
    EvaluationConfig,
    LocalConfig,
    ModelConfig,
    RunConfig,
    StrategyConfig,
)

VERB = "simulate"
KINDS = ("synchronous", "asynchronous", "drawn")


def get_config(arg: str = "synchronous"):
    if arg not in KINDS:
        raise ValueError(f"cifar10.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    if arg == "synchronous":
        return to_config_dict(synchronous())
    devices = DevicesConfig(kind="file", path="client_device_capacity.json")
    return to_config_dict(asynchronous(DevicesConfig(kind="drawn") if arg == "drawn" else devices))


def synchronous():
    return RunConfig(
        num_rounds=300,
        data=DataConfig(
            name="cifar10",
            path="data/cifar-10-batches-py",
            num_clients=5,
            splitter="dirichlet",
            alpha=0.05,
        ),
        model=ModelConfig(name="convnet2", hidden=2048, use_norm=True),
        local=LocalConfig(batch_size=64, learning_rate=0.01, clip_norm=5.0),
        strategy=StrategyConfig(cohort_share=0.2),
        evaluation=EvaluationConfig(metric="test/loss"),
        early_stop=EarlyStopConfig(patience=5),
    )


def asynchronous(devices):
    return RunConfig(
        num_rounds=20,
        seed=2,
        data=DataConfig(
            name="cifar10",
            path="data/cifar-10-batches-py",
            num_clients=200,
            splitter="dirichlet",
            alpha=0.2,
            subsample=0.2,
            shares=(0.8, 0.2, 0.0),
        ),
        model=ModelConfig(name="convnet2", hidden=512, use_norm=True),
        local=LocalConfig(batch_size=10, amount=2, unit="step", learning_rate=0.5, clip_norm=5.0),
        strategy=StrategyConfig(
            kind="goal_achieved",
            cohort_size=13,
            min_updates=10,
            max_staleness=10,
            staleness_exponent=0.2,
            broadcast="after_receiving",
        ),
        devices=devices,
        evaluation=EvaluationConfig(every_rounds=5),
    )
