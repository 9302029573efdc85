"""`config.json` of Hugging Face's text encoders <-> `TextModelConfig`."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from jaxlab.checkpoints.foreign.configs import BERT_FIELDS, Field, read_fields
from jaxlab.distillation.mobilebert import MOBILEBERT_FIELDS, mobilebert_entries, mobilebert_sizes
from jaxlab.distillation.model import FAMILIES, POOLINGS, TASKS, TextModelConfig
from jaxlab.distillation.tables import is_of_a_head
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.mobilebert import MobileBertConfig

_NO_HEADS = ("pooler.", "fit_dense")

OWN_ENTRY = "jaxlab"
"""Under this name stands what Hugging Face's config has no place for."""

_FIXED: Mapping[str, Any] = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
_CLASSES = {
    "bert": "Bert",
    "tinybert": "TinyBert",
    "roberta": "Roberta",
    "mpnet": "MPNet",
    "electra": "Electra",
    "distilbert": "DistilBert",
    "mobilebert": "MobileBert",
}
_TASK_CLASSES = {
    "none": "Model",
    "classification": "ForSequenceClassification",
    "regression": "ForSequenceClassification",
    "tagging": "ForTokenClassification",
    "span": "ForQuestionAnswering",
    "mlm": "ForMaskedLM",
}
_MODEL_TYPES = {"bert": "bert", "roberta": "roberta", "mpnet": "mpnet", "electra": "electra"} | {
    "distilbert": "distilbert",
    "mobilebert": "mobilebert",
    "xlm-roberta": "roberta",
    "camembert": "roberta",
    "tinybert": "tinybert",
}


def _with_defaults(without: str = "", **defaults: int) -> tuple[Field, ...]:
    """BERT's fields with other defaults, and without one of them."""
    return tuple(
        dataclasses.replace(field, default=defaults.get(field.ours, field.default))
        for field in BERT_FIELDS
        if field.ours != without
    )


