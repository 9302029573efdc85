"""Text models in other people's files <-> our parameters.

A folder in Hugging Face's form gives a config, parameters and the names of the labels, and is
written again so that transformers loads it; the checkpoints of Google's BERT are read as TensorFlow
wrote them. Nothing in a file is executed.
"""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from jaxlab.checkpoints.foreign import names as foreign_names
from jaxlab.checkpoints.foreign.names import (
    NameMismatchError,
    NameTable,
    Problems,
    flatten,
    unflatten,
)
from jaxlab.checkpoints.foreign.rules import as_float32
from jaxlab.checkpoints.foreign.state_dicts import (
    CONFIG_FILE,
    TENSOR_FILES,
    read_json,
    read_model_folder,
    read_state_dict,
    write_model_folder,
)
from jaxlab.checkpoints.foreign.tensor_bundle import INDEX, read_tensor_bundle
from jaxlab.distillation.configs import (
    Wishes,
    check_stored_labels,
    config_from_huggingface,
    config_to_huggingface,
    has_bare_encoder,
    label_names_of,
)
from jaxlab.distillation.model import TextModelConfig, init_params, param_shapes
from jaxlab.distillation.tables import (
    BASES,
    FIT_DENSE,
    PREFIXES,
    decoder_name,
    fairseq_table,
    huggingface_table,
    is_of_a_head,
    tensorflow_table,
)

Naming = Literal["huggingface", "fairseq", "tensorflow"]
Tensors = Mapping[str, np.ndarray]

_TABLES = MappingProxyType(
    {
        "huggingface": huggingface_table,
        "fairseq": fairseq_table,
        "tensorflow": tensorflow_table,
    }
)
BERT_CONFIG = "bert_config.json"
"""The config beside a checkpoint of Google's BERT, with Hugging Face's names of sizes."""

