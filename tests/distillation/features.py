"""Features of networks that are not there, and the losses of objectives between them."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.distillation.compilation import compile_objective
from jaxlab.distillation.knowledge import Features
from jaxlab.distillation.objective_config import ResponseConfig
from jaxlab.distillation.terms import Shape

TEACHER, STUDENT = Shape(4, 12, 2), Shape(2, 8, 2)
SAME = Shape(2, 12, 2)
NO_RESPONSE = ResponseConfig(kind="none")
BATCH = {
    "mask": jnp.arange(5)[None] < jnp.array([[5], [3], [0]]),
    "label": jnp.array([2, 0, 0]),
    "has_label": jnp.array([True, True, False]),
}


def random_features(shape: Shape, seed: int, *, classes: int = 3) -> Features:
    rng = np.random.default_rng(seed)

    def draw(*sizes):
        return jnp.asarray(rng.normal(size=sizes), jnp.float32)

    layers = range(shape.num_layers)
    scores = tuple(draw(3, shape.num_heads, 5, 5) for _ in layers)
    return Features(
        logits=draw(3, classes),
        hidden=tuple(draw(3, 5, shape.width) for _ in range(shape.num_layers + 1)),
        scores=scores,
        probabilities=tuple(jax.nn.softmax(s) for s in scores),
        queries=tuple(draw(3, 5, shape.width) for _ in layers),
        keys=tuple(draw(3, 5, shape.width) for _ in layers),
        values=tuple(draw(3, 5, shape.width) for _ in layers),
        pooled=draw(3, shape.width),
    )


FROM_TEACHER = random_features(TEACHER, 0)
FROM_STUDENT = random_features(STUDENT, 1)
FROM_SAME = random_features(SAME, 2)


def losses_of(config, student=FROM_SAME, shape=SAME, teacher=FROM_TEACHER, **options):
    objective = compile_objective(config, shape, TEACHER)
    projections = objective.init(jax.random.key(0))
    return objective, objective(projections, student, teacher, BATCH, **options)
