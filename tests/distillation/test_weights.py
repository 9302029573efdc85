import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.checkpoints.foreign.names import NameMismatchError, flatten, unflatten
from jaxlab.checkpoints.foreign.safetensors import read_safetensors, write_safetensors
from jaxlab.checkpoints.foreign.tensor_bundle import read_tensor_bundle
from jaxlab.checkpoints.foreign.torch_zip import write_torch_zip
from jaxlab.distillation.model import FAMILIES, TextModel, TextModelConfig, param_shapes
from jaxlab.distillation.tables import fairseq_table, tensorflow_table
from jaxlab.distillation.weights import (
    huggingface_state_dict,
    load_params,
    load_pretrained,
    save_pretrained,
)
from jaxlab.layers.bert import BertConfig
from jaxlab.layers.mobilebert import MobileBertConfig

TENSORFLOW = Path(__file__).parents[1] / "golden/tensor_bundle"
ENCODER = BertConfig(20, 2, 8, 2, 16, 12, activation="relu", layer_norm_epsilon=1e-6)
FIELDS = {
    "roberta": {"pad_id": 1, "positions": "after_pad", "num_types": 1},
    "mpnet": {"pad_id": 1, "positions": "after_pad", "num_types": 0, "relative_buckets": 32},
    "electra": {"embedding_width": 4},
    "distilbert": {"num_types": 0, "layer_norm_epsilon": 1e-12},
}
MOBILE = MobileBertConfig(20, 2, 8, 4, 2, 6, 3, 6, max_positions=12, layer_norm_epsilon=1e-6)
LABELS = {"none": 0, "classification": 3, "regression": 1, "tagging": 4, "span": 2, "mlm": 0}
TRANSFORMERS = tuple(family for family in FAMILIES if family != "tinybert")
IDS = jnp.array([[2, 3, 4, 5, 6], [7, 8, 9, 1, 1]])
MASK = jnp.array([[True] * 5, [True, True, True, False, False]])


def make(family="bert", task="classification", **options):
    encoder = MOBILE
    if family != "mobilebert":
        encoder = dataclasses.replace(ENCODER, **FIELDS.get(family, {}))
    return TextModelConfig(encoder, family, task, LABELS[task], **options)


def draw(config, seed=0):
    """Parameters drawn by NumPy, none at exactly 0 or 1."""
    rng = np.random.default_rng(seed)
    shapes = param_shapes(config).items()
    return unflatten(
        {path: rng.normal(size=shape, scale=0.3).astype(np.float32) for path, shape in shapes}
    )


def assert_same(tree, wanted):
    assert set(flatten(tree)) == set(flatten(wanted))
    jax.tree.map(np.testing.assert_array_equal, tree, wanted)


