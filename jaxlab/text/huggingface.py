"""Tokenizers from folders of Hugging Face models, without their packages."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlab.text.bert_tokenizer import (
    MAX_WORD_CHARACTERS,
    MPNET_TOKENS,
    BertTokenizer,
    read_bert_vocabulary,
)
from jaxlab.text.byte_pairs import ROBERTA_TOKENS, BytePairTokenizer
from jaxlab.text.subwords import Form, SpecialTokens, TextTokenizer

_FILES = "tokenizer.json, vocab.txt, or vocab.json with merges.txt"


def load_tokenizer(folder: str | Path) -> TextTokenizer:
    """The tokenizer of a model.

    `tokenizer.json` says all if it is there; else the vocabulary files and what
    `tokenizer_config.json` says of case, accents and special tokens.

    Args:
      folder: of the model.

    Returns:
      A `BertTokenizer` (WordPiece) or a `BytePairTokenizer` (byte-level BPE).

    Raises:
      FileNotFoundError: if the folder has no files of a tokenizer.
      ValueError: if it is of another kind, or its files are broken.
    """
    folder = Path(folder).expanduser()
    config = _read_json(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        return _from_description(_read_json(folder / "tokenizer.json"), config, folder)
    if (folder / "vocab.txt").is_file():
        vocabulary = read_bert_vocabulary(folder / "vocab.txt")
        special, form = _special(config, dict.fromkeys(vocabulary, 0), None)
        return BertTokenizer(
            vocabulary, special, form,
            lower_case=bool(config.get("do_lower_case", True)),
            strips_accents=config.get("strip_accents"),
            splits_ideographs=bool(config.get("tokenize_chinese_chars", True)),
        )  # fmt: skip
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocabulary = _read_json(folder / "vocab.json")
        special, form = _special(config, vocabulary, None)
        lines = (folder / "merges.txt").read_text("utf-8").split("\n")
        merges = _merges([line for line in lines if line and not line.startswith("#version")])
        adds_space = bool(config.get("add_prefix_space", False))
        return BytePairTokenizer(vocabulary, merges, special, form, adds_space=adds_space)
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else "no such folder"
    raise FileNotFoundError(f"{folder} has no tokenizer; wanted {_FILES}, found {found}")


def _from_description(
    whole: Mapping[str, Any], config: Mapping[str, Any], folder: Path
) -> TextTokenizer:
    model = whole.get("model") or {}
    kind = model.get("type") or ("BPE" if "merges" in model else "WordPiece")
    vocabulary = dict(model.get("vocab") or {})
    for token in whole.get("added_tokens") or ():
        vocabulary.setdefault(token["content"], token["id"])
    special, form = _special(config, vocabulary, model.get("unk_token"))
    if kind == "WordPiece" and model.get("continuing_subword_prefix", "##") == "##":
        normal = _find(whole.get("normalizer"), "BertNormalizer")
        lower = bool(normal.get("lowercase", config.get("do_lower_case", True)))
        return BertTokenizer(
            _in_order(vocabulary, folder), special, form,
            lower_case=lower,
            strips_accents=normal.get("strip_accents"),
            splits_ideographs=bool(normal.get("handle_chinese_chars", True)),
            max_word_characters=int(model.get("max_input_chars_per_word", MAX_WORD_CHARACTERS)),
        )  # fmt: skip
    before = _find(whole.get("pre_tokenizer"), "ByteLevel")
    if kind == "BPE" and before:
        adds_space = bool(before.get("add_prefix_space", False))
        merges = _merges(model["merges"])
        return BytePairTokenizer(vocabulary, merges, special, form, adds_space=adds_space)
    raise ValueError(
        f"{folder / 'tokenizer.json'} is of the kind {kind!r}; wanted WordPiece with '##', or BPE "
        "of bytes: tokenise with its own package, or give ids"
    )


def _find(part: Mapping[str, Any] | None, kind: str) -> Mapping[str, Any]:
    """A step of a kind, alone or in a sequence; empty if there is none."""
    if not part:
        return {}
    if part.get("type") == kind:
        return part
    steps = part.get("normalizers") or part.get("pretokenizers") or ()
    return next((found for step in steps if (found := _find(step, kind))), {})


def _special(
    config: Mapping[str, Any], vocabulary: Mapping[str, int], unk: str | None
) -> tuple[SpecialTokens, Form]:
    """Special tokens and form: those of BERT if the vocabulary has `[CLS]` and no `<s>`."""
    if "<s>" not in vocabulary:
        usual, form = SpecialTokens(), "bert"
    else:
        usual, form = (MPNET_TOKENS if "[UNK]" in vocabulary else ROBERTA_TOKENS), "roberta"
    named = {
        field: _content(config[f"{field}_token"])
        for field in SpecialTokens._fields
        if config.get(f"{field}_token") is not None
    }
    if unk is not None:
        named["unk"] = unk
    return usual._replace(**{k: v for k, v in named.items() if v in vocabulary}), form


def _content(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _in_order(vocabulary: Mapping[str, int], folder: Path) -> list[str]:
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise ValueError(
            f"{folder / 'tokenizer.json'}: the ids of {len(vocabulary)} entries are not 0 to their "
            "number; the file is broken"
        )
    return sorted(vocabulary, key=vocabulary.__getitem__)


def _merges(lines: list[Any]) -> list[tuple[str, str]]:
    """Pairs, of which older files hold texts with a space."""
    pairs = [tuple(line.split(" ") if isinstance(line, str) else line) for line in lines]
    wrong = [(place, pair) for place, pair in enumerate(pairs) if len(pair) != 2]
    if wrong:
        raise ValueError(f"{len(wrong)} merges are no pairs, the first is {wrong[0]}")
    return [(first, second) for first, second in pairs]


def _read_json(path: Path) -> dict[str, Any]:
    """What a file holds; empty if there is none."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}); it may be truncated") from error
