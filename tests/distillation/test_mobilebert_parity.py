"""Small random MobileBERTs beside transformers (`pytest -m parity`), in both directions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.distillation.mobilebert import load_mobilebert, save_mobilebert
from jaxlab.layers.mobilebert import MobileBertEncoder

pytestmark = [pytest.mark.parity, pytest.mark.timeout(300)]

KINDS = {
    "published": {},
    "normed": {"normalization_type": "layer_norm", "layer_norm_eps": 1e-3},
    "narrow": {"use_bottleneck_attention": True, "trigram_input": False, "hidden_act": "gelu"},
    "one_mlp": {"num_feedforward_networks": 1},
}


@functools.cache
def theirs(kind):
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
        "intermediate_size": 20, "embedding_size": 12, "intra_bottleneck_size": 16,
        "max_position_embeddings": 16, "num_feedforward_networks": 3, "initializer_range": 0.2,
    }  # fmt: skip
    config = transformers.MobileBertConfig(**sizes | KINDS[kind])
    config._attn_implementation = "eager"
    model = transformers.MobileBertModel(config).eval()
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


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_saved_there_gives_the_same_here(kind, tmp_path):
    theirs(kind).save_pretrained(tmp_path)
    found, wanted = load_mobilebert(tmp_path), run_theirs(theirs(kind))
    taps = ("hidden", "probabilities")
    apply = functools.partial(MobileBertEncoder(found.config).apply, taps=taps)
    ids, types = (jnp.asarray(x, jnp.int32) for x in inputs())
    with jax.default_matmul_precision("highest"):
        _, got = jax.jit(apply)({"params": found.params}, ids, types=types)
    for ours, torchs in (
        (got.hidden, wanted.hidden_states),
        (got.probabilities, wanted.attentions),
    ):
        assert len(ours) == len(torchs)
        for a, b in zip(ours, torchs, strict=True):
            # Without norms the states grow from block to block: the tolerance goes with them.
            scale = max(1.0, float(np.abs(b.numpy()).max()))
            np.testing.assert_allclose(a / scale, b.numpy() / scale, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_saved_here_loads_there_with_the_same_numbers(kind, tmp_path):
    import transformers

    theirs(kind).save_pretrained(tmp_path / "theirs")
    found = load_mobilebert(tmp_path / "theirs")
    save_mobilebert(tmp_path / "ours", found.params, found.config)
    model, told = transformers.MobileBertModel.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(told.values()), told
    before, after = run_theirs(theirs(kind)), run_theirs(model.eval())
    np.testing.assert_allclose(
        after.last_hidden_state.numpy(), before.last_hidden_state.numpy(), rtol=1e-6, atol=1e-6
    )
