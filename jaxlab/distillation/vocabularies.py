"""Labels and vocabularies of two models brought together, by name."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from jaxlab.text import TextTokenizer


def map_labels(data_names: Sequence[str], model_names: Sequence[str]) -> tuple[int, ...]:
    """The model's place of every label of the data, found by its name.

    Capitals do not count where no two labels differ in them alone.

    Teachers order the same labels differently; a model read in another's order is wrong for most
    examples and nothing says so.

    Args:
      data_names: labels in the order of the data.
      model_names: labels in the order of the model's outputs.

    Returns:
      Place in the data -> place in the model.

    Raises:
      ValueError: naming the labels that only one side has, or that one side has twice.

    Example:
      >>> map_labels(("contradiction", "entailment", "neutral"),
      ...            ("entailment", "neutral", "contradiction"))
      (2, 0, 1)
      >>> map_labels(("no", "yes"), ("YES", "NO"))
      (1, 0)
    """
    for whose, names in (("data", data_names), ("model", model_names)):
        if len(set(names)) < len(names):
            raise ValueError(f"labels of the {whose} occur twice: {sorted(names)}")
    if set(data_names) != set(model_names):  # perhaps in capitals on one side alone
        folded = [tuple(name.casefold() for name in names) for names in (data_names, model_names)]
        if set(folded[0]) == set(folded[1]) and len(set(folded[0])) == len(data_names):
            return map_labels(*folded)
    only_data = sorted(set(data_names) - set(model_names))
    only_model = sorted(set(model_names) - set(data_names))
    if only_data or only_model:
        raise ValueError(
            f"the labels differ: only the data has {only_data[:10]} ({len(only_data)}), only the "
            f"model has {only_model[:10]} ({len(only_model)}); rename them in the model's "
            "configuration (id2label) or in the data, or take another model"
        )
    places = {name: place for place, name in enumerate(model_names)}
    return tuple(places[name] for name in data_names)


def check_vocabulary(tokenizer: TextTokenizer, vocab_size: int, source: str) -> None:
    """Refuse a vocabulary with entries that a network has no embeddings for.

    Args:
      tokenizer: of the vocabulary.
      vocab_size: embeddings of tokens that the network has; there may be more than entries.
      source: the network, for the message.

    Raises:
      ValueError: with both sizes.
    """
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"{source} has {vocab_size} embeddings of tokens, and the vocabulary has "
            f"{tokenizer.vocab_size} entries; give the vocabulary that its weights belong to"
        )


def map_vocabulary(
    source: TextTokenizer, target: TextTokenizer
) -> Int32[np.ndarray, " vocabulary"]:
    """The target's id of every entry of the source: special tokens by their part, others by text.

    Args:
      source: tokenizer whose ids there are.
      target: tokenizer whose ids are wanted.

    Returns:
      Source id -> target id. Entries that texts never become and that the target lacks are the
      target's unknown.

    Raises:
      ValueError: if the target lacks ordinary entries, with the sizes of both.

    Example:
      MPNet has the entries of BERT at their ids plus 4, `<s>` for `[CLS]` and `</s>` for `[SEP]`.
    """
    places = {entry: place for place, entry in enumerate(target.vocabulary)}
    table = np.full(source.vocab_size, target.unk_id, np.int32)
    missing = []
    for place, entry in enumerate(source.vocabulary):
        if entry in places:
            table[place] = places[entry]
        elif not _is_marker(entry):
            missing.append(entry)
    for name in ("cls_id", "sep_id", "pad_id", "unk_id", "mask_id"):
        table[getattr(source, name)] = getattr(target, name)
    missing = [entry for entry in missing if entry not in source.special]
    if missing:
        raise ValueError(
            f"the vocabularies differ: {len(missing)} of {source.vocab_size} entries, such as "
            f"{missing[:5]}, are not among the {target.vocab_size} of the target; tokenise the "
            "texts for each model (student_tokenizer), then only logits can be matched"
        )
    return table


def _is_marker(entry: str) -> bool:
    return len(entry) > 2 and (entry[0], entry[-1]) in (("[", "]"), ("<", ">"))
