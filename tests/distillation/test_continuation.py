"""Continuation-KD as an objective: the weights of its equation, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab.distillation.compilation import compile_objective
from jaxlab.distillation.knowledge import Features
from jaxlab.distillation.objective_config import HardConfig, ObjectiveConfig, ResponseConfig
from jaxlab.distillation.terms import Shape
from jaxlab.distillation.train import Parts, make_distillation_step
from tests.distillation.networks import forward

CONFIG = ObjectiveConfig(
    response=ResponseConfig("mse", annealing=10, schedule="continuation", margin=1.0),
    hard=HardConfig(1.0, schedule="continuation"),
)
OBJECTIVE = compile_objective(CONFIG, Shape(1, 8, 2), Shape(1, 8, 2))


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.6, 0.65, 0.7, 1.0])
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_soft_and_hard_losses_are_weighed_as_the_equation_says(progress, scale):
    rng = np.random.default_rng(0)
    student, teacher = (rng.normal(size=(4, 3)) * size for size in (0.1, scale))
    label = np.array([0, 2, 1, 1])
    batch = {
        "mask": jnp.ones((4, 2), bool),
        "label": jnp.asarray(label),
        "has_label": jnp.ones(4, bool),
    }
    shown = [Features(logits=jnp.asarray(x, jnp.float32)) for x in (student, teacher)]
    found = OBJECTIVE({}, *shown, batch, progress)
    phi = 1 - (max(1, np.ceil(round((1 - progress) * 10, 5))) - 1) / 10
    psi = 1.0 if progress > 0.666 else progress / 1.333
    soft = float(((student - phi * teacher) ** 2).mean())
    hard = np.log(np.exp(student).sum(axis=1)) - student[np.arange(4), label]
    wanted = psi * hard.mean() + (1 - psi) * soft * (soft > phi)
    assert float(found.values["response"]) == pytest.approx(soft, rel=1e-5)
    assert float(found.total()) == pytest.approx(float(wanted), rel=1e-5)


def test_a_margin_is_of_a_whole_batch_and_goes_with_annealing():
    with pytest.raises(ValueError, match="compares the loss of the batch with its margin"):
        make_distillation_step(
            Parts(OBJECTIVE, forward, forward), optax.sgd(0.1), 10, num_microbatches=2
        )
    with pytest.raises(ValueError, match="needs annealing=0 of 1 or more"):
        ResponseConfig("mse", schedule="continuation")
    assert jax.tree.leaves(OBJECTIVE.init(jax.random.key(0))) == []
