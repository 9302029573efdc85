"""Two views of an example are to be alike."""

import functools
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from scipy.special import logsumexp

from jaxlab import federated
from jaxlab.federated.models import SimCLR
from jaxlab.federated.simclr import nt_xent
from jaxlab.parallel import make_mesh

GOLDEN = Path(__file__).parents[1] / "golden"

RNG = np.random.default_rng(0)
FIRST, SECOND = (jnp.asarray(RNG.normal(size=(5, 4)), jnp.float32) for _ in range(2))


def slow_loss(first, second, temperature):
    """Anchor by anchor in float64."""
    views = np.concatenate([first, second]).astype(np.float64)
    views /= np.linalg.norm(views, axis=1, keepdims=True)
    size = len(first)
    losses = []
    for anchor in range(2 * size):
        others = [other for other in range(2 * size) if other != anchor]
        cosines = np.array([views[anchor] @ views[other] for other in others]) / temperature
        partner = others.index((anchor + size) % (2 * size))
        losses.append(logsumexp(cosines) - cosines[partner])
    return (np.array(losses[:size]) + losses[size:]) / 2


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_loss_is_that_of_a_slow_form(temperature):
    compute = jax.jit(functools.partial(nt_xent, temperature=temperature))
    losses, _ = compute(FIRST, SECOND, jnp.ones(5, bool))
    np.testing.assert_allclose(losses, slow_loss(FIRST, SECOND, temperature), rtol=1e-5)


def slow_loss_with_others(first, second, others, temperature):
    """Anchor by anchor in float64, the rows of others among the candidates of every anchor."""
    rows = np.concatenate([first, second, others]).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    size, losses = len(first), []
    for anchor in range(2 * size):
        candidates = [row for row in range(len(rows)) if row != anchor]
        cosines = rows[candidates] @ rows[anchor] / temperature
        losses.append(logsumexp(cosines) - cosines[candidates.index((anchor + size) % (2 * size))])
    return (np.array(losses[:size]) + losses[size:]) / 2


def test_views_of_others_are_further_candidates_where_they_are_examples():
    others = jnp.asarray(RNG.normal(size=(2, 5, 4)), jnp.float32)
    seen = jnp.asarray(RNG.random((2, 5)) < 0.6)
    losses, _ = jax.jit(nt_xent)(
        FIRST, SECOND, jnp.ones(5, bool), others=others, others_mask=seen
    )  # fmt: skip
    wanted = slow_loss_with_others(FIRST, SECOND, np.asarray(others)[np.asarray(seen)], 0.1)
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    nobody, _ = nt_xent(
        FIRST, SECOND, jnp.ones(5, bool), others=others, others_mask=jnp.zeros((2, 5), bool)
    )
    np.testing.assert_allclose(nobody, slow_loss(FIRST, SECOND, 0.1), rtol=1e-5)


@pytest.mark.parametrize("name", ["local", "global"])
def test_losses_and_gradients_are_those_of_the_original(name):
    maker = runpy.run_path(str(GOLDEN / "make_federated_contrastive.py"))
    views, golden = jnp.asarray(maker["draw"]()), np.load(GOLDEN / "federated_contrastive.npz")
    mask = jnp.ones(views.shape[2], bool)

    @jax.jit
    def compute(own, others):
        def mean(own):
            more = {} if name == "local" else {"others": others, "compat": True}
            return nt_xent(own[0], own[1], mask, **more)[0].mean()

        return jax.value_and_grad(mean)(own)

    for client, own in enumerate(views):
        others = jnp.delete(views[:, 1], client, axis=0)
        loss, gradient = compute(own, others)
        assert float(loss) == pytest.approx(golden[f"{name}_loss"][client], rel=1e-5)
        wanted = golden[f"{name}_gradient"][client]
        np.testing.assert_allclose(gradient, wanted, rtol=1e-3, atol=1e-6)


def test_padded_rows_are_no_candidates_and_have_no_gradient():
    mask = jnp.array([True, True, True, False, False])

    def mean(first, second, mask):
        losses, _ = nt_xent(first, second, mask)
        return jnp.where(mask, losses, 0).sum() / mask.sum()

    wanted = slow_loss(FIRST[:3], SECOND[:3], 0.1).mean()
    found, gradient = jax.value_and_grad(mean)(FIRST, SECOND, mask)
    assert float(found) == pytest.approx(wanted, rel=1e-5)
    assert not gradient[3:].any() and jnp.isfinite(gradient).all()


def test_a_view_that_is_the_same_is_found():
    losses, correct = nt_xent(FIRST, FIRST, jnp.ones(5, bool))
    np.testing.assert_array_equal(correct, 1.0)
    assert losses.max() < 0.7


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(4)(nn.tanh(nn.Dense(8)(x)))


def jitter(key, x):
    return x + 0.3 * jax.random.normal(key, x.shape)


def test_clients_learn_without_labels():
    x = np.repeat(RNG.normal(size=(6, 5)).astype(np.float32), 10, axis=0)
    x = (x + 0.5 * RNG.normal(size=x.shape)).astype(np.float32)
    data = federated.gather_clients({"x": x}, np.split(np.arange(60), 3))
    task = federated.contrastive(
        Encoder(), jax.ShapeDtypeStruct((5,), jnp.float32), jitter, masked=False
    )
    algorithm = federated.fed_avg(task, optax.adam(0.02), federated.Schedule(20, 4))
    config = federated.CourseConfig(
        3, 8, federated.Strategy(cohort_size=3), eval_every_rounds=1
    )  # fmt: skip
    simulation = federated.make_simulation(
        config, algorithm, data, task.init(jax.random.key(0)),
        mesh=make_mesh(devices=jax.devices()[:1]), splits={"test": data},
    )  # fmt: skip
    evaluations = federated.run_course(simulation.course, simulation.start()).server.evaluations
    losses = [evaluation.metrics["test/loss"] for evaluation in evaluations]
    assert losses[-1] < losses[0] - 0.1


def test_views_go_one_after_the_other_through_what_is_normalised():
    module = SimCLR(blocks=(1,), widths=(4,), hidden=4, features=3)
    example = jax.ShapeDtypeStruct((4, 4, 1), jnp.float32)
    task = federated.contrastive(module, example, lambda key, x: x)
    variables = task.init(jax.random.key(0))
    batch = {
        "x": jnp.asarray(RNG.normal(size=(3, 4, 4, 1)), jnp.float32), "mask": jnp.ones(3, bool)
    }  # fmt: skip
    output = jax.jit(lambda v: task.loss(v, batch, jax.random.key(1), True))(variables)
    once = module.apply(
        variables, batch["x"], train=True, mask=batch["mask"], mutable=["batch_stats"]
    )[1]
    twice = module.apply(
        variables | once, batch["x"], train=True, mask=batch["mask"], mutable=["batch_stats"]
    )[1]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        output.model_state, dict(twice),
    )  # fmt: skip


def test_a_temperature_must_be_positive():
    with pytest.raises(ValueError, match="temperature=0"):
        federated.contrastive(
            Encoder(), jax.ShapeDtypeStruct((5,), jnp.float32), jitter, temperature=0.0
        )
