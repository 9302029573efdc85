"""How many clients are computed at once is found on the first rounds, and changes no result."""

import jax
import numpy as np
import pytest

from jaxlab.federated import width
from jaxlab.federated.algorithm import Algorithm
from jaxlab.federated.local import Limits
from jaxlab.federated.strategy import ConfigError
from jaxlab.federated.width import WidthChoice, candidate_widths, choose_width, use_cpu_cores
from jaxlab.parallel import make_mesh

ALGORITHM = Algorithm(*[repr] * len(Algorithm._fields))
LIMITS = Limits(10, 1)


def settle(choice, seconds):
    """Rounds until the choice is made; `seconds` of each width."""
    tried = []
    while not choice.is_settled:
        tried.append(choice.width)
        choice.note(100.0 if tried.count(choice.width) == 1 else seconds[choice.width])
    return tried


def test_the_fastest_width_is_kept_and_narrower_ones_are_not_tried():
    choice = WidthChoice([8, 4, 2, 1])
    assert settle(choice, {8: 3.0, 4: 2.0, 2: 2.5}) == [8, 8, 4, 4, 2, 2]
    assert choice.width == 4
    choice.note(1e9)  # later rounds change nothing
    assert choice.width == 4


def test_the_first_round_of_a_width_compiles_and_is_not_counted():
    choice = WidthChoice([2, 1])
    choice.note(50.0)
    choice.note(1.0)
    choice.note(70.0)
    choice.note(0.5)
    assert choice.is_settled and choice.width == 1


def test_widths_for_which_memory_is_short_are_dropped():
    choice = WidthChoice([4, 2, 1])
    assert choice.drop() and choice.width == 2
    assert settle(choice, {2: 1.0, 1: 2.0}) == [2, 2, 1, 1] and choice.width == 2
    assert not choice.drop()


def test_a_cpu_takes_one_client_at_a_time_and_accelerators_begin_wide():
    assert candidate_widths("cpu", 25) == [1]
    assert candidate_widths("tpu", 50) == [64, 32, 16, 8, 4, 2, 1]
    assert candidate_widths("gpu", 0) == [1]


def test_courses_of_one_algorithm_share_what_was_found(monkeypatch):
    monkeypatch.setattr(width, "candidate_widths", lambda platform, clients: [4, 2, 1])
    mesh = make_mesh(devices=jax.devices()[:1])
    width._shared_choice.cache_clear()
    first = choose_width("auto", ALGORITHM, LIMITS, mesh, 10)
    settle(first, {4: 1.0, 2: 2.0})
    assert choose_width(None, ALGORITHM, LIMITS, mesh, 10).width == 4
    assert not choose_width(None, ALGORITHM._replace(variables=str), LIMITS, mesh, 10).is_settled
    assert choose_width(3, ALGORITHM, LIMITS, mesh, 10).width == 3
    width._shared_choice.cache_clear()


@pytest.mark.parametrize("wrong", [0, -1, True, "wide"])
def test_other_widths_are_refused(wrong):
    with pytest.raises(ConfigError, match="must be a positive integer, 'auto' or None"):
        choose_width(wrong, ALGORITHM, LIMITS, make_mesh(), 10)


def test_a_jax_that_has_started_keeps_its_devices_and_the_log_says_so(caplog):
    found = len(jax.devices())
    assert use_cpu_cores(found + 1) == found
    assert f"JAX has started with {found} CPU device(s) for {found + 1} cores" in caplog.text
    assert use_cpu_cores(found) == found
    assert np.size(jax.devices()) == found
