import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.distillation import schedules
from jaxlab.distillation.responses import logits_kl
from tests.distillation.goldens import STUDENT_LOGITS, TEACHER_LOGITS


def test_temperatures_of_examples_have_the_values_of_textbrewer():
    flsw = schedules.flsw_temperature(STUDENT_LOGITS, TEACHER_LOGITS, 4.0, beta=1.0, gamma=2.0)
    cwsm = schedules.cwsm_temperature(STUDENT_LOGITS, TEACHER_LOGITS, 4.0, beta=1.0)
    assert float(flsw[0]) == pytest.approx(4.01191902, rel=1e-6)
    assert float(cwsm[0]) == pytest.approx(4.45469856, rel=1e-6)
    for each in (flsw, cwsm):
        assert float(np.mean(each)) == pytest.approx(4.0, rel=1e-6)


def test_temperatures_of_examples_stay_positive():
    """One row without a preference among 52 classes would be at 1 - 51 / 2 otherwise."""
    logits = jnp.zeros((4, 52)).at[:3, 0].set(30.0)
    found = schedules.cwsm_temperature(logits, logits, 1.0)
    np.testing.assert_allclose(found[3], schedules.MIN_SHARE, rtol=1e-6)
    assert (found[:3] > 10).all()
    found = schedules.flsw_temperature(logits.at[3].set(1.0), logits.at[3].set(-1.0), 1.0, 4.0)
    np.testing.assert_allclose(found, [3.0, 3.0, 3.0, schedules.MIN_SHARE], rtol=1e-3)


def test_no_gradient_goes_through_a_temperature():
    def loss(logits, temperature=None):
        tau = temperature
        if tau is None:
            tau = schedules.flsw_temperature(logits, TEACHER_LOGITS, 4.0)
        return logits_kl(logits, TEACHER_LOGITS, temperature=tau).value

    student = jnp.asarray(STUDENT_LOGITS)
    fixed = schedules.flsw_temperature(student, TEACHER_LOGITS, 4.0)
    np.testing.assert_array_equal(jax.grad(loss)(student), jax.grad(loss)(student, fixed))


def test_equal_logits_have_finite_temperatures_with_any_exponent():
    found = schedules.flsw_temperature(TEACHER_LOGITS, TEACHER_LOGITS, 4.0, gamma=0.5)
    assert np.isfinite(found).all()


def test_weights_follow_the_progress():
    steps = jnp.linspace(0.0, 1.0, 5)
    np.testing.assert_allclose(jax.vmap(schedules.growth)(steps), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(jax.vmap(schedules.decay)(steps), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(jax.vmap(schedules.constant(3.0))(steps), 3.0)
    pieces = schedules.piecewise((0.25, 0.6), (1.0, 2.0, 5.0))
    np.testing.assert_allclose(jax.vmap(pieces)(steps), [1, 2, 2, 5, 5])


def test_annealing_ends_at_the_teachers_own_logits():
    steps = jnp.asarray([0.0, 1 / 7 + 0.01, 0.5, 0.99, 1.0])
    found = jax.vmap(schedules.annealing_factor)(steps)
    np.testing.assert_allclose(found, [1 / 7, 2 / 7, 4 / 7, 1, 1], rtol=1e-6)


def test_continuation_ends_at_hard_labels():
    steps = jnp.asarray([0.0, 0.5, 0.666, 0.7, 1.0])
    found = jax.vmap(schedules.continuation_factor)(steps)
    np.testing.assert_allclose(found, [0, 0.5 / 1.333, 0.666 / 1.333, 1, 1], rtol=1e-6)


def test_annealing_goes_over_to_labels_when_its_first_stage_is_over():
    steps = jnp.asarray([0.0, 0.2, 0.39, 0.4, 1.0])
    found = jax.vmap(lambda x: schedules.annealing_kd(x, soft_share=0.4))(steps)
    np.testing.assert_allclose(found.scale, [1 / 7, 4 / 7, 1, 1, 1], rtol=1e-6)
    np.testing.assert_array_equal(found.soft, [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(found.hard, [0, 0, 0, 1, 1])


def test_continuation_follows_the_teacher_beyond_the_margin_only():
    def weights(progress, soft):
        return schedules.continuation_kd(jnp.float32(progress), jnp.float32(soft), margin=2.0)

    # phi is 0.1 at the beginning, 0.6 (level 5 of 10) in the middle.
    near, far = weights(0.0, 0.19), weights(0.0, 0.21)
    assert (float(near.soft), float(far.soft)) == (0.0, 1.0)
    near, far = weights(0.5, 1.19), weights(0.5, 1.21)
    assert (float(near.soft), float(near.hard)) == (0.0, pytest.approx(0.5 / 1.333))
    assert float(far.soft) == pytest.approx(1 - 0.5 / 1.333)
    assert float(far.scale) == pytest.approx(0.6)
    end = weights(1.0, 9.0)
    assert (float(end.soft), float(end.hard), float(end.scale)) == (0.0, 1.0, 1.0)


def test_wrong_numbers_are_told():
    with pytest.raises(ValueError, match="soft_share=1.0 leaves one of two stages"):
        schedules.annealing_kd(jnp.float32(0.5), soft_share=1.0)
    with pytest.raises(ValueError, match="margin=-1.0"):
        schedules.continuation_kd(jnp.float32(0.5), jnp.float32(0.5), margin=-1.0)
    with pytest.raises(ValueError, match="2 factors; give one a piece"):
        schedules.piecewise((0.2, 0.3), (1.0, 2.0))
    with pytest.raises(ValueError, match="must increase"):
        schedules.piecewise((0.3, 0.2), (1.0, 2.0, 3.0))
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be positive"):
            logits_kl(STUDENT_LOGITS, TEACHER_LOGITS, temperature=temperature)
