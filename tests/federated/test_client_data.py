import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.federated.client_data import (
    ClientView,
    Schedule,
    gather_clients,
    shuffle_epochs,
    take_batch,
    view_client,
)
from jaxlab.federated.strategy import ConfigError


def walk(schedule, size):
    """Sizes of the batches of a round, one by one."""
    starts = range(0, size, schedule.batch_size)
    batches = [min(schedule.batch_size, size - start) for start in starts]
    if schedule.drop_last:
        batches = [b for b in batches if b == schedule.batch_size]
    if schedule.unit == "epoch":
        return batches * schedule.amount
    batches = batches[: schedule.amount]
    return [batches[step % len(batches)] for step in range(schedule.amount)] if batches else []


@pytest.mark.parametrize("unit, amount", [("epoch", 1), ("epoch", 3), ("step", 2), ("step", 7)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_steps_and_samples_of_a_round_are_those_of_a_walk(unit, amount, drop_last):
    schedule = Schedule(4, amount, unit, drop_last)
    for size in range(14):
        batches = walk(schedule, size)
        assert schedule.num_steps(size) == len(batches), size
        assert schedule.num_samples(size) == sum(batches), size
    sizes = np.array([0, 3, 4, 9], np.int32)
    np.testing.assert_array_equal(
        schedule.num_steps(sizes), [len(walk(schedule, int(size))) for size in sizes]
    )
    # Epochs that the longest walk begins.
    epochs = [-(-schedule.num_steps(n) // max(schedule.num_batches(n), 1)) for n in (0, 3, 4, 9)]
    assert schedule.max_epochs(sizes) == max(1, *epochs)


@pytest.mark.parametrize("settings", [(0,), (1, 0), (1, 1, "batch")])
def test_a_schedule_without_steps_is_refused(settings):
    with pytest.raises(ConfigError, match="Schedule: batch_size=.*'epoch', 'step'"):
        Schedule(*settings)


def test_the_examples_of_a_client_lie_together():
    x = np.arange(10) * 10
    data = gather_clients({"x": x}, [np.array([3, 1]), np.array([], int), np.array([0, 9, 3])])
    assert data.num_clients == 3
    np.testing.assert_array_equal(data.examples["x"], [30, 10, 0, 90, 30])
    np.testing.assert_array_equal(data.offsets, [0, 2, 2])
    np.testing.assert_array_equal(data.sizes, [2, 0, 3])


def test_wrong_indices_and_lengths_are_told_with_their_numbers():
    with pytest.raises(ConfigError, match="indices from 0 to 3; there are 3 examples"):
        gather_clients({"x": np.zeros(3)}, [np.array([0, 3])])
    with pytest.raises(ConfigError, match=r"lengths \{'x': 3, 'y': 2\}"):
        gather_clients({"x": np.zeros(3), "y": np.zeros(2)}, [np.array([0])])
    with pytest.raises(ConfigError, match=r"lengths \{\}"):
        gather_clients({}, [])


def test_every_epoch_has_an_order_of_its_own_over_all_examples_of_the_client():
    orders = shuffle_epochs(jax.random.key(0), jnp.int32(9), 3, 12)
    assert [sorted(order[:9].tolist()) for order in orders] == [list(range(9))] * 3
    assert len({tuple(order[:9].tolist()) for order in orders}) == 3
    # It depends on nothing but the client: not on the epochs and sizes of others.
    alone = shuffle_epochs(jax.random.key(0), jnp.int32(9), 2, 9)
    np.testing.assert_array_equal(alone, orders[:2, :9])


def test_rows_beyond_the_last_example_are_masked_and_are_examples_of_the_client():
    data = gather_clients({"x": np.arange(10)}, [np.arange(5), np.arange(5, 10)])
    view = view_client(jax.tree.map(jnp.asarray, data), jnp.int32(1))
    assert isinstance(view, ClientView) and int(view.size) == 5
    batch, mask = take_batch(view, jnp.int32(3), 4)
    np.testing.assert_array_equal(mask, [True, True, False, False])
    np.testing.assert_array_equal(batch["mask"], mask)
    np.testing.assert_array_equal(batch["x"], [8, 9, 5, 5])
    batch, _ = take_batch(view, jnp.int32(0), 2, jnp.array([4, 0, 1, 2, 3]))
    np.testing.assert_array_equal(batch["x"], [9, 5])
