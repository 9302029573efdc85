"""The teachers of a run: one network, or several whose outputs are averaged."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
from jaxtyping import PyTree

from experiments.distillation.models import Network, make_model, open_network, weights_folder
from experiments.distillation.settings import NetworksConfig
from experiments.distillation.tasks import Problem
from jaxlab import distillation as kd
from jaxlab.distillation.ensembles import make_ensemble_forward
from jaxlab.distillation.train import Forward
from jaxlab.text import load_tokenizer


class Teachers(NamedTuple):
    """What a student learns from.

    Attributes:
      networks: with one vocabulary and the same labels; layers are matched with a single one only.
      mixing: how several are averaged, see `make_ensemble_forward`.
    """

    networks: tuple[Network, ...]
    mixing: str = "logits"

    @property
    def first(self) -> Network:
        """The network that students are cut from."""
        return self.networks[0]

    @property
    def shape(self) -> kd.Shape:
        """What an objective has to know of them."""
        return self.first.shape

    @property
    def params(self) -> PyTree:
        """Of the one network, or of all."""
        if len(self.networks) == 1:
            return self.first.params
        return tuple(network.params for network in self.networks)

    def forward(self, config: NetworksConfig, temperature: float = 1.0) -> Forward:
        """How they run on a batch.

        Args:
          config: the settings of the run.
          temperature: at which probabilities are averaged.
        """
        forwards = [kd.make_forward(make_model(config, network)) for network in self.networks]
        if len(forwards) == 1:
            return forwards[0]
        return make_ensemble_forward(
            forwards, self.mixing, temperature=temperature, task=self.first.config.task
        )


def open_teachers(config: NetworksConfig, problem: Problem) -> tuple[Network, ...]:
    """The networks that the settings name, as they are before they learn the task.

    Args:
      config: the settings of the run.
      problem: its data.

    Raises:
      ValueError: if they have different vocabularies, or labels that the data does not have.
      FileNotFoundError: if weights are not there.
    """
    names = config.teacher.all_weights
    check_one_vocabulary([weights_folder(name, "teacher.weights") for name in names])
    task: dict[str, Any] = {"task": problem.task, "num_labels": problem.num_labels}
    task |= {"pooling": config.teacher.pooling, "fresh_head": config.teacher.fresh_head}
    return tuple(
        _open_teacher(problem, name, key=jax.random.key(seed), **task)
        for seed, name in enumerate(names)
    )


def _open_teacher(problem: Problem, name: str, *, fresh_head: bool, **options: Any) -> Network:
    try:
        return problem.align(open_network(name, fresh_head=fresh_head, **options), name)
    except ValueError as error:
        what, hint = str(error).removeprefix(f"{name}: "), ""
        if "label" in what and not fresh_head:
            hint = "; teacher.fresh_head=True draws a new head, which teacher.stage teaches"
        raise ValueError(f"teacher.weights={name}: {what}{hint}") from error


def check_one_vocabulary(folders: list[Path]) -> None:
    """Refuse teachers that read texts differently.

    Args:
      folders: of the teachers, each with a tokenizer.

    Raises:
      ValueError: naming the folder that differs, and the sizes.
    """
    if len(folders) < 2:
        return
    first, *others = (load_tokenizer(folder) for folder in folders)
    for folder, tokenizer in zip(folders[1:], others, strict=True):
        if (tokenizer.vocabulary, tokenizer.form) != (first.vocabulary, first.form):
            raise ValueError(
                f"teachers are averaged on the same tokens: {folder} has a vocabulary of "
                f"{tokenizer.vocab_size} entries and {folders[0]} one of {first.vocab_size} that "
                "is another; distil from one after the other"
            )
