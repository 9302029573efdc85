"""Random columns: samples have the distribution that drawing rows gives."""

import numpy as np
import pytest

from jaxlab.ndv.synthetic import Column, draw_sample, random_column, spacing_column


def sampled_by_rows(rng, column, rate, length):
    """(profile counts, n, d, N, D) by making every value's rows."""
    means = np.repeat(column.means, column.num_values)
    exact = np.repeat(column.is_exact, column.num_values)
    sizes = np.where(exact, np.rint(means), rng.poisson(means)).astype(np.int64)
    seen = rng.binomial(sizes, rate)
    f = np.bincount(seen[seen > 0], minlength=length + 1)[1 : length + 1]
    return np.array([*f[:5], seen.sum(), (seen > 0).sum(), sizes.sum(), (sizes > 0).sum()])


@pytest.mark.parametrize("is_exact", [False, True])
@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_samples_have_the_means_and_variances_of_drawn_rows(is_exact, rate):
    column = Column(
        np.array([1.0, 4.0, 30.0, 900.0]), np.array([400, 200, 50, 3]), np.full(4, is_exact)
    )
    rng = np.random.default_rng(7)
    rows = np.array([sampled_by_rows(rng, column, rate, 64) for _ in range(600)])
    draws = []
    for _ in range(600):
        draw = draw_sample(rng, column, rate, 64)
        p = draw.profile
        draws.append([*p.f[:5], p.n, p.d, p.N, draw.num_distinct])
    draws = np.array(draws)
    # Both are means of 600 draws: six standard errors of their difference.
    error = np.sqrt((rows.var(0) + draws.var(0)) / 600)
    assert (np.abs(rows.mean(0) - draws.mean(0)) <= 6 * error + 1e-9).all()
    spread = draws.std(0)[:7] / rows.std(0)[:7]
    assert (np.abs(spread - 1) < 0.2).all()  # a ratio of two deviations varies by 4 %


@pytest.mark.parametrize("seed", range(40))
def test_every_random_column_gives_valid_profiles(seed):
    rng = np.random.default_rng(seed)
    num_rows = 10 ** rng.uniform(4, 9)
    column = random_column(rng, num_rows)
    assert (column.means > 0).all() and (column.num_values > 0).all()
    draw = draw_sample(rng, column, 10 ** rng.uniform(-3.7, -0.5), 64)
    p = draw.profile
    i = np.arange(1, 65)
    assert p.n == pytest.approx((i * p.f).sum() + p.n_tail)
    assert p.d == pytest.approx(p.f.sum() + p.d_tail)
    assert p.d <= draw.num_distinct <= p.d + p.N - p.n
    assert p.s2_tail >= p.n_tail * 64 or p.d_tail == 0
    assert 0.4 < float(p.N) / num_rows < 2.5


def test_the_published_population_has_its_number_of_rows_and_one_class_size_twice():
    rng = np.random.default_rng(3)
    column = spacing_column(rng, 1e6)
    assert column.is_exact.all()
    # Half of the rows are spacings, up to rounding and noise, half one class size.
    assert 1e6 <= (column.means * column.num_values).sum() < 3e6