@pytest.mark.parametrize("task", LABELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_is_read_again_as_it_was(family, task, tmp_path):
    config = make(family, task)
    params = draw(config)
    save_pretrained(tmp_path, params, config)
    found = load_pretrained(tmp_path)
    assert found.config == dataclasses.replace(config, with_pooler=found.config.with_pooler)
    assert found.config.has_pooler == config.has_pooler
    assert_same(found.params, params)
    assert (found.loaded.unused, found.loaded.fresh) == ((), ())
    assert not found.loaded.problems


def test_a_saved_model_gives_the_same_logits(tmp_path):
    config = make("mpnet", pooling="mean", head_dropout=0.25)
    params = draw(config)
    save_pretrained(tmp_path, params, config, label_names=["no", "maybe", "yes"])
    found = load_pretrained(tmp_path)
    assert found.label_names == ("no", "maybe", "yes")
    assert found.config == dataclasses.replace(config, with_pooler=True)
    run = jax.jit(TextModel(config).apply)
    wanted, got = (run({"params": p}, IDS, mask=MASK).logits for p in (params, found.params))
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def rewrite(folder, change):
    """The folder with its tensors renamed or changed: `change(name, array) -> (name, array)`."""
    tensors = read_safetensors(folder / "model.safetensors").tensors
    changed = dict(change(name, np.array(array)) for name, array in tensors.items())
    write_safetensors(folder / "model.safetensors", changed)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.bert.", "roberta.", ""])
def test_prefixes_and_old_names_of_norms_are_taken(prefix, tmp_path):
    config = make(task="none")
    params = draw(config)
    save_pretrained(tmp_path, params, config)

    def old(name, array):
        if "LayerNorm" in name:
            name = name.replace("weight", "gamma").replace("bias", "beta")
        return prefix + name, array

    rewrite(tmp_path, old)
    assert_same(load_pretrained(tmp_path).params, params)


def test_torch_files_and_their_buffers_are_read(tmp_path):
    config = make("roberta")
    params = draw(config)
    save_pretrained(tmp_path, params, config)
    tensors = huggingface_state_dict(params, config)
    tensors["roberta.embeddings.position_ids"] = np.arange(12)[None]
    (tmp_path / "model.safetensors").unlink()
    write_torch_zip(tmp_path / "pytorch_model.bin", tensors)
    assert_same(load_pretrained(tmp_path).params, params)
    assert_same(load_pretrained(tmp_path / "pytorch_model.bin").params, params)


def test_other_heads_are_left_out_and_named(tmp_path):
    masked, plain = make(task="mlm"), make(task="none", with_pooler=False)
    params = draw(masked)
    save_pretrained(tmp_path, params, masked)
    found = load_pretrained(tmp_path, task="none")
    assert found.config == plain
    assert_same(found.params, {"encoder": params["encoder"]})
    assert set(found.loaded.unused) == {
        "cls.predictions.bias",
        *(
            f"cls.predictions.transform.{part}"
            for part in ("dense.weight", "dense.bias", "LayerNorm.weight", "LayerNorm.bias")
        ),
    }


def test_a_head_that_lacks_is_drawn_from_the_key_or_missing(tmp_path):
    bare = make(task="none")
    params = draw(bare)
    save_pretrained(tmp_path, params, bare)
    with pytest.raises(
        ValueError,
        match=r"(?s)2 missing:.*classifier.bias.*classifier.weight.*pass key=jax.random.key",
    ):
        load_pretrained(tmp_path, task="classification", num_labels=3)
    options = {"task": "classification", "num_labels": 3, "pooling": "mean"}
    first, again, other = (
        load_pretrained(tmp_path, **options, key=jax.random.key(seed)) for seed in (0, 0, 1)
    )
    assert first.loaded.fresh == ("head/out/bias", "head/out/kernel")
    assert first.loaded.unused == ("pooler.dense.bias", "pooler.dense.weight")
    assert_same(first.params["encoder"], params["encoder"])
    assert_same(first.params, again.params)
    kernels = [found.params["head"]["out"]["kernel"] for found in (first, other)]
    assert np.std(kernels[0]) == pytest.approx(0.02, rel=0.5)
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


def without_own_entry(folder, **entries):
    """The folder's config without what only we read, and with other entries."""
    path = folder / "config.json"
    values = json.loads(path.read_text()) | entries
    del values["jaxlab"]
    path.write_text(json.dumps(values))


def test_an_architecture_whose_head_is_not_in_the_file_is_an_encoder(tmp_path):
    """As sentence-transformers save them: `MPNetForMaskedLM`, without its head."""
    config = make("mpnet", "none")
    params = draw(config)
    save_pretrained(tmp_path, params, config)
    without_own_entry(tmp_path, architectures=["MPNetForMaskedLM"])
    found = load_pretrained(tmp_path)
    assert found.config.task == "none"
    assert_same(found.params, params)


@pytest.mark.parametrize("task", LABELS)
@pytest.mark.parametrize("family", TRANSFORMERS)
def test_a_config_of_transformers_alone_tells_family_and_task(family, task, tmp_path):
    config = make(family, task)
    params = draw(config)
    save_pretrained(tmp_path, params, config)
    without_own_entry(tmp_path)
    found = load_pretrained(tmp_path)
    got = (found.config.family, found.config.task, found.config.num_labels)
    assert got == (family, task, LABELS[task])
    assert_same(found.params, params)


def test_a_fresh_head_replaces_one_of_other_labels(tmp_path):
    config = make("roberta")
    save_pretrained(tmp_path, draw(config), config, label_names=["a", "b", "c"])
    options = {"num_labels": 5, "key": jax.random.key(0)}
    with pytest.raises(ValueError, match=r"tells 3 labels apart \(a, b, c\), and 5 are wanted"):
        load_pretrained(tmp_path, **options)
    found = load_pretrained(tmp_path, **options, fresh_head=True)
    assert found.params["head"]["out"]["kernel"].shape == (8, 5)
    assert found.label_names == ()
    assert len(found.loaded.unused) == 4


def break_it(folder):
    """Lacks one tensor, has one too many, and one of another shape."""

    def change(name, array):
        if name.endswith("layer.1.output.dense.bias"):
            return "bert.surprise", array
        if name.endswith("layer.0.intermediate.dense.weight"):
            return name, array[:3]
        return name, array

    rewrite(folder, change)


def test_all_that_does_not_fit_is_listed(tmp_path):
    config = make()
    save_pretrained(tmp_path, draw(config), config)
    break_it(tmp_path)
    with pytest.raises(NameMismatchError, match=str(tmp_path)) as caught:
        load_pretrained(tmp_path)
    problems = caught.value.problems
    assert problems.missing == ["encoder.layer.1.output.dense.bias"]
    assert problems.unexpected == ["bert.surprise"]
    assert problems.misshaped == {
        "bert.encoder.layer.0.intermediate.dense.weight": ((3, 8), (16, 8))
    }


def test_what_fits_is_taken_if_not_strict(tmp_path):
    config = make()
    params = draw(config)
    save_pretrained(tmp_path, params, config)
    break_it(tmp_path)
    found = load_pretrained(tmp_path, strict=False)
    assert set(found.loaded.fresh) == {
        "encoder/layer_1/mlp_out/bias",
        "encoder/layer_0/mlp_in/kernel",
    }
    assert found.loaded.problems.unexpected == ["bert.surprise"]
    got, wanted = flatten(found.params), flatten(params)
    assert set(got) == set(wanted)
    for path in set(got) - set(found.loaded.fresh):
        np.testing.assert_array_equal(got[path], wanted[path])


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_a_copy_of_the_embeddings_is_compared_and_may_stand_alone(family, tmp_path):
    config = make(family, "mlm")
    params = draw(config)
    tensors = huggingface_state_dict(params, config)
    words = f"{family}.embeddings.word_embeddings.weight"
    decoder = {
        **dict.fromkeys(("bert", "mobilebert"), "cls.predictions.decoder.weight"),
        "electra": "generator_lm_head.weight",
        "distilbert": "vocab_projector.weight",
    }.get(family, "lm_head.decoder.weight")
    assert_same(load_params({**tensors, decoder: tensors[words]}, config).params, params)
    alone = {decoder if name == words else name: array for name, array in tensors.items()}
    assert_same(load_params(alone, config).params, params)
    with pytest.raises(ValueError, match=r"differ: an output kernel of its own is not offered"):
        load_params({**tensors, decoder: tensors[words] + 1}, config)


@pytest.mark.parametrize("numbered", [False, True])
def test_projections_of_a_tinybert_come_beside_its_parameters(numbered, tmp_path):
    config = dataclasses.replace(make("tinybert", "none"), family="bert")
    params = draw(config)
    save_pretrained(tmp_path, params, config)
    names = [f"fit_denses.{i}" for i in (0, 1, 10)] if numbered else ["fit_dense"]
    tensors = huggingface_state_dict(params, config)
    weights = {name: np.full((12, 8), i, np.float32) for i, name in enumerate(names)}
    for name, weight in reversed(weights.items()):
        tensors |= {f"{name}.weight": weight, f"{name}.bias": weight[:, 0]}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    without_own_entry(tmp_path)
    found = load_pretrained(tmp_path)
    assert found.config.family == "tinybert"
    assert [p["kernel"].shape for p in found.fit_dense] == [(8, 12)] * len(names)
    assert [float(p["bias"][0]) for p in found.fit_dense] == list(range(len(names)))
    assert_same(found.params, params)


def foreign(table, params):
    return table.save({path: np.asarray(leaf) for path, leaf in flatten(params).items()})


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("task", ["none", "classification", "mlm"])
def test_fairseq_names_are_read(task, joint):
    config = make("roberta", task, with_pooler=False)
    config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, num_types=0))
    params = draw(config)
    head = {"classification": {"name": "sentence"}}.get(task, {})
    table = fairseq_table(config)
    body = foreign(table, {k: v for k, v in params.items() if k != "head"})
    tensors = {f"decoder.sentence_encoder.{n}": a for n, a in body.items() if "lm_head" not in n}
    tensors |= {f"decoder.{n}": a for n, a in body.items() if "lm_head" in n}
    assert "decoder.sentence_encoder.layers.1.self_attn.k_proj.weight" in tensors
    if head:
        for part in ("dense", "out"):
            name = f"classification_heads.sentence.{'out_proj' if part == 'out' else part}"
            tensors[f"{name}.weight"] = params["head"][part]["kernel"].T
            tensors[f"{name}.bias"] = params["head"][part]["bias"]
    if joint:
        for i in range(2):
            at = f"decoder.sentence_encoder.layers.{i}.self_attn"
            for kind in ("weight", "bias"):
                parts = [tensors.pop(f"{at}.{letter}_proj.{kind}") for letter in "qkv"]
                tensors[f"{at}.in_proj_{kind}"] = np.concatenate(parts)
    assert_same(load_params(tensors, config, naming="fairseq").params, params)