TOKENIZER_FILES = (
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
"""Files of a vocabulary in Hugging Face's form."""

_WORDS = "embeddings.word_embeddings.weight"
_OUR_HEADS = ("pooler/", "head/", "lm_head/")


class Loaded(NamedTuple):
    """Parameters, and what was not taken as it came.

    Attributes:
      params: nested parameters, NumPy arrays in float32.
      unused: names of tensors of other heads, which were left out.
      fresh: our paths that were drawn anew.
      problems: what did not fit (`strict=False`); empty where all did.
    """

    params: dict[str, Any]
    unused: tuple[str, ...]
    fresh: tuple[str, ...]
    problems: Problems

    def __repr__(self) -> str:
        """All but the numbers."""
        return f"Loaded(unused={self.unused}, fresh={self.fresh}, problems={self.problems!r})"


class Pretrained(NamedTuple):
    """A model out of a file.

    Attributes:
      config: sizes, family and task.
      params: nested parameters, NumPy arrays in float32.
      label_names: of the logits; empty where the file names none for this task.
      fit_dense: TinyBERT's projections of its hidden states, each a `kernel` and a `bias`: one for
        all layers, or one a hidden state.
      loaded: which tensors were left out, drawn anew, or did not fit.
    """

    config: TextModelConfig
    params: dict[str, Any]
    label_names: tuple[str, ...]
    fit_dense: tuple[dict[str, np.ndarray], ...]
    loaded: Loaded

    def __repr__(self) -> str:
        """All but the numbers."""
        return f"Pretrained({self.config}, label_names={self.label_names}, loaded={self.loaded!r})"


def load_pretrained(
    path: str | os.PathLike[str],
    *,
    family: str | None = None,
    task: str | None = None,
    num_labels: int | None = None,
    pooling: str | None = None,
    strict: bool = True,
    fresh_head: bool = False,
    key: Key[Array, ""] | None = None,
    verify: bool = True,
) -> Pretrained:
    """A text model in Hugging Face's form, or a checkpoint of Google's BERT.

    What is not said otherwise is as `config.json` has it. Tensors of heads that the task does not
    use are left out and named in `loaded.unused`.

    Args:
      path: a folder with `config.json` and `model.safetensors` or `pytorch_model.bin` (or their
        index), or such a file beside its `config.json`; a folder with `bert_config.json` and a
        checkpoint of TensorFlow, or its `.index` file.
      family: see `TextModelConfig`; a TinyBERT of its authors says `bert` of itself.
      task: likewise.
      num_labels: likewise.
      pooling: likewise.
      strict: refuse files with missing, unexpected or mis-shaped tensors. Else these are left as
        `key` draws them, and named in `loaded.problems`.
      fresh_head: draw the head (not the pooler) anew, whatever the file has.
      key: draws the heads that the file lacks; without it they count as missing.
      verify: check the CRC-32 of torch files first (reads the files once).

    Returns:
      The model.

    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file cannot be read, the config is of no model of these families, a masked
        language model has an output kernel of its own, or the tensors do not fit: then all that
        are missing, unexpected or mis-shaped are named.
    """
    values, tensors, naming = _read(Path(path), verify)
    plain_name = _PLAIN_NAMES[naming]
    plain = {plain_name(name): array for name, array in tensors.items()}
    wishes = Wishes(family, task, num_labels, pooling)
    with foreign_names.naming(path):
        config = config_from_huggingface(values, wishes, plain)
        if strict and not fresh_head:
            check_stored_labels(values, config, {n: array.shape for n, array in plain.items()})
        loaded = load_params(
            tensors, config, naming=naming, strict=strict, fresh_head=fresh_head, key=key
        )
    names = () if fresh_head else label_names_of(values, config)
    return Pretrained(config, loaded.params, names, fit_dense_of(plain), loaded)


def load_params(
    tensors: Tensors,
    config: TextModelConfig,
    *,
    naming: Naming = "huggingface",
    strict: bool = True,
    fresh_head: bool = False,
    key: Key[Array, ""] | None = None,
) -> Loaded:
    """Parameters of a known config from named arrays.

    Args:
      tensors: foreign name -> array.
      config: of the model.
      naming: whose names these are: `huggingface`, `fairseq` (RoBERTa; its config has
        `num_types=0`) or `tensorflow` (BERT's checkpoints).
      strict: see `load_pretrained`.
      fresh_head: likewise.
      key: likewise.

    Returns:
      The parameters.

    Raises:
      ValueError: see `load_pretrained`.
    """
    table = _TABLES[naming](config)
    shapes = dict(param_shapes(config))
    if naming == "huggingface":
        tensors = _tied(tensors, table, config)
    unused, wanted = [], {}
    for name, array in tensors.items():
        plain, paths = table.plain_name(name), table.our_paths_of(name)
        is_fresh = fresh_head and any(path.startswith(("head/", "lm_head/")) for path in paths)
        of_other_head = plain is not None and is_of_a_head(plain) and not set(paths) & set(shapes)
        if is_fresh or of_other_head:
            unused.append(name)
        else:
            wanted[name] = array
    absent = _absent_heads(wanted, table, shapes)
    fresh = [] if key is None else absent
    expected = {path: shape for path, shape in shapes.items() if path not in fresh}
    try:
        flat, problems = _load(table, wanted, expected, strict)
    except NameMismatchError as error:
        if not absent or key is not None:
            raise
        raise NameMismatchError(
            f"{error}\nThere is no {', '.join(sorted({path.split('/')[0] for path in absent}))}: "
            "pass key=jax.random.key(...) to draw what lacks",
            error.problems,
        ) from error
    fresh += [path for path in expected if path not in flat]
    if fresh:
        drawn = flatten(init_params(config, jax.random.key(0) if key is None else key))
        flat |= {path: np.asarray(drawn[path]) for path in fresh}
    params = unflatten({path: as_float32(flat[path]) for path in shapes})
    return Loaded(params, tuple(unused), tuple(fresh), problems)


def save_pretrained(
    folder: str | os.PathLike[str],
    params: PyTree,
    config: TextModelConfig,
    *,
    label_names: Sequence[str] = (),
    vocabulary: str | os.PathLike[str] | None = None,
) -> None:
    """Writes a folder that transformers loads: `config.json`, `model.safetensors`, the vocabulary.

    A head on the mean of the tokens has no class there: then the folder loads as the bare encoder,
    and here as it was. TinyBERT's files are those of its own code, which is not in transformers:
    that takes them for a BERT's, without the ReLU before the classifier.

    Args:
      folder: where to; made if it does not exist.
      params: all parameters of the model.
      config: of the model.
      label_names: of the logits, in their order.
      vocabulary: folder of the model's tokenizer, whose files are copied; None writes none.

    Raises:
      FileNotFoundError: if the vocabulary has no files.
      ValueError: if the names do not fit the labels.
      NameMismatchError: (a ValueError) if the parameters are not those of the config.
    """
    document = config_to_huggingface(config, label_names)
    files = [] if vocabulary is None else tokenizer_files(Path(vocabulary))
    if vocabulary is not None and not files:
        raise FileNotFoundError(f"{vocabulary} has none of {', '.join(TOKENIZER_FILES)}")
    write_model_folder(folder, document, huggingface_state_dict(params, config))
    for path in files:
        if path.parent.resolve() != Path(folder).expanduser().resolve():
            shutil.copyfile(path, Path(folder).expanduser() / path.name)


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a vocabulary that a folder has.

    Args:
      folder: of a model.
    """
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def huggingface_state_dict(params: PyTree, config: TextModelConfig) -> dict[str, np.ndarray]:
    """Our parameters under the names of transformers, in its layout; views where they can be.

    Args:
      params: all parameters of the model.
      config: of the model.

    Raises:
      NameMismatchError: (a ValueError) naming the parameters that are missing, too many or
        mis-shaped.
    """
    flat = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    shapes = param_shapes(config)
    problems = Problems(
        missing=[path for path in shapes if path not in flat],
        unexpected=[path for path in flat if path not in shapes],
        misshaped={
            path: (array.shape, shapes[path])
            for path, array in flat.items()
            if path in shapes and array.shape != shapes[path]
        },
    )
    if problems:
        raise NameMismatchError(
            f"the parameters are not those of the config:\n{problems}", problems
        )
    prefix = "" if has_bare_encoder(config) else f"{BASES[config.family]}."
    return huggingface_table(config, prefix).save(flat)


def huggingface_plain_name(name: str) -> str:
    """A tensor's name without the prefixes of modules around the encoder."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def fit_dense_of(tensors: Tensors) -> tuple[dict[str, np.ndarray], ...]:
    """TinyBERT's projections among named arrays: the single one, or the numbered ones in order.

    Args:
      tensors: name without prefixes -> array.

    Returns:
      `kernel` (student width, teacher width) and `bias` of each.
    """
    found: dict[int, dict[str, np.ndarray]] = {}
    for name, array in tensors.items():
        if match := FIT_DENSE.fullmatch(name):
            place = found.setdefault(int(match[1] or 0), {})
            place["kernel" if match[2] == "weight" else "bias"] = as_float32(array.T)
    return tuple(found[i] for i in sorted(found))


def _read(path: Path, verify: bool) -> tuple[dict[str, Any], Tensors, Naming]:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; pass a folder with {CONFIG_FILE} and {TENSOR_FILES[0]}, or "
            f"with {BERT_CONFIG} and the files of a TensorFlow checkpoint"
        )
    if path.is_dir() and not (path / CONFIG_FILE).is_file() and (path / BERT_CONFIG).is_file():
        found = sorted(path.glob(f"*{INDEX}"))
        if len(found) != 1:
            raise FileNotFoundError(
                f"{path} has {len(found)} checkpoints ({', '.join(p.name for p in found)}); give "
                f"the {INDEX} file of one, or a folder with one"
            )
        path = found[0]
    if path.is_dir():
        content = read_model_folder(path, verify=verify)
        return content.config, content.tensors, "huggingface"
    if path.suffix == INDEX:
        return read_json(path.parent / BERT_CONFIG), read_tensor_bundle(path), "tensorflow"
    values = read_json(path.parent / CONFIG_FILE)
    return values, read_state_dict(path, verify=verify).tensors, "huggingface"


