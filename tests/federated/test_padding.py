import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.federated.padding import Grid, StepCount, count_places, count_steps, find_places

grids = st.builds(Grid, st.integers(1, 8), st.integers(1, 5))


@given(st.integers(1, 2000), grids, st.integers(0, 100))
def test_places_are_enough_and_at_most_a_third_of_them_is_empty(num_clients, grid, regular):
    places = count_places(num_clients, grid, regular)
    unit = grid.num_devices * grid.width
    assert places >= num_clients and places % unit == 0
    assert places // unit <= 1.5 * -(-num_clients // unit)


def test_cohorts_of_all_sizes_make_few_programs():
    sizes = {count_places(n, Grid(2, 1), regular=50) for n in range(1, 1001)}
    assert len(sizes) <= 20 and count_places(50, Grid(2, 1), regular=50) == 50


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=60), grids)
def test_every_client_gets_a_place_and_sorting_wastes_no_more(steps, grid):
    steps = np.asarray(steps)
    num_places = count_places(len(steps), grid)
    places = find_places(steps, num_places, grid)
    assert len(set(places.tolist())) == len(steps) and places.max() < num_places
    count = count_steps(steps, places, num_places, grid)
    assert count.taken == steps.sum() and count.spent >= count.taken
    # Within the longest client of what an even split over devices would take.
    assert count.spent <= (steps.sum() + grid.num_devices * grid.width * 2 * steps.max())


def test_waste_is_what_the_longest_client_of_a_chunk_lets_the_others_wait():
    steps = np.array([1, 4, 1, 4])
    count = count_steps(steps, np.arange(4), 4, Grid(1, 2))
    assert count == StepCount(10, 16) and count.waste == pytest.approx(6 / 16)
    sorted_places = find_places(steps, 4, Grid(1, 2))
    assert count_steps(steps, sorted_places, 4, Grid(1, 2)).waste == 0.0
    assert (count + StepCount(6, 8)).waste == pytest.approx(8 / 24)
    assert StepCount().waste == 0.0
