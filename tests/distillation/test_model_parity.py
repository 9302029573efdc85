"""Small random models beside transformers itself (`pytest -m parity`), in both directions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.checkpoints.foreign.names import flatten
from jaxlab.distillation.model import TextModel
from jaxlab.distillation.weights import (
    huggingface_state_dict,
    load_pretrained,
    save_pretrained,
)

pytestmark = [pytest.mark.parity, pytest.mark.timeout(300)]

CLASSES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "mpnet": "MPNet",
    "electra": "Electra",
    "distilbert": "DistilBert",
}
TASKS = {
    "none": "Model",
    "classification": "ForSequenceClassification",
    "regression": "ForSequenceClassification",
    "tagging": "ForTokenClassification",
    "span": "ForQuestionAnswering",
    "mlm": "ForMaskedLM",
}
LENGTH = 150
"""Long enough for the last of MPNet's buckets."""
SIZES = {
    "vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 20, "max_position_embeddings": LENGTH + 2, "initializer_range": 0.2,
}  # fmt: skip
DISTILBERT_SIZES = {
    "vocab_size": 40, "dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 20,
    "max_position_embeddings": LENGTH + 2, "initializer_range": 0.2,
}  # fmt: skip


@functools.cache
def theirs(family, task):
    """A model of transformers, none of whose vectors is at 0 or 1."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = DISTILBERT_SIZES if family == "distilbert" else SIZES
    labels = {"classification": 3, "regression": 1, "tagging": 4}.get(task, 2)
    extra = {"embedding_size": 16} if family == "electra" else {}
    if family == "roberta":
        extra["type_vocab_size"] = 1
    name = CLASSES[family]
    config = getattr(transformers, f"{name}Config")(**sizes, **extra, num_labels=labels)
    if task == "regression":
        config.problem_type = "regression"
    config._attn_implementation = "eager"
    model = getattr(transformers, name + TASKS[task])(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def inputs(family):
    rng = np.random.default_rng(0)
    pad = 1 if family in ("roberta", "mpnet") else 0
    ids = rng.integers(2, 40, (3, LENGTH))
    mask = np.arange(LENGTH)[None] < np.array([[LENGTH], [7], [1]])
    types = rng.integers(0, 2, (3, LENGTH)) if family in ("bert", "electra") else np.zeros_like(ids)
    return np.where(mask, ids, pad), mask, types


def run_theirs(model, family):
    import torch

    ids, mask, types = inputs(family)
    extra = {"token_type_ids": torch.from_numpy(types)} if family in ("bert", "electra") else {}
    with torch.no_grad():
        return model(
            torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask.astype(np.int64)),
            output_hidden_states=True,
            output_attentions=True,
            **extra,
        )


def logits_of(output):
    if "start_logits" in output:
        return np.stack([output.start_logits.numpy(), output.end_logits.numpy()], axis=-1)
    return output.logits.numpy() if "logits" in output else None


def run_ours(found, family):
    ids, mask, types = inputs(family)
    apply = functools.partial(TextModel(found.config).apply, taps=("hidden", "probabilities"))
    with jax.default_matmul_precision("highest"):
        return jax.jit(apply)(
            {"params": found.params},
            jnp.asarray(ids, jnp.int32),
            mask=jnp.asarray(mask),
            types=jnp.asarray(types, jnp.int32),
        )


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", CLASSES)
def test_a_model_saved_there_gives_the_same_here(family, task, tmp_path):
    model = theirs(family, task)
    model.save_pretrained(tmp_path)
    found = load_pretrained(tmp_path)
    assert (found.config.family, found.config.task) == (family, task)
    assert (found.loaded.fresh, found.loaded.unused) == ((), ())
    wanted, got = run_theirs(model, family), run_ours(found, family)
    for ours, torchs in (
        (got.hidden, wanted.hidden_states),
        (got.probabilities, wanted.attentions),
    ):
        assert len(ours) == len(torchs)
        for a, b in zip(ours, torchs, strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=1e-5, atol=1e-5)
    if task == "none":
        pooled = wanted.get("pooler_output")
        pooled = wanted.last_hidden_state[:, 0] if pooled is None else pooled
        np.testing.assert_allclose(got.pooled, pooled.numpy(), rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_allclose(got.logits, logits_of(wanted), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", CLASSES)
def test_a_model_saved_here_loads_there_with_the_same_numbers(family, task, tmp_path):
    import transformers

    model = theirs(family, task)
    model.save_pretrained(tmp_path / "theirs")
    found = load_pretrained(tmp_path / "theirs")
    names = [f"name {i}" for i in range(found.config.num_labels)] if task != "span" else []
    save_pretrained(tmp_path / "ours", found.params, found.config, label_names=names)
    loaded, told = getattr(transformers, CLASSES[family] + TASKS[task]).from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(told.values()), told
    if names:
        assert list(loaded.config.id2label.values()) == names
    before, after = run_theirs(model, family), run_theirs(loaded.eval(), family)
    np.testing.assert_allclose(
        after.hidden_states[-1].numpy(), before.hidden_states[-1].numpy(), atol=1e-6
    )
    if task != "none":
        np.testing.assert_allclose(logits_of(after), logits_of(before), atol=1e-6)
        assert loaded.config.num_labels == model.config.num_labels


def test_a_tinybert_puts_relu_before_its_classifier(tmp_path):
    """Its authors' class has no dropout there, and is not in transformers."""
    import torch

    model = theirs("bert", "classification")
    model.save_pretrained(tmp_path)
    found = load_pretrained(tmp_path, family="tinybert")
    ids, mask, types = (torch.from_numpy(np.asarray(x, np.int64)) for x in inputs("bert"))
    with torch.no_grad():
        pooled = model.bert(ids, attention_mask=mask, token_type_ids=types).pooler_output
        wanted = model.classifier(torch.relu(pooled))
    got = run_ours(found, "bert")
    np.testing.assert_allclose(got.logits, wanted.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_gradients_equal_those_of_torch(family, tmp_path):
    """Of the sum of sines of the logits, by the names of the parameters."""
    model = theirs(family, "classification")
    model.save_pretrained(tmp_path)
    found = load_pretrained(tmp_path)
    import torch

    ids, mask, types = inputs(family)
    model.zero_grad()
    extra = {"token_type_ids": torch.from_numpy(types)} if family == "bert" else {}
    logits = model(
        torch.from_numpy(ids), attention_mask=torch.from_numpy(mask.astype(np.int64)), **extra
    ).logits
    torch.sin(logits).sum().backward()
    named = {name: p.grad.numpy().copy() for name, p in model.named_parameters()}

    def loss(params):
        out = TextModel(found.config).apply(
            {"params": params},
            jnp.asarray(ids, jnp.int32),
            mask=jnp.asarray(mask),
            types=jnp.asarray(types, jnp.int32),
        )
        return jnp.sin(out.logits).sum()

    with jax.default_matmul_precision("highest"):
        gradients = jax.jit(jax.grad(loss))(found.params)
    ours = huggingface_state_dict(gradients, found.config)
    assert set(ours) == set(named)
    assert len(flatten(gradients)) == len(ours)
    for name, wanted in named.items():
        scale = max(np.abs(wanted).max(), 1e-2)
        kept = np.ones(len(wanted), bool)
        if "word_embeddings" in name or (family == "mpnet" and "position_embeddings" in name):
            # torch gives the row of padding no gradient (padding_idx); here nothing is left out.
            kept[found.config.encoder.pad_id] = False
        np.testing.assert_allclose(
            ours[name][kept] / scale, wanted[kept] / scale, atol=2e-5, err_msg=name
        )
