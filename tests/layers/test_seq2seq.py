import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.layers.seq2seq import OFA_SIZES, Seq2Seq, Seq2SeqConfig, causal_bias
from jaxlab.layers.stacking import Taps

POST = Seq2SeqConfig(
    vocab_size=20, num_encoder_layers=2, num_decoder_layers=2, width=8, num_heads=2, mlp_width=12,
    max_positions=8, init_std=0.4,
)  # fmt: skip
CONFIGS = {
    "post": POST,
    "pre": dataclasses.replace(POST, norm="pre", scale_embeddings=True),
}
IDS = jnp.array([[2, 3, 4, 5, 6], [7, 8, 9, 1, 1]])
DECODER_IDS = jnp.array([[2, 3, 4, 5], [6, 7, 1, 1]])
EVERY = {
    "encoder_taps": Taps._fields,
    "decoder_taps": Taps._fields,
    "cross_taps": Taps._fields[1:],
}


@functools.cache
def started(name):
    """Variables drawn by NumPy, which compiles nothing."""
    rng = np.random.default_rng(0)
    traced = jax.eval_shape(Seq2Seq(CONFIGS[name]).init, jax.random.key(0), IDS, DECODER_IDS)

    def draw(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(rng.normal(centre, 0.4, leaf.shape), jnp.float32)

    return jax.tree.map_with_path(draw, traced)


@functools.cache
def run(name, **mode):
    """Loss of everything, everything, and gradients."""
    apply = functools.partial(Seq2Seq(CONFIGS[name], **mode).apply, **EVERY)

    def loss(variables):
        output = apply(variables, IDS, DECODER_IDS)
        return sum(jnp.sin(x).mean() for x in jax.tree.leaves(output)), output

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(started(name))


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_and_later_tokens_change_nothing_before_them(name):
    apply = functools.partial(Seq2Seq(CONFIGS[name], scan=True).apply, started(name))

    @jax.jit
    def logits(ids, decoder_ids):
        masks = {"mask": IDS != 1, "decoder_mask": DECODER_IDS != 1}
        return apply(ids, decoder_ids, **masks).logits

    whole = logits(IDS, DECODER_IDS)
    # Other tokens in the places of padding, of encoder and decoder.
    padded = logits(IDS.at[1, 3:].set(15), DECODER_IDS.at[1, 2:].set(16))
    np.testing.assert_allclose(padded[1, :2], whole[1, :2], atol=1e-5)
    later = logits(IDS, DECODER_IDS.at[0, 3].set(19))
    np.testing.assert_allclose(later[0, :3], whole[0, :3], atol=1e-5)
    assert np.abs(later[0, 3] - whole[0, 3]).max() > 1e-2
    other = logits(IDS.at[0, 4].set(19), DECODER_IDS)
    assert np.abs(other[0, 0] - whole[0, 0]).max() > 1e-3


def test_masks_are_derived_from_the_id_of_padding():
    apply = functools.partial(Seq2Seq(POST, scan=True).apply, started("post"))
    masks = {"mask": IDS != 1, "decoder_mask": DECODER_IDS != 1}
    got, wanted = (jax.jit(apply)(IDS, DECODER_IDS, **m).logits for m in ({}, masks))
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_taps_are_of_their_stack():
    output = run("pre")[0][1]
    lengths = {field: 2 for field in Taps._fields}
    assert {f: len(x) for f, x in output.encoder._asdict().items()} == lengths | {"hidden": 3}
    assert {f: len(x) for f, x in output.decoder._asdict().items()} == lengths | {"hidden": 3}
    assert {f: len(x) for f, x in output.cross._asdict().items()} == lengths | {"hidden": 0}
    shapes = [taps.scores[0].shape for taps in (output.encoder, output.decoder, output.cross)]
    assert shapes == [(2, 2, 5, 5), (2, 2, 4, 4), (2, 2, 4, 5)]
    assert output.cross.keys[0].shape == (2, 5, 8)
    assert output.cross.queries[0].shape == (2, 4, 8)
    np.testing.assert_array_equal(output.encoder.hidden[-1], output.encoded)
    np.testing.assert_array_equal(output.decoder.hidden[-1], output.hidden)
    # The scores of the two attentions of a decoder are not mixed up.
    for taps, keys in ((output.decoder, 4), (output.cross, 5)):
        q, k = (np.asarray(x[1]).reshape(2, -1, 2, 4) for x in (taps.queries, taps.keys))
        wanted = np.einsum("bqhd,bkhd->bhqk", q, k) / 2
        np.testing.assert_allclose(taps.scores[1][0, :, -1], wanted[0, :, -1], atol=1e-5)
        assert wanted.shape[-1] == keys


@pytest.mark.parametrize("name", CONFIGS)
def test_scanned_and_rematerialised_stacks_equal_unrolled_ones(name):
    got, wanted = run(name, scan=True, remat=True), run(name)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("scan", [False, True])
def test_only_the_taps_that_are_asked_for_come_back(scan):
    model = Seq2Seq(POST, scan=scan)
    output = jax.eval_shape(
        functools.partial(model.apply, cross_taps={"probabilities"}),
        started("post"),
        IDS,
        DECODER_IDS,
    )
    assert output.encoder == output.decoder == Taps()
    assert {f for f, x in output.cross._asdict().items() if x} == {"probabilities"}


def test_a_norm_stands_behind_the_stacks_only_where_norms_come_before():
    assert "final_norm" in started("pre")["params"]["decoder"]
    assert "final_norm" not in started("post")["params"]["decoder"]


def test_dropout_is_drawn_only_while_training():
    apply = jax.jit(functools.partial(Seq2Seq(POST, scan=True).apply, train=True))
    draws = [
        apply(started("post"), IDS, DECODER_IDS, rngs={"dropout": jax.random.key(i)}).logits
        for i in (0, 0, 1)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.abs(draws[0] - draws[2]).max() > 1e-3


def test_bias_of_later_tokens():
    wanted = np.where(np.tril(np.ones((3, 3))), 0.0, -10000.0)
    np.testing.assert_array_equal(causal_bias(3)[0, 0], wanted)


def test_ofa_sizes():
    sizes = {
        name: (c.width, c.num_encoder_layers, c.num_decoder_layers, c.num_heads, c.mlp_width)
        for name, c in OFA_SIZES.items()
    }
    assert sizes == {
        "ofa_tiny": (256, 4, 4, 4, 1024),
        "ofa_base": (768, 6, 6, 12, 3072),
        "ofa_large": (1024, 12, 12, 16, 4096),
    }


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_decoder_layers", 0, "num_decoder_layers=0 must be at least 1"),
        ("dropout", 1.0, "dropout=1.0 is a rate"),
        ("norm", "middle", "norm='middle' is unknown"),
        ("num_heads", 3, "not divisible"),
        ("activation", "gelu2", "is unknown"),
    ],
)
def test_impossible_configs_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(POST, **{field: value})


def test_impossible_calls_are_refused():
    def apply(ids=IDS, **options):
        return Seq2Seq(POST).apply(started("post"), ids, DECODER_IDS, **options)

    with pytest.raises(ValueError, match="9 tokens do not fit max_positions=8"):
        apply(jnp.ones((2, 9), jnp.int32))
    with pytest.raises(ValueError, match="has no hidden states; use decoder_taps"):
        apply(cross_taps={"hidden"})
    with pytest.raises(ValueError, match="logits cannot be tapped"):
        apply(encoder_taps={"logits"})
