"""Principal components of a teacher, which take it down to the width of a student."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.distillation import hidden
from jaxlab.distillation.compilation import compile_objective
from jaxlab.distillation.objective_config import ObjectiveConfig
from jaxlab.distillation.principal import fit_principal
from jaxlab.distillation.terms import Shape
from tests.distillation.features import (
    BATCH,
    FROM_STUDENT,
    FROM_TEACHER,
    NO_RESPONSE,
    STUDENT,
    TEACHER,
    random_features,
)


def test_principal_components_take_the_teacher_down():
    objective = compile_objective(
        ObjectiveConfig("last1:cos->pca/pca", NO_RESPONSE), STUDENT, TEACHER
    )
    assert not objective.projections
    kernel = jnp.asarray(np.random.default_rng(3).normal(size=(12, 8)), jnp.float32)
    principal = {"pca": {"kernel": kernel, "bias": jnp.zeros(8)}}
    losses = objective(principal, FROM_STUDENT, FROM_TEACHER, BATCH)
    expected = hidden.hidden_cosine(
        FROM_STUDENT.hidden[2], FROM_TEACHER.hidden[4] @ kernel, BATCH["mask"]
    )
    np.testing.assert_allclose(losses.total(), expected.value, rtol=1e-5)
    with pytest.raises(ValueError, match=r"cos/3-1 needs the projection 'pca'.*by fit_principal"):
        objective({}, FROM_STUDENT, FROM_TEACHER, BATCH)


def test_principal_components_are_those_of_the_real_tokens_of_their_layers():
    config = ObjectiveConfig("1-0+3-1:hidden_mse->pca/both,3-1:cos->pca", NO_RESPONSE)
    objective = compile_objective(config, Shape(2, 3, 1), TEACHER)
    found = fit_principal(objective, lambda _: FROM_TEACHER, [BATCH], 3)
    mask = np.asarray(BATCH["mask"])
    tokens = {"both": [2, 4], "cos/3-1": [4]}
    assert found.keys() == tokens.keys()
    for name, layers in tokens.items():
        rows = np.concatenate([np.asarray(FROM_TEACHER.hidden[i])[mask] for i in layers])
        kernel, projected = np.asarray(found[name]["kernel"]), project_rows(found[name], rows)
        np.testing.assert_allclose(kernel.T @ kernel, np.eye(3), atol=1e-5)
        np.testing.assert_allclose(projected.mean(axis=0), 0.0, atol=1e-5)
        spread = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)[:3]
        np.testing.assert_allclose(np.linalg.norm(projected, axis=0), spread, rtol=1e-4)
        assert (np.take_along_axis(kernel, np.abs(kernel).argmax(axis=0)[None], 0) > 0).all()
    with pytest.raises(ValueError, match="12 components need as many tokens"):
        fit_principal(objective, lambda _: FROM_TEACHER, [BATCH], 12)


def test_components_take_the_first_tokens_of_every_stack():
    line = "last1:hidden_mse:encoder[emb=no]->pca/fit,last1:hidden_mse:decoder[emb=no]->pca"
    objective = compile_objective(ObjectiveConfig(line, NO_RESPONSE), Shape(2, 3, 1), TEACHER)
    stacks = {"encoder": FROM_TEACHER, "decoder": random_features(TEACHER, 5)}
    batch = {**BATCH, "decoder_mask": jnp.roll(BATCH["mask"], 1, axis=0)}
    # Endless: they are read as far as they are needed.
    endless = itertools.repeat(batch)
    found = fit_principal(objective, lambda _: stacks, endless, 3, num_tokens=14)
    names = {"encoder": ("fit", "mask"), "decoder": ("hidden_mse/decoder/3-1", "decoder_mask")}
    for stack, (name, mask) in names.items():
        rows = np.asarray(stacks[stack].hidden[4])[np.asarray(batch[mask])]
        rows = np.concatenate([rows, rows[:6]])
        projected = project_rows(found[name], rows)
        np.testing.assert_allclose(projected.mean(axis=0), 0.0, atol=1e-5)
        spread = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False)[:3]
        np.testing.assert_allclose(np.linalg.norm(projected, axis=0), spread, rtol=1e-4)
    with pytest.raises(ValueError, match="no real tokens to take components from"):
        fit_principal(objective, lambda _: stacks, [], 3)


def project_rows(projection, rows):
    return rows @ np.asarray(projection["kernel"]) + np.asarray(projection["bias"])
