"""Training of the learned choice: examples, the loss by hand, and that steps lower it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import training
from jaxlab.ndv.fusion import MEMBERS, NUM_FEATURES, Scaling, make_inputs
from jaxlab.ndv.profile import profile_from_frequencies, to_dense
from jaxlab.ndv.synthetic import Draw
from jaxlab.ndv.train import (
    Examples,
    fit_scaling,
    init_networks,
    join_examples,
    make_examples,
    make_loss_fn,
    pinball,
    random_draws,
)

LENGTH = 64


def draw(i, f, population, distinct):
    return Draw(to_dense(profile_from_frequencies(i, f, population=population), LENGTH), distinct)


def random_examples(seed, rows):
    rng = np.random.default_rng(seed)
    room = rng.uniform(1, 5, rows)
    logs = rng.uniform(0, 1, (rows, len(MEMBERS))) * room[:, None]
    logs[:, -2], logs[:, -1] = 0, room
    features = rng.normal(size=(rows, NUM_FEATURES))
    target = rng.uniform(0, 1, rows) * room
    weight = rng.uniform(0.5, 2, rows)
    return Examples(*(leaf.astype(np.float32) for leaf in (features, logs, target, weight)))


def test_pinball_is_least_at_the_quantile():
    target = np.random.default_rng(0).exponential(size=20_001)
    grid = np.linspace(0, 6, 601)
    losses = [float(pinball(0.9, jnp.float32(q), jnp.asarray(target)).mean()) for q in grid]
    assert grid[int(np.argmin(losses))] == pytest.approx(np.quantile(target, 0.9), abs=0.02)


def test_the_loss_is_what_its_docstring_says():
    batch = random_examples(0, 7)
    networks = init_networks(jax.random.key(1), 2, (16,))
    scaling = Scaling(np.zeros(NUM_FEATURES, np.float32), np.ones(NUM_FEATURES, np.float32))
    key = jax.random.key(0)
    found, (_, metrics) = make_loss_fn()(networks, scaling, {}, batch._asdict(), key)
    total, errors = 0.0, []
    for member in range(2):
        for row in range(7):
            x = np.clip(batch.features[row].astype(np.float64), -6, 6)
            x = x @ np.asarray(networks.kernels[0][member]) + np.asarray(networks.biases[0][member])
            x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
            x = x @ np.asarray(networks.kernels[1][member]) + np.asarray(networks.biases[1][member])
            shares = np.exp(x[:-2]) / np.exp(x[:-2]).sum()
            answer, target = shares @ batch.logs[row], batch.target[row]
            low = max(answer - np.log1p(np.exp(x[-2])), 0)
            high = min(answer + np.log1p(np.exp(x[-1])), batch.logs[row, -1])
            losses = batch.weight[row] / batch.weight.mean() * abs(answer - target)
            for level, end in ((0.025, low), (0.975, high)):
                losses += max(level * (target - end), (level - 1) * (target - end))
            total += losses / 14
            errors.append(abs(answer - target))
    assert float(found) == pytest.approx(total, rel=1e-5)
    assert float(metrics["error"]) == pytest.approx(np.mean(errors), rel=1e-5)
    assert 0 <= float(metrics["outside"]) <= 1


def test_examples_are_the_samples_that_need_an_estimator_and_their_truths():
    draws = [
        draw([1, 2], [50, 10], 7000, 400),
        draw([1], [50], 7000, 7000),
        draw([2, 5], [30, 10], 7000, 40),
        draw([1, 2, 3], [500, 10, 2], 9000, 900),
    ]
    parts = [make_examples(draws[:2], tilt=0.5), make_examples(draws[2:], tilt=0.5)]
    examples = join_examples(parts, weight=3)
    np.testing.assert_allclose(examples.target, np.log([400 / 60, 900 / 512]), rtol=1e-6)
    weight = np.array([400 / 7000, 900 / 9000]) ** -0.5
    np.testing.assert_allclose(examples.weight, 3 * weight / weight.mean(), rtol=1e-6)
    wanted = make_inputs(draws[3].profile)
    np.testing.assert_allclose(examples.features[1], wanted.features, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(examples.logs[1], wanted.logs, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="none of 1 samples needs an estimator"):
        make_examples(draws[1:2])


def test_random_draws_keep_to_their_ranges():
    rng = np.random.default_rng(5)
    found = random_draws(rng, 40, length=LENGTH, log10_rate=(-2, -1), least_rows=500)
    assert len(found) == 40
    for one in found:
        assert one.profile.n >= 500 and 0.01 <= one.profile.q <= 0.1
        assert 3e3 < one.profile.N < 3e9


def test_steps_lower_the_loss_and_standardised_features_are_standard():
    examples = random_examples(3, 256)._replace(target=random_examples(3, 256).logs[:, 3])
    scaling = fit_scaling(examples)
    scaled = (examples.features - scaling.mean) / scaling.scale
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(scaled.std(0), 1, atol=5e-3)
    tx = training.make_optimizer(training.OptimizerConfig(learning_rate=1e-2), 60)
    step = jax.jit(training.make_train_step(make_loss_fn(), tx))
    networks = init_networks(jax.random.key(0), 2, (32,))
    state = training.TrainState.create(networks, tx, jax.random.key(0), {})
    batch = examples._asdict()
    losses = []
    for number in range(60):
        state, metrics = step(state, scaling, batch, jax.random.key(number))
        losses.append(float(metrics["error"]))
    assert losses[-1] < 0.3 * losses[0]