_FIELDS: Mapping[str, tuple[Field, ...]] = MappingProxyType(
    {
        "bert": BERT_FIELDS,
        "tinybert": BERT_FIELDS,
        "roberta": _with_defaults(vocab_size=50265, pad_id=1),
        "mpnet": (
            *_with_defaults("num_types", vocab_size=30527, pad_id=1),
            Field("relative_attention_num_buckets", "relative_buckets", 32),
        ),
        "electra": (
            *_with_defaults(width=256, num_heads=4, mlp_width=1024),
            Field("embedding_size", "embedding_width", 128),
        ),
        "distilbert": (
            Field("vocab_size", "vocab_size", 30522),
            Field("n_layers", "num_layers", 6),
            Field("dim", "width", 768),
            Field("n_heads", "num_heads", 12),
            Field("hidden_dim", "mlp_width", 3072),
            Field("max_position_embeddings", "max_positions", 512),
            Field("pad_token_id", "pad_id", 0),
            Field("activation", "activation", "gelu"),
            Field("dropout", "hidden_dropout", 0.1),
            Field("attention_dropout", "attention_dropout", 0.1),
            Field("initializer_range", "init_std", 0.02),
        ),
        "mobilebert": MOBILEBERT_FIELDS,
    }
)
_LABEL_BIASES = ("classifier.bias", "classifier.out_proj.bias")
_CONVENTIONS: Mapping[str, Mapping[str, Any]] = {
    "roberta": {"positions": "after_pad"},
    "mpnet": {"positions": "after_pad", "num_types": 0},
    "distilbert": {"num_types": 0},
}


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What a caller wants to be otherwise than a config says; `None` follows the config.

    Attributes:
      family: see `TextModelConfig`.
      task: likewise.
      num_labels: likewise.
      pooling: likewise.
    """

    family: str | None = None
    task: str | None = None
    num_labels: int | None = None
    pooling: str | None = None


def config_from_huggingface(
    values: Mapping[str, Any], wishes: Wishes | None = None, names: Collection[str] = ()
) -> TextModelConfig:
    """Our config from the entries of a `config.json`.

    Args:
      values: the entries; absent ones take the defaults of transformers.
      wishes: what is to be otherwise.
      names: of the tensors, without prefixes: they tell whether there is a pooler, a TinyBERT's
        projection, or none of the head that `architectures` speaks of (files of
        sentence-transformers): then the task is `none`.

    Raises:
      ValueError: if the model is of another kind, or entries are of the wrong kind or ask for what
        is not offered; all are named.
    """
    wishes = wishes or Wishes()
    problems: list[str] = []
    own = values.get(OWN_ENTRY) or {}
    family = wishes.family or own.get("family") or _family(values, names)
    if family not in FAMILIES:
        raise ValueError(
            f"it is of model_type={values.get('model_type')!r}, family {family!r}; there are "
            f"{', '.join(FAMILIES)}"
        )
    sizes = read_fields(values, _FIELDS[family], _FIXED, "", problems)
    if family == "mobilebert":
        sizes |= mobilebert_sizes(values, problems)
    else:
        sizes |= _CONVENTIONS.get(family, {})
        if sizes.get("embedding_width") == sizes["width"]:
            sizes["embedding_width"] = None
        sizes["embedding_init_std"] = own.get("embedding_init_std", sizes["init_std"])
    task = wishes.task or own.get("task") or _task(values, names)
    for what, got, known in (
        ("task", task, TASKS),
        ("pooling", wishes.pooling or own.get("pooling", "first"), POOLINGS),
    ):
        if got not in known:
            problems.append(f"{what}={got!r} is unknown; use one of {', '.join(known)}")
    if problems:
        raise ValueError("; ".join(problems))
    encoder = MobileBertConfig(**sizes) if family == "mobilebert" else BertConfig(**sizes)
    return TextModelConfig(
        encoder,
        family,
        task,
        _num_labels(values, task) if wishes.num_labels is None else wishes.num_labels,
        wishes.pooling or own.get("pooling", "first"),
        with_pooler=_with_pooler(values, family, task, names),
        head_dropout=own.get("head_dropout", _head_dropout(values, family, task)),
    )


def config_to_huggingface(
    config: TextModelConfig, label_names: Sequence[str] = ()
) -> dict[str, Any]:
    """The entries of `config.json`; `config_from_huggingface` is the inverse.

    Args:
      config: of the model.
      label_names: of the logits in their order; `LABEL_i` where there are none.

    Raises:
      ValueError: if there are as many names as the model has labels, or some are twice there.
    """
    sizes, family = config.encoder, config.family
    values: dict[str, Any] = {
        "architectures": [architecture(config)],
        "model_type": "bert" if family == "tinybert" else family,
    }
    for field in _FIELDS[family]:
        values[field.theirs] = getattr(sizes, field.ours)
    if isinstance(sizes, MobileBertConfig):
        values |= mobilebert_entries(sizes) | {"classifier_activation": config.has_pooler}
    elif family == "electra":
        values["embedding_size"] = sizes.embedding_dim
    if config.head_dropout is not None:
        values["seq_classif_dropout" if family == "distilbert" else "classifier_dropout"] = (
            config.head_dropout
        )
    if config.task in ("classification", "regression", "tagging"):
        names = check_label_names(config, label_names)
        values["id2label"] = {str(i): name for i, name in enumerate(names)}
        values["label2id"] = {name: i for i, name in enumerate(names)}
    if config.task in ("classification", "regression"):
        kinds = {"classification": "single_label_classification"}
        values["problem_type"] = kinds.get(config.task, config.task)
    values[OWN_ENTRY] = {
        "family": family,
        "task": config.task,
        "pooling": config.pooling,
        "head_dropout": config.head_dropout,
    }
    if isinstance(sizes, BertConfig):
        values[OWN_ENTRY]["embedding_init_std"] = sizes.embedding_init_std
    return values


def architecture(config: TextModelConfig) -> str:
    """The class of transformers that computes what the model computes.

    A head on the mean has none: then it is that of the encoder. TinyBERT's is of its own code.

    Args:
      config: of the model.
    """
    task = "none" if has_bare_encoder(config) else config.task
    return _CLASSES[config.family] + _TASK_CLASSES[task]


def has_bare_encoder(config: TextModelConfig) -> bool:
    """Whether transformers has this model's encoder at the top, without a prefix in its names."""
    return config.is_sentence_level and (config.task == "none" or config.pooling == "mean")