def _tensorflow_plain_name(name: str) -> str:
    """A variable's name as Hugging Face has it, near enough to tell heads by."""
    return name.removeprefix("bert/").replace("/", ".")


_PLAIN_NAMES: Mapping[Naming, Callable[[str], str]] = {
    "huggingface": huggingface_plain_name,
    "tensorflow": _tensorflow_plain_name,
}


def _load(
    table: NameTable, tensors: Tensors, expected: Mapping[str, tuple[int, ...]], strict: bool
) -> tuple[dict[str, np.ndarray], Problems]:
    """What of the tensors fits; everything, if strict."""
    try:
        return table.load(tensors, expected), Problems()
    except NameMismatchError as error:
        if strict:
            raise
        problems = error.problems
    bad = {*problems.unexpected, *problems.misshaped, *problems.clashing}
    good = {name: array for name, array in tensors.items() if name not in bad}
    paths = {path for name in good for path in table.our_paths_of(name)}
    missing = set(problems.missing)
    whole = {
        path: shape
        for path, shape in expected.items()
        if path in paths and missing.isdisjoint(table.foreign_names_of(path))
    }
    kept = {n: a for n, a in good.items() if whole.keys() >= set(table.our_paths_of(n))}
    return table.load(kept, whole), problems


def _absent_heads(
    tensors: Tensors, table: NameTable, shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Our paths of heads of which there is no tensor at all."""
    present = {path.split("/")[0] for name in tensors for path in table.our_paths_of(name)}
    return [
        path for path in shapes if path.startswith(_OUR_HEADS) and path.split("/")[0] not in present
    ]


def _tied(tensors: Tensors, table: NameTable, config: TextModelConfig) -> Tensors:
    """The tensors, with word embeddings if only their copy is there, and the copy compared."""
    plain = {huggingface_plain_name(name): name for name in tensors}
    copy = plain.get(decoder_name(config.family))
    if config.task != "mlm" or copy is None:
        return tensors
    if _WORDS not in plain:
        return {**tensors, _WORDS: tensors[copy]}
    if not np.array_equal(tensors[copy], tensors[plain[_WORDS]]):
        raise ValueError(
            f"{copy} and {plain[_WORDS]} differ: an output kernel of its own is not offered, only "
            "the transposed embeddings; load the encoder alone with task='none'"
        )
    return tensors
