import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from jaxlab.distillation.responses import logits_ce, logits_kl, logits_mse, shift_probability
from tests.distillation.goldens import STUDENT_LOGITS, TEACHER_LOGITS

RNG = np.random.default_rng(0)
TOKENS = tuple(jnp.asarray(RNG.normal(size=(2, 4, 7)), jnp.float32) for _ in range(2))
TOKEN_MASK = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)


@pytest.mark.parametrize(
    ("temperature", "ce", "mse", "kl"),
    [
        (1.0, 1.18899894, 2.90307236, 0.22563434),
        (2.0, 1.12126946, 0.72576809, 0.25256637),
        (4.0, 1.10423565, 0.18144202, 0.26129460),
        (8.0, 1.10001040, 0.04536051, 0.26383606),
    ],
)
def test_losses_have_the_values_of_independent_programs(temperature, ce, mse, kl):
    pair, options = (STUDENT_LOGITS, TEACHER_LOGITS), {"temperature": temperature}
    assert float(logits_ce(*pair, **options).value) == pytest.approx(ce, rel=1e-5)
    assert float(logits_mse(*pair, **options).value) == pytest.approx(mse, rel=1e-5)
    # A divergence of 1 / tau^2 of this size is a difference of numbers near 1, in float32.
    tolerance = 1e-6 * temperature**2
    assert float(logits_kl(*pair, **options).value) == pytest.approx(kl, rel=1e-5, abs=tolerance)


def test_tinybert_takes_the_mean_over_classes_too():
    found = logits_ce(STUDENT_LOGITS, TEACHER_LOGITS, reduction="numel")
    assert float(found.value) == pytest.approx(0.39633295, rel=1e-5)


def test_the_gradients_of_ce_and_kl_are_one():
    ce, kl = (
        jax.grad(lambda z, f=f: f(z, TEACHER_LOGITS, temperature=3.0).value)(STUDENT_LOGITS)
        for f in (logits_ce, lambda *a, **k: logits_kl(*a, scale_by_temperature=False, **k))
    )
    np.testing.assert_allclose(ce, kl, atol=1e-7)
    scaled = jax.grad(lambda z: logits_kl(z, TEACHER_LOGITS, temperature=3.0).value)
    np.testing.assert_allclose(scaled(STUDENT_LOGITS), 9 * ce, atol=1e-6)


def test_tokens_are_averaged_where_the_mask_is_true():
    student, teacher = TOKENS
    rows = -(softmax(teacher, axis=-1) * log_softmax(student, axis=-1)).sum(axis=-1)
    wanted = rows[TOKEN_MASK].mean()
    found = logits_ce(student, teacher, TOKEN_MASK)
    assert float(found.value) == pytest.approx(wanted, rel=1e-6)
    assert float(found.count) == 6


@pytest.mark.parametrize(
    "loss",
    [logits_kl, functools.partial(logits_ce, reduction="numel"), logits_mse],
    ids=["kl", "ce over classes", "mse"],
)
def test_only_allowed_classes_have_a_part(loss):
    student, teacher = TOKENS
    allowed = jnp.array([1, 1, 0, 1, 0, 1, 1], bool)
    wanted = loss(student[..., allowed], teacher[..., allowed])
    found, gradient = jax.value_and_grad(lambda z: loss(z, teacher, allowed=allowed).value)(student)
    assert float(found) == pytest.approx(float(wanted.value), rel=1e-6)
    assert not gradient[..., ~allowed].any()
    assert jnp.isfinite(gradient).all()


def test_every_example_can_have_its_temperature():
    found = logits_kl(STUDENT_LOGITS, TEACHER_LOGITS, temperature=jnp.array([2.0, 5.0]))
    rows = [
        logits_kl(STUDENT_LOGITS[i : i + 1], TEACHER_LOGITS[i : i + 1], temperature=tau)
        for i, tau in enumerate((2.0, 5.0))
    ]
    assert float(found.value) == pytest.approx(np.mean([float(r.value) for r in rows]), rel=1e-6)


def test_shifting_gives_the_right_class_the_largest_value():
    teacher = jnp.asarray([[3.0, 1.0, 2.0], [0.5, 0.1, 0.2], [1.0, 5.0, 2.0]])
    found = shift_probability(teacher, jnp.asarray([1, 0, -1]))
    wanted = [[1.0, 3.0, 2.0], [0.5, 0.1, 0.2], [1.0, 5.0, 2.0]]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_other_classes_are_told():
    with pytest.raises(ValueError, match="student has 3 classes and the teacher 2.*names"):
        logits_kl(STUDENT_LOGITS, TEACHER_LOGITS[:, :2])


def test_squares_of_half_logits_are_those_of_their_float32():
    """The difference has no place in bfloat16, which has even numbers alone there."""
    student, teacher = (
        jnp.full((1, 2), 300.0, jnp.bfloat16),
        jnp.full((1, 2), 1.0078125, jnp.bfloat16),
    )
    found = logits_mse(student, teacher).value
    np.testing.assert_allclose(found, (300.0 - 1.0078125) ** 2, rtol=1e-6)