@pytest.mark.parametrize("task", ["none", "classification", "mlm"])
def test_tensorflow_names_are_read(task):
    config = make("bert", task)
    params = draw(config)
    tensors = foreign(tensorflow_table(config), params)
    kernel = tensors["bert/encoder/layer_1/intermediate/dense/kernel"]
    assert kernel.shape == (8, 16)  # as ours
    for name in list(tensors):
        tensors[f"{name}/adam_m"] = tensors[name] * 0
    tensors["global_step"] = np.zeros(())
    tensors["cls/seq_relationship/output_bias"] = np.zeros(2)
    found = load_params(tensors, config, naming="tensorflow")
    assert_same(found.params, params)
    assert found.unused == ("cls/seq_relationship/output_bias",)


def test_a_checkpoint_of_tensorflow_is_a_model(tmp_path):
    folder = tmp_path / "bert"
    shutil.copytree(TENSORFLOW, folder)
    with pytest.raises(FileNotFoundError, match=r"2 checkpoints \(bert_model.ckpt.index, types"):
        load_pretrained(folder)
    variables = read_tensor_bundle(folder / "bert_model.ckpt")
    plain = load_pretrained(folder / "bert_model.ckpt.index")
    assert (plain.config.task, plain.config.has_pooler) == ("none", True)
    (folder / "types.ckpt.index").unlink()
    found = load_pretrained(folder, task="classification", num_labels=3, key=jax.random.key(0))
    assert all(path.startswith("head/") for path in found.loaded.fresh) and found.loaded.fresh
    for params in (plain.params, found.params):
        block = params["encoder"]["layer_1"]
        for ours, theirs in (
            (params["encoder"]["word_embeddings"], "embeddings/word_embeddings"),
            (block["mlp_in"]["kernel"], "encoder/layer_1/intermediate/dense/kernel"),
            (block["output_norm"]["scale"], "encoder/layer_1/output/LayerNorm/gamma"),
            (params["pooler"]["kernel"], "pooler/dense/kernel"),
        ):
            np.testing.assert_array_equal(ours, variables[f"bert/{theirs}"])


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2', family None; there are bert"),
        (
            {"hidden_act": "mish", "hidden_size": "8"},
            "hidden_size='8'; wanted an integer; hidden_act='mish' is an",
        ),
        ({"position_embedding_type": "relative_key"}, "'relative_key' is not offered"),
    ],
)
def test_configs_of_other_models_are_refused(entries, message, tmp_path):
    config = make()
    save_pretrained(tmp_path, draw(config), config)
    without_own_entry(tmp_path, **entries)
    with pytest.raises(ValueError, match=message):
        load_pretrained(tmp_path)


def test_label_names_must_fit_and_parameters_too(tmp_path):
    config = make()
    for names in (["a", "b"], ["a", "b", "b"]):
        with pytest.raises(ValueError, match=r"num_labels=3: give each label one name"):
            save_pretrained(tmp_path, draw(config), config, label_names=names)
    params = draw(config)
    del params["pooler"]
    with pytest.raises(NameMismatchError, match="pooler/kernel"):
        save_pretrained(tmp_path, params, config)
    with pytest.raises(FileNotFoundError, match="does not exist; pass a folder"):
        load_pretrained(tmp_path / "nothing")
