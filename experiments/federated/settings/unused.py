"""Settings of a config file that a change on the command line leaves without a reader.

Who gives `--config.data.name=csv` to a config of drawn data did not ask for its number of drawn
examples. Such settings go back to their defaults; what stands on the command line itself never
does, and is an error where nothing reads it.
"""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from experiments.federated.settings.aggregator import AGGREGATOR_USES, AggregatorConfig
from experiments.federated.settings.algorithm import ALGORITHM_USES, AlgorithmConfig
from experiments.federated.settings.data import (
    CENTRAL,
    DATA_USES,
    SPLITTER_USES,
    TABULAR,
    DataConfig,
)
from experiments.federated.settings.model import MODEL_USES, ModelConfig
from experiments.federated.settings.pace import (
    DEVICES_USES,
    SAMPLER_USES,
    DevicesConfig,
    SamplerConfig,
)
from experiments.federated.settings.steps import (
    LOCAL_USES,
    SERVER_USES,
    LocalConfig,
    ServerConfig,
)
from experiments.federated.settings.task import TASK_USES, TaskConfig


class _Choice(NamedTuple):
    """A setting that says which others are read."""

    group: str
    key: str
    uses: Mapping[str, tuple[str, ...]]
    config_class: type


_CHOICES = (
    _Choice("data", "name", DATA_USES, DataConfig),
    _Choice("data", "splitter", SPLITTER_USES, DataConfig),
    _Choice("model", "name", MODEL_USES, ModelConfig),
    _Choice("task", "name", TASK_USES, TaskConfig),
    _Choice("local", "optimizer", LOCAL_USES, LocalConfig),
    _Choice("server", "optimizer", SERVER_USES, ServerConfig),
    _Choice("algorithm", "name", ALGORITHM_USES, AlgorithmConfig),
    _Choice("aggregator", "name", AGGREGATOR_USES, AggregatorConfig),
    _Choice("sampler", "name", SAMPLER_USES, SamplerConfig),
    _Choice("devices", "kind", DEVICES_USES, DevicesConfig),
)  # in this order: a splitter that goes leaves its numbers without a reader


def reset_unused(config: Any, given: Collection[str]) -> list[str]:
    """Takes settings back that nothing reads since another one was changed.

    Args:
      config: a config dict of all settings, which is changed.
      given: dotted names of the settings that stand on the command line.

    Returns:
      A clause for every setting that was changed here, such as `data.alpha=0.5 (was 0.3)`.
    """
    told, changed = [], set(given)
    for choice in _CHOICES:
        group = config.get(choice.group)
        if group is None:
            continue
        for name in _unread(choice, group, changed):
            default = _default(choice.config_class, name)
            path = f"{choice.group}.{name}"
            if path not in given and group.get(name, default) != default:
                told.append(f"{path}={default!r} (was {group[name]!r})")
                group[name] = default
                changed.add(path)
    return told


def _unread(choice: _Choice, group: Any, changed: set[str]) -> Iterator[str]:
    """The settings that nothing reads with what was chosen, where that was changed."""
    key = f"{choice.group}.{choice.key}"
    chosen = group.get(choice.key, _default(choice.config_class, choice.key))
    if key in changed:
        yield from (name for name, readers in choice.uses.items() if chosen not in readers)
    if choice.config_class is not DataConfig:
        return
    name = group.get("name", "")
    if choice.key == "name" and name in TABULAR and "data.client" in changed:
        yield "splitter"  # rows that say whose they are need none
    is_own = group.get("splitter", "own") == "own"
    if choice.key == "splitter" and name in CENTRAL and is_own and {"data.name", key} & changed:
        yield "num_clients"


def _default(config_class: type, name: str) -> Any:
    return {field.name: field.default for field in dataclasses.fields(config_class)}[name]
