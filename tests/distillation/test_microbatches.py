"""What is another loss where a batch goes through in parts is refused."""

import optax
import pytest

from jaxlab.distillation.compilation import compile_objective
from jaxlab.distillation.objective_config import HardConfig, ObjectiveConfig, ResponseConfig
from jaxlab.distillation.train import Parts, make_distillation_step
from tests.distillation.networks import STUDENT, TEACHER, forward

NONE = ResponseConfig("none")
WHOLE = {
    "flsw": ObjectiveConfig(response=ResponseConfig("ce", temperature_schedule="flsw")),
    "cwsm": ObjectiveConfig(response=ResponseConfig("ce", temperature_schedule="cwsm")),
    "drop_worst=0.1": ObjectiveConfig(response=NONE, hard=HardConfig(1.0, drop_worst=0.1)),
    "example_relation": ObjectiveConfig("last1:example_relation[heads=2]", NONE),
}


def make_step(config, num_microbatches):
    parts = Parts(compile_objective(config, STUDENT, TEACHER), forward, forward)
    return make_distillation_step(parts, optax.sgd(0.1), 10, num_microbatches=num_microbatches)


@pytest.mark.parametrize("name", WHOLE)
def test_what_needs_a_whole_batch_refuses_microbatches(name):
    assert make_step(WHOLE[name], 1)
    with pytest.raises(ValueError, match=f"{name}.* need a whole batch.*in 2 microbatches"):
        make_step(WHOLE[name], 2)


def test_settings_that_are_not_used_refuse_nothing():
    unused = ResponseConfig("none", temperature_schedule="flsw")
    assert make_step(ObjectiveConfig("last1:pkd->linear", unused, HardConfig(drop_worst=0.1)), 2)
