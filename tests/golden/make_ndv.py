"""Makes ndv_estimators.npz and ndv_special.npz: sixty-digit values of the textbook formulas.

    pip install mpmath==1.4.1 scipy
    python tests/golden/make_ndv.py

Nothing of the library is used but its populations: log-gamma, digamma and trigamma are differences
of the functions themselves, roots are searched in the published equations. NaN stands where an
equation has no root or a formula divides by zero. Values are before clamping.
"""

from pathlib import Path

import mpmath as mp
import numpy as np
from mpmath import mpf
from scipy.special import chdtri

from jaxlab.ndv.populations import (
    equal_population,
    expected_profile,
    poisson_population,
    ranked_zipf_population,
    zipf_population,
)

mp.mp.dps = 60
HERE = Path(__file__).parent


def populations():
    """Expected profiles as plain data: entries of weight, without a tail."""
    cases = [
        ("equal-20 at .01", equal_population(20, 1e5), 0.01),
        ("equal-20 at .1", equal_population(20, 1e5), 0.1),
        ("equal-2 at .01", equal_population(2, 5e5), 0.01),
        ("poisson-50 at .01", poisson_population(50, 2e6, 1), 0.01),
        ("zipf-1 at .1", ranked_zipf_population(1.0, 100_000, 2e6), 0.1),
    ]
    cases += [(f"poi-{mean}", poisson_population(mean), 0.01) for mean in (50, 100, 200)]
    cases += [(f"zipf-{s}", zipf_population(s), 0.01) for s in (1.2, 1.5, 2.0)]
    for name, population, rate in cases:
        profile = expected_profile(population, rate)
        kept = profile.f > (0.2 if name.startswith("zipf-1 ") else 0.0)
        rows = population.num_rows
        yield name, profile.i[kept], profile.f[kept], rows, rate, population.num_distinct


def extremes():
    """Forty profiles at the edges: name, frequencies, counts, N and q (None for n / N)."""
    yield "one row", [1], [1], 1e3, None
    yield "all unique of ten", [1], [5], 10, None
    yield "all unique of 1e9", [1], [100], 1e9, None
    yield "no singletons", [2], [50], 200, None
    yield "three of four", [1, 2], [1, 1], 4, None
    yield "no doubletons", [1, 3], [10, 5], 2500, None
    yield "no doubletons, fours", [1, 4], [3, 2], 1100, None
    yield "AE runs away", [1, 1000], [1, 1], 1e5, None
    yield "AE runs away, 30", [1, 30], [2, 7], 21200, None
    yield "plain", [1, 2, 3], [60, 20, 5], 1150, None
    yield "around the cut", [1, 2, 50, 51, 400], [30, 8, 2, 1, 1], 60000, 0.01
    yield "all frequent", [60, 80], [3, 2], 34000, None
    yield "singletons and frequent", [1, 60], [5, 3], 18500, None
    yield "all but one row", [1, 2], [3, 4], 12, None
    yield "q near 1", [1, 2, 5], [100, 50, 20], 301, 0.999
    yield "2^40 rows", [1, 2, 3], [9e5, 4.4e4, 4e3], 2.0**40, None
    yield "1e12 rows", [1, 2], [9998, 1], 1e12, None
    yield "fractions", [1, 2, 3, 7], [12.375, 3.25, 1.5, 0.25], 700, 0.03125
    yield "less than a singleton", [1, 2, 3], [0.5, 3, 6], 500, 0.05
    yield "heavy hitter", [1, 2, 10**7], [1000, 200, 1], 1e9, None
    yield "one value", [37], [1], 3700, None
    yield "two values", [1, 99], [1, 1], 1e4, None
    yield "geometric", list(range(1, 41)), [1e3 * 0.7**i for i in range(1, 41)], 1.5e5, 0.05
    yield "power law", list(range(1, 101)), [1e6 / i**2.2 for i in range(1, 101)], 3.5e8, 0.01
    yield "doubletons", [1, 2], [1, 500], 2e4, None
    yield "q twice n / N", [1, 2, 3, 4], [100, 60, 20, 5], 3e4, 0.02
    yield "most rows read", [1, 2, 3, 4], [100, 60, 20, 5], 500, 0.6
    yield "half the rows read", [1, 2, 3, 4], [100, 60, 20, 5], 600, None
    yield "a third read", [1, 2, 3, 4, 9], [1000, 400, 200, 90, 3], 8361, None
    yield "nearly unique", [1, 2], [99998, 1], 1e7, None
    rng = np.random.default_rng(0)
    for k in range(10):
        size = int(rng.integers(3, 30))
        i = np.unique(np.concatenate([[1, 2], rng.geometric(0.1, size)]))
        f = np.rint(10 ** rng.uniform(1, 5) / i ** rng.uniform(0.5, 3) * rng.uniform(0.5, 1.5) + 1)
        yield f"random {k}", i, f, float(np.ceil(np.sum(i * f) / 10 ** rng.uniform(-4, -0.1))), None


