import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.layers.bert import BertConfig, BertEncoder
from jaxlab.layers.embedding import look_up

TABLE = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
IDS = jnp.array([[4, 2, 1], [4, 1, 1]])


def test_rows_are_those_of_the_ids():
    np.testing.assert_array_equal(look_up(TABLE, IDS, 1), np.asarray(TABLE)[np.asarray(IDS)])


def test_no_gradient_goes_to_the_row_of_padding_but_by_other_ways():
    def loss(table, shared):
        return (look_up(table, IDS, 1) ** 2).sum() + shared * table.sum()

    counts = np.array([0, 0, 1, 0, 2])[:, None]
    for shared in (0.0, 1.0):
        found = jax.grad(loss)(TABLE, shared)
        np.testing.assert_allclose(found, counts * 2 * np.asarray(TABLE) + shared, rtol=1e-6)


def test_padding_that_a_loss_counts_moves_no_row_of_padding():
    config = BertConfig(
        vocab_size=6, num_layers=1, width=4, num_heads=1, mlp_width=4, max_positions=7, pad_id=1,
        positions="after_pad",
    )  # fmt: skip
    ids, encoder = jnp.array([[2, 3, 1, 1]]), BertEncoder(config)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0), ids)["params"]
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), shapes)

    def loss(params):
        return (encoder.apply({"params": params}, ids)[0] ** 2).sum()

    found = jax.jit(jax.grad(loss))(params)
    for name, used in (("word_embeddings", {2, 3}), ("position_embeddings", {2, 3})):
        moved = np.abs(np.asarray(found[name])).max(axis=1) > 0
        assert set(np.flatnonzero(moved)) == used
