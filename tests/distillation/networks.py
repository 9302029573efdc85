"""A teacher and a student of a few products, for tests of what is made of networks."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxlab.distillation.knowledge import Features
from jaxlab.distillation.terms import Shape

WORDS, CLASSES = 11, 3
TEACHER, STUDENT = Shape(2, 12, 2), Shape(1, 8, 2)


def random_params(shape: Shape, seed: int):
    rng = np.random.default_rng(seed)

    def draw(*sizes):
        return jnp.asarray(rng.normal(size=sizes), jnp.float32)

    return {
        "words": draw(WORDS, shape.width),
        "layers": [draw(shape.width, shape.width) / 3 for _ in range(shape.num_layers)],
        "head": draw(shape.width, CLASSES),
    }


def forward(params, batch, *, taps=frozenset(), train=False, key=None):
    """A network of the right form, of a few products: every token for itself, mean over tokens."""
    x = params["words"][batch["ids"]]
    if key is not None:
        x = x * jax.random.bernoulli(key, 0.9, x.shape)
    hidden, queries, scores = [x], [], []
    for kernel in params["layers"]:
        query = (x @ kernel).reshape(*x.shape[:2], 2, -1)
        scores.append(jnp.einsum("bihd,bjhd->bhij", query, query))
        queries.append(query.reshape(x.shape))
        x = jnp.tanh(x @ kernel)
        hidden.append(x)
    shares = batch["mask"] / jnp.maximum(batch["mask"].sum(axis=1, keepdims=True), 1)
    found = {"hidden": hidden, "queries": queries, "scores": scores}
    pooled = jnp.einsum("bt,btf->bf", shares, x)
    tapped = {name: tuple(found[name]) for name in taps}
    return Features(logits=pooled @ params["head"], pooled=pooled, **tapped)


FROZEN = {"teacher": random_params(TEACHER, 1)}


def make_batch(time: int = 6, rows: int = 8):
    rng = np.random.default_rng(4)
    lengths = np.array([5, 2, 4, 1, 3, 5, 0, 2])[:rows]
    ids = np.zeros((rows, time), np.int32)
    ids[:, :5] = rng.integers(1, WORDS, (rows, 5))
    mask = np.arange(time)[None] < lengths[:, None]
    return {
        "ids": jnp.asarray(np.where(mask, ids, 0)),
        "mask": jnp.asarray(mask),
        "label": jnp.asarray(rng.integers(0, CLASSES, rows, dtype=np.int32)),
        "has_label": jnp.asarray(lengths > 1),
    }
