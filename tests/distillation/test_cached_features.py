"""A teacher out of a batch: which losses it leaves as they are, and which it would change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.distillation.cached_features import PREFIX
from jaxlab.distillation.compilation import compile_objective
from jaxlab.distillation.objective_config import ObjectiveConfig
from jaxlab.distillation.train import Parts, distillation_params, losses_of
from tests.distillation.networks import FROZEN, STUDENT, TEACHER, forward, make_batch, random_params


@pytest.mark.parametrize(
    "matches, named",
    [
        ("last1:attention_tinybert", "attention_tinybert"),
        (
            "last1:attention_mse[norm=textbrewer_unmasked]",
            r"attention_mse\[norm=textbrewer_unmasked\]",
        ),
        ("last1:attention_ce[norm=textbrewer]", r"attention_ce\[norm=textbrewer\]"),
        ("last1:pkd[norm=textbrewer]->linear", r"pkd\[norm=textbrewer\]"),
    ],
)
def test_terms_that_count_padding_need_a_teacher_that_runs(matches, named):
    objective = compile_objective(ObjectiveConfig(matches), STUDENT, TEACHER)
    params = distillation_params(objective, random_params(STUDENT, 2), jax.random.key(3))
    parts = Parts(objective, forward)
    with pytest.raises(ValueError, match=f"{named} count padding.*let the teacher run"):
        losses_of(parts, params, {}, make_batch(), jnp.zeros(()), None)


def test_a_pooled_output_needs_a_teacher_that_runs():
    objective = compile_objective(ObjectiveConfig("last1:pooled_mse->linear"), STUDENT, TEACHER)
    params = distillation_params(objective, random_params(STUDENT, 2), jax.random.key(3))
    with pytest.raises(ValueError, match="pooled_mse/1-0 compare the pooled output.*last1:pkd"):
        losses_of(Parts(objective, forward), params, {}, make_batch(), jnp.zeros(()), None)


def test_other_normalisations_of_textbrewer_are_those_of_a_cached_teacher():
    """What is not refused: the same loss with the teacher's padding in zeros."""
    names = [
        *(f"{name}[norm=textbrewer]" for name in ("attention_mse", "attention_mse_sum")),
        *(f"{name}[norm=textbrewer]->linear" for name in ("hidden_mse", "cos", "gram")),
        "mmd[norm=textbrewer]",
    ]
    config = ObjectiveConfig(",".join(f"last1:{name}" for name in names))
    objective = compile_objective(config, STUDENT, TEACHER)
    params = distillation_params(objective, random_params(STUDENT, 2), jax.random.key(3))
    batch = make_batch(time=8)
    shown = forward(FROZEN["teacher"], batch, taps=objective.teacher_taps)
    real = batch["mask"]
    pairs = (real[:, :, None] & real[:, None, :])[:, None]
    cached = {PREFIX + "logits": jnp.where(real.any(axis=1, keepdims=True), shown.logits, 0.0)}
    for name, entry in objective.teacher_entries:
        kept = pairs if name == "scores" else real[..., None]
        cached[f"{PREFIX}{name}/{entry}"] = jnp.where(kept, getattr(shown, name)[entry], 0.0)
    progress, parts = jnp.zeros(()), Parts(objective, forward, forward)
    live, _ = losses_of(parts, params, FROZEN, batch, progress, None)
    alone = parts._replace(teacher=None)
    found, _ = losses_of(alone, params, {}, {**batch, **cached}, progress, None)
    for name, mean in live.means.items():
        np.testing.assert_allclose(mean, found.means[name], rtol=1e-6, err_msg=name)