def log_h(x, n, N):
    lg = mp.loggamma
    return lg(N - x + 1) + lg(N - n + 1) - lg(N - n - x + 1) - lg(N + 1)


def h_of(x, n, N):
    return mp.exp(log_h(x, n, N)) if x <= N - n else mpf(0)


def g_of(x, r, N):
    return mp.digamma(N - x + 1) - mp.digamma(N - x - r + 1)


def g2_of(x, n, N):
    return mp.psi(1, N - x - n + 1) - mp.psi(1, N - x + 1)


def root(fn, low, high):
    """The root between two points of different sign, else None."""
    low, high = mpf(low), mpf(high)
    a, b = fn(low), fn(high)
    if b == 0:
        return high
    if a == 0 or (a > 0) == (b > 0):
        return None
    for _ in range(120):
        middle = (low + high) / 2
        low, high = (middle, high) if (fn(middle) > 0) == (a > 0) else (low, middle)
    return low


def solve_ae(pairs, f1, f2):
    a = mp.fsum(mp.exp(-i) * f for i, f in pairs if i >= 3)
    b = mp.fsum(i * mp.exp(-i) * f for i, f in pairs if i >= 3)
    s = f1 + 2 * f2

    def gap(log_mu):
        mu = mp.exp(log_mu)
        e = mp.exp(-s / mu)
        return 1 - (f1 + f2 + f1 * (a + mu * e) / (b + s * e)) / mu

    log_mu = root(gap, mp.log(f1 + f2), mp.log(mpf(10) ** 18))
    return None if log_mu is None else mp.exp(log_mu)


def solve_sichel(n, d, f1):
    r = f1 / n
    a, b = 2 * n / d + mp.log(r), 2 * f1 / d - mp.log(r)

    def side(w):
        return (1 + w) * mp.log(w) - a * w + b

    def slope(w):
        return mp.log(w) + (1 + w) / w - a

    if r == 1 or slope(r) <= mpf(10) ** -9 or slope(mpf(1)) >= 0 or side(mpf(1)) >= 0:
        return None
    w = root(side, root(slope, r, 1), 1)
    b_hat, c_hat = w * mp.log(n * w / f1) / (1 - w), (1 - w * w) / (n * w * w)
    return 2 / (b_hat * c_hat)


def goodman(pairs, n, d, N):
    total = d
    for i, f in pairs:
        lg = mp.loggamma
        log_term = lg(N - n + i) + lg(n - i + 1) - lg(N - n) - lg(n + 1)
        term = mp.exp(log_term) * f
        if term > mpf(10) ** 15:
            return None
        total += (-1) ** (int(i) + 1) * term
    return total


def good_toulmin(pairs, n, d, N):
    t = (N - n) / n
    if t <= 1:
        return d - mp.fsum((-t) ** i * f for i, f in pairs)
    r = int(mp.floor(mp.log(n * t**2 / (t - 1), 3) / 2))
    p = 2 / (2 + t)
    pmf = [mp.binomial(r, k) * p**k * (1 - p) ** (r - k) for k in range(r + 1)]
    return d - mp.fsum((-t) ** i * f * mp.fsum(pmf[int(i) :]) for i, f in pairs if i <= r)


