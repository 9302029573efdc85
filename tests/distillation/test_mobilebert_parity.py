"""Small random MobileBERTs beside transformers (`pytest -m parity`), in both directions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.distillation.model import TextModel
from jaxlab.distillation.weights import load_pretrained, save_pretrained

pytestmark = [pytest.mark.parity, pytest.mark.timeout(300)]

KINDS = {
    "published": {},
    "normed": {"normalization_type": "layer_norm", "layer_norm_eps": 1e-3},
    "narrow": {"use_bottleneck_attention": True, "trigram_input": False, "hidden_act": "gelu"},
    "one_mlp": {"num_feedforward_networks": 1, "classifier_activation": False},
}
HEADS = {
    "classification": "ForSequenceClassification",
    "tagging": "ForTokenClassification",
    "span": "ForQuestionAnswering",
    "mlm": "ForMaskedLM",
}


@functools.cache
def theirs(kind, head="Model"):
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
        "intermediate_size": 20, "embedding_size": 12, "intra_bottleneck_size": 16,
        "max_position_embeddings": 16, "num_feedforward_networks": 3, "initializer_range": 0.2,
    }  # fmt: skip
    labels = 2 if head.endswith("QuestionAnswering") else 3
    config = transformers.MobileBertConfig(**sizes | KINDS[kind], num_labels=labels)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"MobileBert{head}")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def inputs():
    rng = np.random.default_rng(0)
    ids, types = rng.integers(3, 40, (2, 9)), rng.integers(0, 2, (2, 9))
    ids[1, 4:] = 0
    return ids, types


def run_theirs(model):
    import torch

    ids, types = (torch.from_numpy(x) for x in inputs())
    with torch.no_grad():
        return model(
            ids,
            attention_mask=(ids != 0).long(),
            token_type_ids=types,
            output_hidden_states=True,
            output_attentions=True,
        )


def run_ours(found):
    apply = functools.partial(TextModel(found.config).apply, taps=("hidden", "probabilities"))
    ids, types = (jnp.asarray(x, jnp.int32) for x in inputs())
    with jax.default_matmul_precision("highest"):
        return jax.jit(apply)({"params": found.params}, ids, types=types)


def assert_near(got, wanted):
    """Without norms the states grow from block to block: the tolerance goes with them."""
    scale = max(1.0, float(np.abs(wanted).max()))
    np.testing.assert_allclose(got / scale, wanted / scale, rtol=1e-5, atol=1e-5)


def logits_of(output):
    if "start_logits" in output:
        return np.stack([output.start_logits.numpy(), output.end_logits.numpy()], axis=-1)
    return output.logits.numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_saved_there_gives_the_same_here(kind, tmp_path):
    theirs(kind).save_pretrained(tmp_path)
    found, wanted = load_pretrained(tmp_path), run_theirs(theirs(kind))
    got = run_ours(found)
    for ours, torchs in (
        (got.hidden, wanted.hidden_states),
        (got.probabilities, wanted.attentions),
        ((got.pooled,), (wanted.pooler_output,)),
    ):
        assert len(ours) == len(torchs)
        for a, b in zip(ours, torchs, strict=True):
            assert_near(a, b.numpy())


@pytest.mark.parametrize("task", HEADS)
@pytest.mark.parametrize("kind", ["published", "one_mlp"])
def test_every_head_gives_the_same_in_both_directions(kind, task, tmp_path):
    import transformers

    model = theirs(kind, HEADS[task])
    model.save_pretrained(tmp_path / "theirs")
    found = load_pretrained(tmp_path / "theirs", num_labels={"span": 2, "mlm": 0}.get(task, 3))
    assert (found.config.family, found.config.task) == ("mobilebert", task)
    assert (found.loaded.fresh, found.loaded.unused) == ((), ())
    wanted = logits_of(run_theirs(model))
    assert_near(run_ours(found).logits, wanted)
    save_pretrained(tmp_path / "ours", found.params, found.config)
    loaded, told = getattr(transformers, f"MobileBert{HEADS[task]}").from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(told.values()), told
    np.testing.assert_allclose(logits_of(run_theirs(loaded.eval())), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_saved_here_loads_there_with_the_same_numbers(kind, tmp_path):
    import transformers

    theirs(kind).save_pretrained(tmp_path / "theirs")
    found = load_pretrained(tmp_path / "theirs")
    save_pretrained(tmp_path / "ours", found.params, found.config)
    model, told = transformers.MobileBertModel.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(told.values()), told
    before, after = run_theirs(theirs(kind)), run_theirs(model.eval())
    np.testing.assert_allclose(
        after.last_hidden_state.numpy(), before.last_hidden_state.numpy(), rtol=1e-6, atol=1e-6
    )
