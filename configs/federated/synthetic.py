"""Logistic regression on mixtures of logistic models, as published; the data is drawn.

    python -m experiments.federated.simulate --config=configs/federated/synthetic.py:ditto \
        --workdir=runs/synthetic

300 clients, of which a fifth trains in each of 200 rounds, batches of 64. Every client validates
and tests on 5,000 examples, which take 1.8 GB. Published test accuracy, and the settings behind it:

| argument | accuracy | local training | rate | beside                                   |
|----------|----------|----------------|------|------------------------------------------|
| fed_avg  | 68.36    | 10 steps       | 0.1  |                                          |
| fed_opt  | 68.32    | 10 steps       | 0.1  | server: SGD at 0.5                       |
| fed_prox | 68.36    | 10 steps       | 0.1  | mu 0.1                                   |
| pfedme   | 68.73    | 30 steps       | 0.5  | lambda 1, K 3, w moves after every epoch |
| ditto    | 69.67    | 30 steps       | 0.1  | lambda 0.1, 30 steps of the own model    |
| fed_em   | 68.80    | 30 steps       | 0.01 | 3 models                                 |

References:
  Xie et al. 2023, arXiv:2204.05011; Marfoq et al. 2021, arXiv:2108.10252 (the data);
  `federatedscope/nlp/baseline` and `scripts/personalization_exp_scripts` of FederatedScope.
"""

import dataclasses
from typing import Any

from experiments.common import to_config_dict
from experiments.federated.settings import (
    AlgorithmConfig,
    DataConfig,
    EarlyStopConfig,
    EvaluationConfig,
    LocalConfig,
    RunConfig,
    ServerConfig,
    StrategyConfig,
)

VERB = "simulate"
KINDS = ("fed_avg", "fed_opt", "fed_prox", "pfedme", "ditto", "fed_em")

SHARED = LocalConfig(batch_size=64, amount=10, unit="step", learning_rate=0.1)
OWN = dataclasses.replace(SHARED, amount=30)
PARTS: dict[str, dict[str, Any]] = {
    "fed_avg": {"local": SHARED},
    "fed_opt": {
        "local": SHARED,
        "server": ServerConfig(optimizer="sgd", learning_rate=0.5),
    },
    "fed_prox": {"local": SHARED, "algorithm": AlgorithmConfig(prox_mu=0.1)},
    "pfedme": {
        "local": dataclasses.replace(OWN, learning_rate=0.5),
        "algorithm": AlgorithmConfig(
            name="pfedme", regularisation=1.0, num_inner_steps=3, outer="epoch"
        ),
    },
    "ditto": {"local": OWN, "algorithm": AlgorithmConfig(name="ditto")},
    "fed_em": {
        "local": dataclasses.replace(OWN, learning_rate=0.01),
        "algorithm": AlgorithmConfig(name="fed_em"),
    },
}


def get_config(arg: str = "fed_avg"):
    if arg not in KINDS:
        raise ValueError(f"synthetic.py:{arg} is unknown; use one of {', '.join(KINDS)}")
    return to_config_dict(
        RunConfig(
            num_rounds=200,
            data=DataConfig(name="synthetic", num_clients=300),
            strategy=StrategyConfig(cohort_share=0.2),
            evaluation=EvaluationConfig(every_rounds=10, splits=("val", "test"), metric="val/loss"),
            early_stop=EarlyStopConfig(patience=5),
            **PARTS[arg],
        )
    )
