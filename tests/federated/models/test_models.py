import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.federated import models
from jaxlab.federated.labelled import classification

PUBLISHED = {
    "logistic regression": (models.LogisticRegression(10), (784,), 7_850),
    "mlp": (models.MLP((200, 200, 10), use_norm=False), (784,), 199_210),
    "ConvNet2, FEMNIST": (models.convnet2(62), (28, 28, 1), 6_603_902),
    "ConvNet2, CIFAR, small": (models.convnet2(10, hidden=512), (32, 32, 3), 2_156_682),
    "ConvNet2, CIFAR": (models.convnet2(10), (32, 32, 3), 8_465_034),
    "ConvNet5, CIFAR": (models.convnet5(10), (32, 32, 3), 1_056_330),
    "VGG11, CIFAR": (models.vgg11(10), (32, 32, 3), 9_309_450),
    "ResNet18, CIFAR": (models.ResNet(10), (32, 32, 3), 11_173_962),
    "ResNet34, CIFAR": (models.ResNet(10, (3, 4, 6, 3)), (32, 32, 3), 21_282_122),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_models_have_the_published_number_of_parameters(name):
    module, shape, number = PUBLISHED[name]
    example = jax.ShapeDtypeStruct(shape, jnp.float32)
    assert models.count_parameters(module, example) == number


def test_models_of_numbers_have_the_published_number_of_parameters():
    example = jax.ShapeDtypeStruct((80,), jnp.uint8)
    assert models.count_parameters(models.LSTM(), example) == 819_920
    # BERT tiny has 4,385,920, a classifier of two classes 258.
    tiny = models.TextClassifier(2)
    assert models.count_parameters(tiny, jax.ShapeDtypeStruct((4,), jnp.int32)) == 4_386_178
    ratings = models.MatrixFactorization(943, 1682, 20)
    example = jax.ShapeDtypeStruct((2,), jnp.int32)
    assert models.count_parameters(ratings, example) == (943 + 1682) * 20


def statistics(x, mask):
    """Mean and variances of the masked rows in float64."""
    kept = np.float64(x[mask]).reshape(-1, x.shape[-1])
    return kept.mean(axis=0), kept.var(axis=0), kept.var(axis=0, ddof=1)


@pytest.mark.parametrize("shape", [(6, 4), (6, 3, 2, 4)])
def test_padded_rows_count_nowhere_in_a_norm(shape):
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 2.0, shape).astype(np.float32)
    mask = np.array([True, True, False, True, True, False])
    spoiled = np.where(mask.reshape((6,) + (1,) * (len(shape) - 1)), x, np.float32(1e3))
    norm = models.BatchNorm()
    stats = {"mean": jnp.zeros(4), "var": jnp.ones(4)}
    variables = {"params": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}, "batch_stats": stats}

    @jax.jit
    def train(x, mask):
        return norm.apply(variables, x, train=True, mask=mask, mutable="batch_stats")

    def close(got, want):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)

    for kept in (mask, np.ones(6, bool)):
        out, changed = train(x, kept)
        mean, var, unbiased = statistics(x, kept)
        close(out[kept], (x[kept] - mean) / np.sqrt(var + 1e-5))
        close(changed["batch_stats"]["mean"], 0.1 * mean)
        close(changed["batch_stats"]["var"], 0.9 + 0.1 * unbiased)
    close(train(spoiled, mask)[0][mask], train(x, mask)[0][mask])
    out, changed = train(x, np.zeros(6, bool))
    assert bool(jnp.isfinite(out).all())
    for name, value in stats.items():
        np.testing.assert_array_equal(changed["batch_stats"][name], value)


def test_a_rating_is_the_product_of_two_vectors():
    rng = np.random.default_rng(0)
    user, item = (rng.normal(size=(n, 5)).astype(np.float32) for n in (4, 3))
    params = {"embed_user": {"embedding": user}, "embed_item": {"embedding": item}}
    module, pairs = models.MatrixFactorization(4, 3, 5), jnp.array([[0, 2], [3, 1]])
    ratings = jax.jit(module.apply)({"params": jax.tree.map(jnp.asarray, params)}, pairs)
    np.testing.assert_allclose(ratings, [user[0] @ item[2], user[3] @ item[1]], rtol=1e-5)


def test_a_frozen_network_gets_no_gradient():
    module, x = models.ResNetProbe(3, blocks=(1,), widths=(4,)), jnp.ones((2, 2, 2, 1))

    @jax.jit
    def gradients(key):
        variables = module.init(key, x)
        return jax.grad(lambda params: module.apply({**variables, "params": params}, x)[0, 0])(
            variables["params"]
        )

    grads = gradients(jax.random.key(0))
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(grads["backbone"]))
    assert bool(jnp.any(grads["linear"]["kernel"]))


def test_dropout_draws_only_while_training():
    module, x = models.MLP((50, 2), dropout=0.5, use_norm=False), jnp.ones((2, 3))
    shapes = {"linear_0": (3, 50), "linear_1": (50, 2)}
    params = {
        name: {"kernel": jnp.ones(shape), "bias": jnp.zeros(shape[-1])}
        for name, shape in shapes.items()
    }

    @jax.jit
    def train(key):
        return module.apply({"params": params}, x, train=True, rngs={"dropout": key})

    drawn = train(jax.random.key(0)), train(jax.random.key(1))
    assert not np.allclose(*drawn)
    # 50 units of 3 each, half of them dropped and the others doubled.
    assert set(np.unique(np.concatenate(drawn))) <= {6.0 * kept for kept in range(51)}
    np.testing.assert_allclose(module.apply({"params": params}, x), 150.0)


def test_a_task_leaves_the_padding_of_a_batch_out_of_the_norms():
    x = np.random.default_rng(0).normal(size=(5, 4, 4, 1)).astype(np.float32)
    module = models.ConvNet((2,), (1,), (), 3, size=3)
    task = classification(module, jax.ShapeDtypeStruct((4, 4, 1), jnp.float32), masked=True)

    @jax.jit
    def states(key, x):
        variables = task.init(key)
        whole = {"x": x, "y": jnp.zeros(5, jnp.int32), "mask": jnp.ones(5, bool)}
        rows = jnp.array([0, 1, 2, 3, 4, 0, 0])  # padding repeats an example
        padded = {name: value[rows] for name, value in whole.items()}
        padded["mask"] = jnp.arange(7) < 5
        return [task.loss(variables, batch, key, True).model_state for batch in (whole, padded)]

    whole, padded = states(jax.random.key(0), x)
    for first, second in zip(jax.tree.leaves(whole), jax.tree.leaves(padded), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-7)
