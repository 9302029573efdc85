"""Learning without labels by two views of every picture: FedSimCLR, and FedGC, which exchanges.

    python -m experiments.federated.simulate --config=configs/federated/contrastive.py:fed_gc \
        --workdir=runs/fed_gc --config.data.path=data/cifar-10-batches-py
    python -m experiments.federated.probe --config=configs/federated/contrastive.py:fed_gc \
        --workdir=runs/fed_gc --config.data.path=data/cifar-10-batches-py

`fed_simclr` and `fed_gc` are the examples of the original: CIFAR-10 over 5 clients that differ
(Dirichlet 0.1), a ResNet-18 with a projector, 10 rounds of 5 steps with batches of 512 at rate 0.05
and momentum 0.9; it publishes no accuracy of them. `digits_simclr` and `digits_gc` are small enough
for a CPU: MNIST over 10 clients (Dirichlet 0.1), a network of 3 stages, 10 rounds of 5 steps with
batches of 64.

References:
  `federatedscope/cl/baseline/fedsimclr_on_cifar10.yaml` and `fedgc_on_cifar10.yaml` of
  FederatedScope 0.3.0.
"""

from experiments.common import to_config_dict
from experiments.federated.settings import (
    AlgorithmConfig,
    DataConfig,
    EvaluationConfig,
    LocalConfig,
    ModelConfig,
    RunConfig,
    StrategyConfig,
    TaskConfig,
)
from experiments.federated.settings.algorithm import AlgorithmName

VERB = "simulate"
ALGORITHMS: dict[str, AlgorithmName] = {
    "fed_simclr": "fed_avg",
    "fed_gc": "fed_gc",
    "digits_simclr": "fed_avg",
    "digits_gc": "fed_gc",
}
KINDS = tuple(ALGORITHMS)


def get_config(arg: str = "fed_simclr"):
    if arg not in KINDS:
        raise ValueError(f"contrastive.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    is_small = arg.startswith("digits")
    data = DataConfig(
        name="cifar10",
        path="data/cifar-10-batches-py",
        num_clients=5,
        splitter="dirichlet",
        alpha=0.1,
    )
    if is_small:
        data = DataConfig(
            name="mnist", num_clients=10, splitter="dirichlet", alpha=0.1, subsample=0.2
        )
    small = ModelConfig(name="simclr", blocks=(1, 1, 1), stages=(8, 16, 32), hidden=64)
    views = TaskConfig(name="contrastive", flip=0.0) if is_small else TaskConfig(name="contrastive")
    return to_config_dict(
        RunConfig(
            num_rounds=10,
            data=data,
            model=small if is_small else ModelConfig(name="simclr"),
            task=views,
            local=LocalConfig(
                batch_size=64 if is_small else 512,
                amount=5,
                unit="step",
                learning_rate=0.05,
                momentum=0.9,
                weight_decay=1e-4,
            ),
            algorithm=AlgorithmConfig(name=ALGORITHMS[arg]),
            strategy=StrategyConfig(cohort_share=1.0),
            evaluation=EvaluationConfig(every_rounds=5, metric="test/loss"),
        )
    )
