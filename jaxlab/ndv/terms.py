"""What the estimator formulas share: sums over a profile, each taken without cancellation."""

from typing import NamedTuple

from jaxtyping import Array, Float
from numpy import ndarray

from jaxlab.ndv.profile import Profile, check_profile
from jaxlab.ndv.special import Numbers, namespace

Columns = Float[Array, "*batch"] | Float[ndarray, "*batch"]
Entries = Float[Array, "*batch entries"] | Float[ndarray, "*batch entries"]


class Terms(NamedTuple):
    """A profile as the formulas read it.

    The tail is appended as classes of one frequency, its mean: exact for sums of rows and classes,
    and s2 takes the tail's own sum of squares.

    Attributes:
      i: frequencies as real numbers, at least 1.
      f: values that occur i times.
      n: sampled rows.
      d: sampled distinct values.
      N: rows of the population.
      q: sampling rate.
      f1: values seen once.
      f2: values seen twice.
      repeated_rows: n - f1, the rows of values seen more than once.
      repeated_values: d - f1, the values seen more than once.
      repeats: n - d, the rows whose value another row has too, all but one of each value.
      s2: sum of i (i - 1) f.
    """

    i: Entries
    f: Entries
    n: Columns
    d: Columns
    N: Columns
    q: Columns
    f1: Numbers
    f2: Numbers
    repeated_rows: Numbers
    repeated_values: Numbers
    repeats: Numbers
    s2: Numbers


def summarize(profile: Profile) -> Terms:
    """The terms of a profile, with its leading batch axes.

    Raises:
      TypeError: if it is no profile.
    """
    check_profile(profile)
    xp = namespace(profile.f)
    tail = profile.n_tail / xp.where(profile.d_tail > 0, profile.d_tail, 1.0)
    i = xp.maximum(profile.i, 1).astype(profile.f.dtype)
    i = xp.concatenate([i, xp.maximum(tail, 1.0)[..., None]], axis=-1)
    f = xp.concatenate([profile.f, profile.d_tail[..., None]], axis=-1)
    many = xp.where(i > 1, f, 0.0)
    inside = i[..., :-1] * (i[..., :-1] - 1) * profile.f
    return Terms(
        i=i,
        f=f,
        n=profile.n,
        d=profile.d,
        N=profile.N,
        q=profile.q,
        f1=xp.sum(xp.where(i == 1, f, 0.0), axis=-1),
        f2=xp.sum(xp.where(i == 2, f, 0.0), axis=-1),
        repeated_rows=xp.sum(i * many, axis=-1),
        repeated_values=xp.sum(many, axis=-1),
        repeats=xp.sum((i - 1) * f, axis=-1),
        s2=xp.sum(inside, axis=-1) + profile.s2_tail,
    )


def squared_variation(distinct: Numbers, terms: Terms) -> Numbers:
    """Estimated squared coefficient of variation of the sizes of `distinct` classes.

    gamma^2(D) = max(0, (D / n^2) s2 + D / N - 1).

    References:
      Haas and Stokes 1998, "Estimating the number of classes in a finite population", JASA 93,
      equation 16.
    """
    xp = namespace(terms.f)
    ratio = (distinct / terms.n) * (terms.s2 / terms.n) + distinct / terms.N
    return xp.maximum(ratio - 1, 0.0)


def power(base_excess: Numbers, exponent: Numbers) -> Numbers:
    """(1 + base_excess)^exponent, through log1p; 0 for a base of 0."""
    xp = namespace(base_excess)
    return xp.exp(exponent * xp.log1p(base_excess))
