"""Reading the entries of other people's `config.json`, all problems collected."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

ACTIVATIONS: Mapping[str, str] = MappingProxyType(
    {
        "gelu": "gelu",
        "gelu_python": "gelu",
        "gelu_new": "gelu_new",
        "gelu_fast": "gelu_new",
        "gelu_pytorch_tanh": "gelu_new",
        "gelu_python_tanh": "gelu_new",
        "gelu_accurate": "gelu_new",
        "quick_gelu": "quick_gelu",
        "relu": "relu",
        "silu": "swish",
        "swish": "swish",
    }
)
"""Activation functions by the names of transformers -> ours (several are one function)."""


@dataclass(frozen=True)
class Field:
    """One entry of a config.

    Attributes:
      theirs: its name in `config.json`.
      ours: the field of our config.
      default: what an absent entry means to transformers.
    """

    theirs: str
    ours: str
    default: int | float | str

    def read(self, values: Mapping[str, Any], where: str, problems: list[str]) -> Any:
        """The value of our field; the default, with a problem noted, where it is of no use.

        Args:
          values: the entries.
          where: what stands before the name in messages.
          problems: takes what is wrong.
        """
        value = values.get(self.theirs, self.default)
        kind = float if isinstance(self.default, float) else type(self.default)
        wanted = (int, float) if kind is float else (kind,)
        if not isinstance(value, wanted) or isinstance(value, bool):
            problems.append(f"{where}{self.theirs}={value!r}; wanted {_KINDS[kind]}")
            return self.default
        return _our_activation(value, where, self, problems) if kind is str else kind(value)


def _our_activation(name: Any, where: str, field: Field, problems: list[str]) -> str:
    if name not in ACTIVATIONS:
        problems.append(
            f"{where}{field.theirs}={name!r} is an activation that is not offered; "
            f"{', '.join(ACTIVATIONS)} are"
        )
    return ACTIVATIONS.get(name, name)


_KINDS = {int: "an integer", float: "a number", str: "a name"}
BERT_FIELDS = (
    Field("vocab_size", "vocab_size", 30522),
    Field("num_hidden_layers", "num_layers", 12),
    Field("hidden_size", "width", 768),
    Field("num_attention_heads", "num_heads", 12),
    Field("intermediate_size", "mlp_width", 3072),
    Field("max_position_embeddings", "max_positions", 512),
    Field("type_vocab_size", "num_types", 2),
    Field("pad_token_id", "pad_id", 0),
    Field("hidden_act", "activation", "gelu"),
    Field("layer_norm_eps", "layer_norm_epsilon", 1e-12),
    Field("hidden_dropout_prob", "hidden_dropout", 0.1),
    Field("attention_probs_dropout_prob", "attention_dropout", 0.1),
    Field("initializer_range", "init_std", 0.02),
)
"""Entries of a BERT <-> the fields of `BertConfig`, with the defaults of transformers."""


def read_fields(
    values: Mapping[str, Any],
    fields: Sequence[Field],
    fixed: Mapping[str, Any],
    where: str,
    problems: list[str],
) -> dict[str, Any]:
    """Our fields from the entries of a config.

    Args:
      values: the entries.
      fields: those that are read.
      fixed: entries that change what is computed and have one value here.
      where: what stands before a name in messages.
      problems: takes what is wrong.

    Returns:
      Our name -> value.
    """
    for name, wanted in fixed.items():
        if values.get(name, wanted) != wanted:
            problems.append(f"{where}{name}={values[name]!r} is not offered; {wanted!r} is")
    return {field.ours: field.read(values, where, problems) for field in fields}
