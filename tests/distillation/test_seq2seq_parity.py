"""Small random encoder-decoder models beside transformers (`pytest -m parity`), both ways."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.distillation.seq2seq import load_seq2seq, save_seq2seq
from jaxlab.layers.seq2seq import Seq2Seq

pytestmark = [pytest.mark.parity, pytest.mark.timeout(300)]


@functools.cache
def theirs(kind):
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=40, d_model=24, encoder_layers=2, decoder_layers=3, encoder_attention_heads=3,
        decoder_attention_heads=3, encoder_ffn_dim=20, decoder_ffn_dim=20,
        max_position_embeddings=16, init_std=0.2, scale_embedding=kind == "MBart",
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.final_logits_bias.normal_()
    return model


def inputs():
    rng = np.random.default_rng(0)
    ids, decoder_ids = rng.integers(3, 40, (2, 9)), rng.integers(3, 40, (2, 6))
    ids[1, 4:], decoder_ids[1, 3:] = 1, 1
    return ids, decoder_ids


def run_theirs(model):
    import torch

    ids, decoder_ids = (torch.from_numpy(x) for x in inputs())
    with torch.no_grad():
        return model(
            ids,
            attention_mask=(ids != 1).long(),
            decoder_input_ids=decoder_ids,
            decoder_attention_mask=(decoder_ids != 1).long(),
            output_hidden_states=True,
            output_attentions=True,
            use_cache=False,
        )


@pytest.mark.parametrize("kind", ["Bart", "MBart"])
def test_a_model_saved_there_gives_the_same_here(kind, tmp_path):
    theirs(kind).save_pretrained(tmp_path)
    found, wanted = load_seq2seq(tmp_path), run_theirs(theirs(kind))
    taps = ("hidden", "probabilities")
    apply = functools.partial(
        Seq2Seq(found.config).apply,
        encoder_taps=taps,
        decoder_taps=taps,
        cross_taps=("probabilities",),
    )
    ids, decoder_ids = (jnp.asarray(x, jnp.int32) for x in inputs())
    with jax.default_matmul_precision("highest"):
        got = jax.jit(apply)({"params": found.params}, ids, decoder_ids)
    for ours, torchs in (
        (got.encoder.hidden, wanted.encoder_hidden_states),
        (got.decoder.hidden, wanted.decoder_hidden_states),
        (got.encoder.probabilities, wanted.encoder_attentions),
        (got.decoder.probabilities, wanted.decoder_attentions),
        (got.cross.probabilities, wanted.cross_attentions),
        ((got.logits,), (wanted.logits,)),
    ):
        assert len(ours) == len(torchs)
        for a, b in zip(ours, torchs, strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["Bart", "MBart"])
def test_a_model_saved_here_loads_there_with_the_same_logits(kind, tmp_path):
    import transformers

    theirs(kind).save_pretrained(tmp_path / "theirs")
    found = load_seq2seq(tmp_path / "theirs")
    save_seq2seq(tmp_path / "ours", found.params, found.config)
    model, told = getattr(transformers, f"{kind}ForConditionalGeneration").from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(told.values()), told
    np.testing.assert_allclose(
        run_theirs(model.eval()).logits.numpy(), run_theirs(theirs(kind)).logits.numpy(), atol=1e-6
    )