def check_label_names(config: TextModelConfig, label_names: Sequence[str]) -> tuple[str, ...]:
    """Names of the logits, `LABEL_i` where there are none.

    Args:
      config: of the model.
      label_names: as many as there are labels, or none.

    Raises:
      ValueError: if they are too many or too few, or some are twice there.
    """
    names = tuple(label_names) or tuple(f"LABEL_{i}" for i in range(config.num_labels))
    if len(names) != config.num_labels or len(set(names)) < len(names):
        raise ValueError(
            f"label_names={list(names)}: {len(names)}, {len(set(names))} of them different; the "
            f"model has num_labels={config.num_labels}: give each label one name of its own"
        )
    return names


def label_names_of(values: Mapping[str, Any], config: TextModelConfig) -> tuple[str, ...]:
    """Names of the logits of a stored head; empty where the file has none for this task.

    Args:
      values: the entries of `config.json`.
      config: of the model.
    """
    names = _stored_names(values)
    has_labels = config.task in ("classification", "regression", "tagging")
    return names if has_labels and len(names) == config.num_labels else ()


def check_stored_labels(
    values: Mapping[str, Any], config: TextModelConfig, shapes: Mapping[str, Sequence[int]]
) -> None:
    """Refuse a head of the same task with another number of labels.

    Args:
      values: the entries of `config.json`.
      config: that the tensors are to fit.
      shapes: of the tensors, by names without prefixes.

    Raises:
      ValueError: naming the labels of the head.
    """
    biases = [shapes[name] for name in _LABEL_BIASES if name in shapes]
    if config.task not in ("classification", "tagging") or not biases:
        return
    ((stored,),) = biases[:1]
    if stored == config.num_labels:
        return
    names = _stored_names(values)
    listed = f" ({', '.join(names[:10])})" if len(names) == stored else ""
    raise ValueError(
        f"its head tells {stored} labels apart{listed}, and {config.num_labels} are wanted; use "
        "the data that it was trained on, or a fresh head"
    )


def _family(values: Mapping[str, Any], names: Collection[str]) -> str | None:
    family = _MODEL_TYPES.get(str(values.get("model_type", "bert")))
    architectures = " ".join(map(str, values.get("architectures") or ()))
    is_tiny = "TinyBert" in architectures or any(name.startswith("fit_dense") for name in names)
    return "tinybert" if family == "bert" and is_tiny else family


def _with_pooler(values: Mapping[str, Any], family: str, task: str, names: Collection[str]) -> bool:
    has_tensors = any(name.startswith("pooler.") for name in names)
    if family == "mobilebert" and not values.get("classifier_activation", True):
        return False
    return has_tensors or task in ("classification", "regression")


def _task(values: Mapping[str, Any], names: Collection[str]) -> str:
    name = str((values.get("architectures") or ["Model"])[0])
    if names and not any(is_of_a_head(n) and not n.startswith(_NO_HEADS) for n in names):
        return "none"
    for task, ending in _TASK_CLASSES.items():
        if name.endswith(ending):
            is_regression = values.get("problem_type") == "regression" or (
                values.get("problem_type") is None and _stored_labels(values) == 1
            )
            return "regression" if task == "classification" and is_regression else task
    return "none"


def _stored_names(values: Mapping[str, Any]) -> tuple[str, ...]:
    named = values.get("id2label") or {}
    return tuple(str(named[key]) for key in sorted(named, key=int))


def _stored_labels(values: Mapping[str, Any]) -> int:
    return len(values.get("id2label") or ()) or int(values.get("num_labels", 2))


def _num_labels(values: Mapping[str, Any], task: str) -> int:
    return {"none": 0, "mlm": 0, "span": 2}.get(task, _stored_labels(values))


def _head_dropout(values: Mapping[str, Any], family: str, task: str) -> float | None:
    if family != "distilbert":
        return values.get("classifier_dropout")
    return values.get("seq_classif_dropout") if task in ("classification", "regression") else None