class Sample:
    """One profile and the quantities that several estimators share."""

    def __init__(self, i, f, N, q):
        self.pairs = [(mpf(int(a)), mpf(float(b))) for a, b in zip(i, f, strict=True)]
        self.n = mp.fsum(a * b for a, b in self.pairs)
        self.d = mp.fsum(b for _, b in self.pairs)
        self.s2 = mp.fsum(a * (a - 1) * b for a, b in self.pairs)
        self.N, self.q = mpf(float(N)), mpf(float(q))
        self.f1, self.f2 = (mp.fsum(b for a, b in self.pairs if a == k) for k in (1, 2))

    def sum(self, term):
        return mp.fsum(term(i) * f for i, f in self.pairs)

    def gamma2(self, distinct):
        return max(mpf(0), distinct / self.n**2 * self.s2 + distinct / self.N - 1)

    def duj1(self):
        return self.d / (1 - (1 - self.q) * self.f1 / self.n)

    def duj2(self):
        q, skew = self.q, self.gamma2(self.duj1())
        top = self.d - self.f1 * (1 - q) * mp.log(1 - q) * skew / q
        return top / (1 - (1 - q) * self.f1 / self.n)

    def duj2a(self, cut=50):
        frequent = [(i, f) for i, f in self.pairs if i > cut]
        rare = [(i, f) for i, f in self.pairs if i <= cut]
        if not rare:
            return self.d
        q, N = self.q, self.N
        for i, f in frequent:
            N -= f * mp.findroot(lambda x: q * x - i * (1 - (1 - q) ** x), i / q)  # noqa: B023
        rest = Sample([i for i, _ in rare], [f for _, f in rare], N, q)
        rest.N = max(N, rest.n)
        return rest.duj2() + mp.fsum(f for _, f in frequent)

    def shlosser(self):
        q = self.q
        return self.sum(lambda i: (1 - q) ** i) / self.sum(lambda i: i * q * (1 - q) ** (i - 1))

    def smoothed(self):
        n, N, f1 = self.n, self.N, self.f1
        first = (self.d - f1 / n) / (1 - (N - n + 1) * f1 / (n * N))
        size = N / first
        h = h_of(size, n, N)
        skew = N * h * g_of(size, n - 1, N) * self.gamma2(first) if h > 0 else 0
        return (self.d + skew) / (1 - (N - size - n + 1) * f1 / (n * N))

    def moments(self):
        n, N, d = self.n, self.N, self.d
        if n == d:
            return N
        size = root(lambda x: (1 - h_of(x, n, N)) / x - d / N, 1, N / d)
        return N / size

    def skewed(self, degrees):
        mean = self.n / self.d
        u = self.sum(lambda i: (i - mean) ** 2 / mean)
        return degrees > 0 and u > chdtri(float(degrees), 0.025)


def chao_lee_values(s):
    n, d, f1 = s.n, s.d, s.f1
    c = 1 - f1 / n
    dispersion = s.s2 / (n * (n - 1))
    g = max(mpf(0), d / c * dispersion - 1)
    second = max(mpf(0), g * (1 + n * (1 - c) * dispersion / c))
    wrong = max(mpf(0), d * s.s2 / (c * (n**2 - n - 1)))
    return {
        "CL1": lambda: d / c + f1 / c * g,
        "CL2": lambda: d / c + f1 / c * second,
        "CL1_AUTHORS_CPP": lambda: d / c + f1 / c * wrong,
        "CL1_AUTHORS_NB": lambda: d / c,
    }


def formulas(s):
    """Every estimator as a function without arguments."""
    n, d, N, q, f1, f2 = s.n, s.d, s.N, s.q, s.f1, s.f2

    def ae():
        return d + solve_ae(s.pairs, f1, f2) - f1 - f2

    def chao():
        return d + (f1**2 / (2 * f2) if f2 > 0 else f1 * (f1 - 1) / 2)

    def sh2():
        size = N / s.duj1()
        return d + f1 * s.shlosser() * q * (1 + q) ** (size - 1) / ((1 + q) ** size - 1)

    def sh3():
        top = s.sum(lambda i: i * q**2 * (1 - q**2) ** (i - 1))
        ratio = top / s.sum(lambda i: (1 - q) ** i * ((1 + q) ** i - 1))
        return d + f1 * ratio * s.shlosser() ** 2

    def sj2():
        size = N / s.duj1()
        a = (1 - q) ** size
        return (d - a * mp.log(1 - q) * N * s.gamma2(s.duj1())) / (1 - a)

    def mm0():
        return n / root(lambda y: (1 - mp.exp(-y)) / y - d / n, mpf(10) ** -30, n / d)

    def mm2():
        first = s.moments()
        size = N / first
        h = h_of(size, n, N)
        skew = 0
        if h > 0:
            bend = g2_of(size, n, N) - g_of(size, n, N) ** 2
            skew = size**2 / 2 * s.gamma2(first) * h * bend
        return d / (1 - h + skew)

    def haas_stokes():
        skew = s.gamma2(s.duj1())
        return s.duj2() if skew < 0.9 else s.duj2a() if skew < 30 else sh3()

    def jk2():
        return d + (2 * n - 3) / n * f1 - ((n - 2) ** 2 / (n * (n - 1)) * f2 if f2 else 0)

    def gee():
        return mp.sqrt(N / n) * f1 + d - f1

    def shlosser():
        return d + f1 * s.shlosser()

    def hybrid(skewed, degrees):
        return skewed() if s.skewed(degrees) else s.smoothed()

    return {
        "SCALE": lambda: d / q,
        "EB": lambda: mp.sqrt(N / n) * max(f1, mpf(1)) + d - f1,
        "GEE": gee,
        "AE": ae,
        "CHAO": chao,
        "CHAO_BC": lambda: d + f1 * (f1 - 1) / (2 * (f2 + 1)),
        "CHAO3": lambda: d + f1**2 / (2 * (d - f1)),
        "CHAO3_BC": lambda: d + f1 * (f1 - 1) / (2 * (d - f1 + 1)),
        **({} if n == f1 else chao_lee_values(s)),
        "SHL": shlosser,
        "SH2": sh2,
        "SH3": sh3,
        "JK1": lambda: d + (n - 1) / n * f1,
        "JK2": jk2,
        "DUJ1": s.duj1,
        "DUJ2": s.duj2,
        "DUJ2A": s.duj2a,
        "SJ": s.smoothed,
        "SJ2": sj2,
        "MM0": mm0,
        "MM1": s.moments,
        "MM2": mm2,
        "BOOT": lambda: d + s.sum(lambda i: (1 - i / n) ** n),
        "HT": lambda: s.sum(lambda i: 1 / (1 - h_of(i * N / n, n, N))),
        "SICHEL": lambda: solve_sichel(n, d, f1),
        "GOODMAN": lambda: goodman(s.pairs, n, d, N),
        "HS": haas_stokes,
        "HYBSKEW": lambda: hybrid(shlosser, d - 1),
        "HYBGEE": lambda: hybrid(gee, d - 1),
        "HYBSKEW_COMPAT": lambda: hybrid(shlosser, n - 1),
        "HYBGEE_COMPAT": lambda: hybrid(gee, n - 1),
        "SGT": lambda: good_toulmin(s.pairs, n, d, N),
    }


