"""Agreement with a teacher, and paired tests over seeds."""

import itertools

import numpy as np
import pytest
from scipy import stats

from jaxlab import metrics

RNG = np.random.default_rng(1)
STUDENT, TEACHER = RNG.normal(size=(30, 4)), RNG.normal(size=(30, 4))


def test_agreement_counts_equal_choices():
    slow = np.mean([s.argmax() == t.argmax() for s, t in zip(STUDENT, TEACHER, strict=True)])
    assert metrics.agreement(STUDENT, TEACHER) == slow
    assert metrics.agreement(TEACHER, TEACHER) == 1.0


def test_divergence_is_from_the_teacher_to_the_student():
    p, q = (np.exp(z) / np.exp(z).sum(axis=1, keepdims=True) for z in (TEACHER, STUDENT))
    expected = np.mean([stats.entropy(a, b) for a, b in zip(p, q, strict=True)])
    np.testing.assert_allclose(metrics.mean_kl(STUDENT, TEACHER), expected)
    np.testing.assert_allclose(metrics.mean_kl(TEACHER, TEACHER + 7.0), 0.0, atol=1e-12)


def test_paired_tests_are_scipys_and_a_count_of_all_signs():
    first, second = RNG.normal(0.5, 1, 7), RNG.normal(size=7)
    found = metrics.paired_comparison(first, second)
    expected = stats.ttest_rel(first, second)
    np.testing.assert_allclose(found.difference, np.mean(first - second))
    np.testing.assert_allclose(found.t_test, expected.pvalue)
    np.testing.assert_allclose(found.interval, tuple(expected.confidence_interval(0.95)))
    np.testing.assert_allclose(found.wilcoxon, stats.wilcoxon(first, second).pvalue)
    d = first - second
    sums = [abs(sum(s * x for s, x in zip(signs, d, strict=True)))
            for signs in itertools.product((-1, 1), repeat=7)]  # fmt: skip
    slow = np.mean([total >= abs(d.sum()) - 1e-12 for total in sums])
    np.testing.assert_allclose(found.sign_flips, slow)


def test_five_seeds_of_one_sign_are_a_sixteenth_by_signs():
    found = metrics.paired_comparison(np.array([2.0, 3, 4, 5, 6]), np.ones(5))
    assert found.sign_flips == 2 / 32


def test_no_difference_is_no_evidence():
    same = np.array([0.3, 0.4])
    assert metrics.paired_comparison(same, same) == (0.0, (0.0, 0.0), 1.0, 1.0, 1.0)


def test_scores_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="1 and 1 scores"):
        metrics.paired_comparison(np.ones(1), np.ones(1))
    with pytest.raises(ValueError, match=r"shapes \(30, 4\) and \(3, 4\)"):
        metrics.agreement(STUDENT, TEACHER[:3])
