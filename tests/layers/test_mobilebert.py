import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.layers.mobilebert import MobileBertConfig, MobileBertEncoder
from jaxlab.layers.stacking import Taps

THIN = MobileBertConfig(
    vocab_size=20, num_layers=2, width=12, bottleneck_width=8, num_heads=2, mlp_width=10,
    num_mlps=2, embedding_width=6, max_positions=8, init_std=0.4,
)  # fmt: skip
NORMED = dataclasses.replace(THIN, norm="layer", attention_inputs="narrow", trigrams=False)
INVERTED = dataclasses.replace(
    THIN, norm="layer", attention_inputs="wide", bottleneck_width=16, num_mlps=1
)
IDS = jnp.array([[2, 3, 4, 5, 6], [7, 8, 9, 0, 0]])


@functools.cache
def started(config):
    """Variables drawn by NumPy, which compiles nothing."""
    rng = np.random.default_rng(0)
    traced = jax.eval_shape(MobileBertEncoder(config).init, jax.random.key(0), IDS)

    def draw(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(rng.normal(centre, 0.4, leaf.shape), jnp.float32)

    return jax.tree.map_with_path(draw, traced)


@functools.cache
def run(config, **mode):
    """Loss of everything, everything, and gradients."""
    apply = functools.partial(MobileBertEncoder(config, **mode).apply, taps=Taps._fields)

    def loss(variables):
        output = apply(variables, IDS)
        return sum(jnp.sin(x).mean() for x in jax.tree.leaves(output)), output

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(started(config))


def test_scanned_and_rematerialised_blocks_equal_unrolled_ones():
    for a, b in zip(
        jax.tree.leaves(run(THIN, scan=True, remat=True)), jax.tree.leaves(run(THIN)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_taps_are_thin_but_for_the_hidden_states():
    _, taps = run(THIN)[0][1]
    shapes = {name: getattr(taps, name)[1].shape for name in taps._fields}
    wanted = dict.fromkeys(("queries", "keys", "values"), (2, 5, 8))
    wanted |= dict.fromkeys(("scores", "probabilities"), (2, 2, 5, 5))
    assert shapes == wanted | {"hidden": (2, 5, 12)}
    assert len(taps.hidden) == 3


@pytest.mark.parametrize("scan", [False, True])
def test_one_token_alone_equals_the_first_of_all(scan):
    apply = functools.partial(MobileBertEncoder(THIN, scan=scan).apply, started(THIN))
    token = jax.jit(functools.partial(apply, num_outputs=1))(IDS)[0]
    np.testing.assert_allclose(token, run(THIN)[0][1][0][:, :1], rtol=2e-5, atol=2e-6)


def test_parameters_are_those_that_the_config_has():
    configs = (THIN, NORMED, INVERTED)
    thin, normed, inverted = (started(config)["params"]["layer_0"] for config in configs)
    assert set(thin) - set(normed) == {"shared", "shared_norm"}
    assert {n: leaf["kernel"].shape for n, leaf in inverted["attention"].items()} == {
        **dict.fromkeys(("query", "key", "value"), (12, 16)),
        "out": (16, 16),
    }
    assert thin["attention"]["value"]["kernel"].shape == (12, 8)
    assert normed["attention"]["value"]["kernel"].shape == (8, 8)
    assert started(THIN)["params"]["embeddings_project"]["kernel"].shape == (18, 12)
    assert started(NORMED)["params"]["embeddings_project"]["kernel"].shape == (6, 12)


def test_trigrams_see_their_neighbours_and_no_others():
    """Before the attention: in the embeddings."""

    apply = functools.partial(MobileBertEncoder(THIN).apply, started(THIN), taps={"hidden"})

    @jax.jit
    def embeddings(ids):
        return apply(ids)[1].hidden[0]

    moved = np.abs(embeddings(IDS.at[0, 2].set(19)) - embeddings(IDS)).max(axis=-1)[0]
    np.testing.assert_array_equal(moved > 1e-6, [False, True, True, True, False])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_mlps", 0, "num_mlps=0 must be positive"),
        ("hidden_dropout", 1.0, "hidden_dropout=1.0 is a rate"),
        ("norm", "batch", "norm='batch' is unknown"),
        ("attention_inputs", "all", "attention_inputs='all' is unknown"),
        ("num_heads", 3, "not divisible"),
        ("activation", "gelu2", "is unknown"),
    ],
)
def test_impossible_configs_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(THIN, **{field: value})


def test_too_long_a_text_is_refused():
    with pytest.raises(ValueError, match="9 tokens do not fit max_positions=8"):
        MobileBertEncoder(THIN).apply(started(THIN), jnp.ones((1, 9), jnp.int32))