def value_of(formula):
    """A formula's float64 value, NaN where it is undefined."""
    try:
        value = formula()
    except (ZeroDivisionError, TypeError, ValueError):
        return np.nan
    return np.nan if value is None or not mp.isfinite(value) else float(value)


def make_estimators():
    cases = [(*case[:5], case[5]) for case in populations()]
    cases += [(*case, np.nan) for case in extremes()]
    names = list(formulas(Sample([1, 2], [3, 2], 100, 0.07)))
    width = max(len(case[1]) for case in cases)
    i, f = np.zeros((len(cases), width), np.int64), np.zeros((len(cases), width))
    values = np.full((len(cases), len(names)), np.nan)
    sizes, rates = np.zeros(len(cases)), np.zeros(len(cases))
    for row, (_, ii, ff, N, q, _) in enumerate(cases):
        i[row, : len(ii)], f[row, : len(ff)] = ii, ff
        q = float(np.sum(i[row] * f[row])) / N if q is None else q
        sizes[row], rates[row] = N, q
        table = formulas(Sample(ii, ff, N, q))
        for column, name in enumerate(names):
            values[row, column] = value_of(table[name]) if name in table else np.nan
    np.savez_compressed(
        HERE / "ndv_estimators.npz",
        case=np.array([case[0] for case in cases]),
        name=np.array(names),
        i=i,
        f=f,
        N=sizes,
        q=rates,
        distinct=np.array([case[5] for case in cases]),
        value=values,
        mpmath=np.array(mp.__version__),
    )


def make_special():
    points = []
    for N in (5.0, 30.0, 1e3, 1e6, 2.0**31, 2.0**40):
        for q in (1e-6, 1e-3, 0.1, 0.5, 0.9):
            n = float(np.float32(max(1.0, round(q * N))))
            for size in (1.0, 1 + 2.0**-13, 2.0, 3.7, 1e2, 1e5, 0.3 / q, 3 / q, 20 / q, 0.4 * N):
                size = float(np.float32(size))
                if 1 <= size <= N - n:
                    points.append((size, n, N))
    rows = []
    for point in points:
        x, n, N = map(mpf, point)
        log_miss = log_h(x, n, N)
        first = (1 - mp.exp(log_miss)) * N / (n * x)
        repeats = 0 if x == 1 or n == 1 else 1 - first
        values = (log_miss, repeats, first, g_of(x, n, N), g2_of(x, n, N))
        rows.append([float(v) for v in values])
    np.savez_compressed(
        HERE / "ndv_special.npz",
        point=np.array(points),
        value=np.array(rows),
        name=np.array(["log_miss", "repeats", "firsts", "slope", "curvature"]),
        mpmath=np.array(mp.__version__),
    )


if __name__ == "__main__":
    make_special()
    make_estimators()
