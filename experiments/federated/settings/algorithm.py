"""Settings of the algorithm."""

import dataclasses
from typing import Literal

from experiments.federated.settings.checks import below, misplaced, negative, refuse

AlgorithmName = Literal[
    "fed_avg", "ada_fed_prox", "scaffold", "fed_nova", "fed_dyn", "mime", "mime_lite", "q_fed_avg",
    "local_entropy", "fed_rep", "ditto", "pfedme", "fed_em", "fed_gc", "atc",
]  # fmt: skip

# Setting -> the algorithms that read it; with others it is refused.
ALGORITHM_USES: dict[str, tuple[str, ...]] = {
    "prox_mu": ("fed_avg", "ada_fed_prox"),
    "prox_change": ("ada_fed_prox",),
    "prox_patience": ("ada_fed_prox",),
    "sharpness_rho": ("fed_avg",),
    "weighting": (
        "fed_avg", "ada_fed_prox", "fed_nova", "mime", "mime_lite", "local_entropy", "fed_rep",
        "fed_em", "fed_gc", "atc",
    ),
    "server_rate": ("scaffold", "mime", "mime_lite"),
    "alpha": ("fed_dyn",),
    "q": ("q_fed_avg",),
    "gamma": ("local_entropy",),
    "gamma_growth": ("local_entropy",),
    "noise": ("local_entropy",),
    "mean_rate": ("local_entropy",),
    "head": ("fed_rep",),
    "regularisation": ("ditto", "pfedme"),
    "personal_rate": ("ditto", "pfedme", "fed_rep"),
    "personal_amount": ("ditto", "fed_rep"),
    "num_inner_steps": ("pfedme",),
    "beta": ("pfedme",),
    "outer": ("pfedme",),
    "num_models": ("fed_em",),
    "global_weight": ("fed_gc",),
    "num_nearest": ("atc",),
    "num_groups": ("atc",),
    "inside_weight": ("atc",),
    "outside_weight": ("atc",),
    "compat": ("local_entropy", "fed_em", "fed_gc"),
}  # fmt: skip

PLAIN_SGD = ("scaffold", "fed_nova", "q_fed_avg", "local_entropy")
"""Algorithms that are defined for gradient steps and take no other optimizer of the clients."""

WITH_SERVER_OPTIMIZER = (
    "fed_avg", "fed_nova", "local_entropy", "fed_rep", "ditto", "fed_em", "fed_gc", "atc",
)  # fmt: skip
"""Algorithms whose server may step by an optimizer."""

PERSONAL = ("fed_rep", "ditto", "pfedme", "fed_em", "atc")
"""Algorithms whose clients evaluate with models of their own."""

KEEPS_ENTRIES = ("fed_avg", "fed_rep", "ditto", "pfedme", "fed_em", "atc")
"""Algorithms of which some entries of the model can stay with the clients."""

SYNCHRONOUS = {
    "mime": "its rounds take turns; mime_lite has one kind of round",
    "fed_gc": "the clients of a round wait for each other",
    "atc": "two updates of a client would move its model at once",
}
"""Algorithms whose courses are synchronous, and why."""


