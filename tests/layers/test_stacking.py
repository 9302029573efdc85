import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.layers.bert import BertConfig, BertEncoder
from jaxlab.layers.stacking import stack_layers, unstack_layers
from jaxlab.layers.vit import VisionTransformer, VisionTransformerConfig

BERT = BertConfig(vocab_size=11, num_layers=2, width=8, num_heads=2, mlp_width=12, max_positions=6)
VIT = VisionTransformerConfig(8, 4, num_layers=2, width=8, num_heads=2, mlp_width=16, output_dim=4)
IDS = jnp.array([[1, 2, 3, 4], [5, 6, 0, 0]])
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
TOWERS = {"bert": (BertEncoder, BERT, IDS), "vit": (VisionTransformer, VIT, IMAGES)}


@functools.cache
def drawn(tower):
    """Variables of the plain mode, drawn by NumPy, which compiles nothing."""
    module, config, inputs = TOWERS[tower]
    rng = np.random.default_rng(1)
    abstract = jax.eval_shape(module(config).init, jax.random.key(0), inputs)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape, scale=0.3), leaf.dtype), abstract
    )


@functools.cache
def run(tower, **mode):
    """Output, taps and gradients of a tower, run in some mode on the plain mode's parameters."""
    module, config, inputs = TOWERS[tower]

    def loss(variables):
        output, taps = module(config, **mode).apply(variables, inputs, return_taps=True)
        return jnp.sin(output).sum(), (output, taps)

    (_, aux), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(drawn(tower))
    return *aux, gradients


@pytest.mark.parametrize(
    ("tower", "mode"),
    [("bert", {"scan": True, "remat": True}), ("vit", {"scan": True}), ("vit", {"remat": True})],
)
def test_scanned_and_rematerialised_layers_equal_unrolled_ones(tower, mode):
    for a, b in zip(jax.tree.leaves(run(tower, **mode)), jax.tree.leaves(run(tower)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def first_token(tower, **mode):
    """The class token's output and its gradients, without taps."""
    module, config, inputs = TOWERS[tower]
    options = {"num_outputs": 1} if tower == "bert" else {}

    def loss(variables):
        output, _ = module(config, **mode).apply(variables, inputs, **options)
        return jnp.sin(output).sum(), output

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(drawn(tower))


def sliced_token(tower):
    """The same from all tokens."""
    module, config, inputs = TOWERS[tower]

    def loss(variables):
        output, _ = module(config).apply(variables, inputs, return_taps=True)
        output = output[:, :1] if tower == "bert" else output
        return jnp.sin(output).sum(), output

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(drawn(tower))


@pytest.mark.parametrize("mode", [{}, {"scan": True, "remat": True}], ids=["unrolled", "scanned"])
@pytest.mark.parametrize("tower", sorted(TOWERS))
def test_one_token_alone_equals_the_first_of_all(tower, mode):
    found, wanted = first_token(tower, **mode), sliced_token(tower)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("scan", [False, True])
def test_a_single_layer_gives_one_token(scan):
    config = dataclasses.replace(BERT, num_layers=1)
    variables = {"params": {k: v for k, v in drawn("bert")["params"].items() if k != "layer_1"}}
    model = BertEncoder(config, scan=scan)
    token = model.apply(variables, IDS, num_outputs=1)[0]
    np.testing.assert_allclose(token, model.apply(variables, IDS)[0][:, :1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tower", sorted(TOWERS))
def test_taps_hold_every_layer(tower):
    output, taps, _ = run(tower)
    assert len(taps.hidden) == 3
    assert len(taps.scores) == len(taps.probabilities) == 2
    if tower == "bert":
        np.testing.assert_array_equal(taps.hidden[-1], output)
    np.testing.assert_allclose(taps.probabilities[1].sum(-1), 1.0, rtol=1e-5)
    assert np.abs(taps.scores[0] - taps.scores[1]).max() > 1e-3


def test_initialisation_makes_the_same_tree_in_every_mode():
    def initial(**mode):
        return jax.jit(BertEncoder(BERT, **mode).init)(jax.random.key(0), IDS)

    jax.tree.map(np.testing.assert_array_equal, initial(), initial(scan=True, remat=True))


def test_scanned_layers_drop_with_keys_of_their_own():
    @jax.jit
    def hidden(seed):
        model, rngs = BertEncoder(BERT, scan=True), {"dropout": jax.random.key(seed)}
        return model.apply(drawn("bert"), IDS, train=True, rngs=rngs)[0]

    np.testing.assert_array_equal(hidden(1), hidden(1))
    assert np.abs(hidden(1) - hidden(2)).max() > 1e-3


def test_stacking_and_unstacking_are_inverse():
    layers = {f"layer_{i}": {"a": np.full((2,), i), "b": {"c": np.eye(2) * i}} for i in range(3)}
    stacked = stack_layers(layers | {"other": np.zeros(3)}, 3)
    assert stacked["b"]["c"].shape == (3, 2, 2)
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(stacked), layers)


def test_a_missing_layer_and_uneven_leaves_are_refused():
    with pytest.raises(KeyError, match=r"layer_1.*missing.*layer_0"):
        stack_layers({"layer_0": {"a": np.zeros(1)}}, 2)
    with pytest.raises(ValueError, match=r"one leading size, got \[2, 3\]"):
        unstack_layers({"a": np.zeros(2), "b": np.zeros(3)})
