"""Our side of the relations of tests/golden/make_distillation_bertdistiller.py."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab import distillation as kd

GOLDEN = Path(__file__).parents[1] / "golden"
MAKER = runpy.run_path(str(GOLDEN / "make_distillation_bertdistiller.py"), run_name="maker")
CASES = MAKER["CASES"]
NORM = "bertdistiller"


def matches_of(case, pair="0-0", norm=NORM):
    """The line of our grammar that says what the original's settings say."""
    kinds = MAKER["PROJECTIONS"]
    items = []
    for (m, n), weight in case.relations.items():
        first, second = kinds[m - 1], kinds[n - 1]
        name = f"{first}_relation" if m == n else f"{first}_{second}_relation"
        items.append(f"{pair}:{name}[heads={case.num_heads},norm={norm}]@{weight!r}")
    return ",".join(items)


def ours(case, drawn, norm=NORM):
    """Our loss of a case, and its gradient by the student's queries, keys and values."""
    teacher, student, mask = drawn
    shapes = [
        kd.Shape(1, MAKER[f"{side}_WIDTH"], heads)
        for side, heads in (("STUDENT", 2), ("TEACHER", 4))
    ]
    config = kd.ObjectiveConfig(matches_of(case, norm=norm), kd.ResponseConfig("none"))
    objective = kd.compile_objective(config, *shapes)
    batch = {"mask": jnp.asarray(mask)}

    def features(side):
        queries, keys, values = jnp.split(side, 3, axis=-1)
        return kd.Features(queries=(queries,), keys=(keys,), values=(values,))

    def loss(student):
        return objective({}, features(student), features(jnp.asarray(teacher)), batch).total()

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(student))
    return float(value), np.asarray(gradient)


def check(found, expected):
    """Loss and gradient are equal to 1e-5."""
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    atol = 1e-5 * np.abs(expected[1]).max()
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=atol)