@dataclasses.dataclass(frozen=True)
class AlgorithmConfig:
    """The algorithm, with the numbers that it takes beside those of `local` and `server`.

    Attributes:
      name: `fed_avg`, the mean of what clients have trained; it is FedProx with `prox_mu`, FedSAM
        with `sharpness_rho`, FedBN with `personal.local_norms`, FedOpt with `server.optimizer` and
        FedSWA with `averaging.start_round`. `ada_fed_prox`, FedProx whose weight adapts;
        `scaffold`, control variates; `fed_nova`, steps that are normalised; `fed_dyn`, a penalty
        that changes; `mime` and `mime_lite`, the server's optimizer at the clients; `q_fed_avg`,
        large losses count more; `local_entropy`, walks with noise. With a model of every client:
        `fed_rep`, its own head; `ditto`, its own model near the shared one; `pfedme`, steps from
        the shared one; `fed_em`, its own mixture of shared ones; `atc`, its own at the server,
        moved by the updates that are like its own. `fed_gc` is for `task.name='contrastive'`:
        clients of a round exchange embeddings.
      prox_mu: weight of the proximal term (FedProx); of `ada_fed_prox` the one that it starts with.
      prox_change: by how much `ada_fed_prox` raises that weight when the loss has risen, and lowers
        it when the loss has fallen for `prox_patience` rounds.
      prox_patience: those rounds.
      sharpness_rho: gradients are taken where the loss within this distance is worst (FedSAM).
      sharpness_adaptive: measure that distance relative to the parameters (FedASAM).
      sharpness_eta: added to the size of the parameters then.
      weighting: what a client counts by in the mean: the examples that it went through in the round
        (`processed`), those that it has (`examples`), or one (`clients`); `auto` takes the one that
        the algorithm is defined with.
      server_rate: how far the server moves along the mean update.
      alpha: strength of the penalty of FedDyn.
      q: of q-FedAvg; the larger, the more the clients are made equal.
      gamma: pull towards the received model of local entropy.
      gamma_growth: its factor from round to round.
      noise: of the walk of local entropy.
      mean_rate: weight of the newest parameters in the mean that is sent.
      head: entries of the head of FedRep, by the parts of their names.
      regularisation: lambda: how near the personal model is held to the shared one.
      personal_rate: learning rate of the personal model (FedRep: of the head); 0 takes that of
        `local`.
      personal_amount: epochs or steps of the personal model (FedRep: epochs of the head); 0 takes
        those of `local`.
      num_inner_steps: K of pFedMe.
      beta: how far the server of pFedMe moves towards the mean.
      outer: when the shared model of pFedMe moves: after every `batch`, or `epoch`, as the original
        does.
      num_models: models of FedEM.
      global_weight: factor of the loss against the embeddings of others, of FedGC.
      num_nearest: updates that a model of ATC moves by, its own among them; one number for all
        clients or one for each.
      num_groups: in place of that, groups that ATC puts the updates of a round into.
      inside_weight: what an update of a client's cluster is worth to it.
      outside_weight: what the others are worth.
      compat: do as the original does where it departs from the paper.
    """

    name: AlgorithmName = "fed_avg"
    prox_mu: float = 0.0
    prox_change: float = 0.1
    prox_patience: int = 5
    sharpness_rho: float = 0.0
    sharpness_adaptive: bool = False
    sharpness_eta: float = 0.0
    weighting: Literal["auto", "processed", "examples", "clients"] = "auto"
    server_rate: float = 1.0
    alpha: float = 0.1
    q: float = 1.0
    gamma: float = 0.03
    gamma_growth: float = 1.0
    noise: float = 1e-4
    mean_rate: float = 0.75
    head: tuple[str, ...] = ()
    regularisation: float = 0.1
    personal_rate: float = 0.0
    personal_amount: int = 0
    num_inner_steps: int = 5
    beta: float = 1.0
    outer: Literal["batch", "epoch"] = "batch"
    num_models: int = 3
    global_weight: float = 5.0
    num_nearest: tuple[int, ...] = ()
    num_groups: int = 0
    inside_weight: float = 1.0
    outside_weight: float = 0.0
    compat: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError (a ValueError) listing all that is out of range."""
        problems = misplaced(self, "name", ALGORITHM_USES)
        if (self.sharpness_adaptive or self.sharpness_eta) and not self.sharpness_rho:
            problems.append(
                f"sharpness_adaptive={self.sharpness_adaptive} and sharpness_eta="
                f"{self.sharpness_eta} need sharpness_rho above 0"
            )
        if self.name == "fed_rep" and not self.head:
            problems.append("head is missing: name the entries of the head, such as ('fc2',)")
        problems += below(
            self, server_rate=0, alpha=0, gamma_growth=0, beta=0, num_inner_steps=1, num_models=1,
            prox_patience=1, global_weight=0, inside_weight=0,
        )  # fmt: skip
        problems += negative(
            self, "prox_mu", "prox_change", "sharpness_rho", "sharpness_eta", "q", "gamma", "noise",
            "regularisation", "personal_rate", "personal_amount", "num_groups", "outside_weight",
        )  # fmt: skip
        if self.name == "atc" and bool(self.num_nearest) == bool(self.num_groups):
            problems.append(
                f"num_nearest={self.num_nearest} and num_groups={self.num_groups}: atc needs one "
                "of them, such as num_nearest=(3,)"
            )
        if any(count < 1 for count in self.num_nearest):
            problems.append(f"num_nearest={self.num_nearest} must be at least 1 each")
        if not 0 < self.mean_rate <= 1:
            problems.append(f"mean_rate={self.mean_rate} must be in (0, 1]")
        refuse(problems)

    @property
    def num_mixed(self) -> int:
        """Models that are mixed: those of FedEM; 0 where there is one, which is no mixture."""
        return self.num_models if self.name == "fed_em" else 0
