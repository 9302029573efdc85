import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.checkpoints.foreign.names import NameMismatchError, flatten
from jaxlab.checkpoints.foreign.safetensors import read_safetensors, write_safetensors
from jaxlab.distillation.seq2seq import load_seq2seq, save_seq2seq
from jaxlab.layers.seq2seq import Seq2Seq, Seq2SeqConfig

IDS = jnp.ones((1, 2), jnp.int32)


def make(norm, tmp_path):
    config = Seq2SeqConfig(20, 2, 1, 8, 2, 12, 8, norm=norm, scale_embeddings=norm == "pre")
    rng = np.random.default_rng(0)
    traced = jax.eval_shape(Seq2Seq(config).init, jax.random.key(0), IDS, IDS)["params"]
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), traced)
    save_seq2seq(tmp_path, params, config)
    return config, params


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_a_saved_model_is_read_again_as_it_was(norm, tmp_path):
    config, params = make(norm, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = dict(read_safetensors(path).tensors)
    # Older files repeat the table of words.
    words = np.array(tensors["model.shared.weight"])
    copies = {f"model.{side}.embed_tokens.weight": words for side in ("encoder", "decoder")}
    write_safetensors(path, {n: np.array(a) for n, a in tensors.items()} | copies)
    found = load_seq2seq(tmp_path)
    assert found.config == config
    assert set(flatten(found.params)) == set(flatten(params))
    jax.tree.map(np.testing.assert_array_equal, found.params, params)


def test_what_does_not_fit_is_listed(tmp_path):
    make("post", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"decoder_layers": 2}))
    with pytest.raises(
        NameMismatchError, match=r"model.decoder.layers.1.encoder_attn.k_proj.weight"
    ):
        load_seq2seq(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"decoder_ffn_dim": 3}))
    with pytest.raises(ValueError, match="decoder_ffn_dim=3 is not that of the encoder, 12"):
        load_seq2seq(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "t5"}))
    with pytest.raises(ValueError, match="model_type='t5'; bart and mbart are read"):
        load_seq2seq(tmp_path)
