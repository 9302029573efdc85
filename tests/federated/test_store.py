import numpy as np
import pytest

from jaxlab.federated.store import ClientStore

INITIAL = {"control": np.array([1.0, 2.0], np.float32), "rounds": np.int32(3)}


@pytest.fixture(params=["memory", "files"])
def store(request, tmp_path):
    return ClientStore(INITIAL, 5, None if request.param == "memory" else tmp_path / "clients")


def test_all_clients_begin_equal(store):
    rows = store.gather(np.array([0, 4]))
    np.testing.assert_array_equal(rows["control"], [[1, 2], [1, 2]])
    np.testing.assert_array_equal(rows["rounds"], [3, 3])
    assert store.num_bytes == 5 * 12 and not store.is_empty


def test_rows_of_a_cohort_are_replaced_and_no_others(store):
    rows = store.gather(np.array([3, 1]))
    changed = {"control": rows["control"] + [[1], [2]], "rounds": rows["rounds"] + 1}
    store.scatter(np.array([3, 1]), changed)
    np.testing.assert_array_equal(store.rows()["control"][:, 0], [1, 3, 1, 2, 1])
    np.testing.assert_array_equal(store.rows()["rounds"], [3, 4, 3, 4, 3])
    assert store.rows()["control"].dtype == np.float32


def test_what_is_gathered_is_a_copy(store):
    store.gather(np.array([2]))["control"][:] = 9
    assert store.rows()["control"].max() == 2


def test_files_hold_what_memory_need_not(tmp_path):
    """A store of 80 MB on disk: rows are read and written without the others."""
    store = ClientStore({"model": np.zeros(10_000, np.float32)}, 2000, tmp_path)
    assert isinstance(store.rows()["model"], np.memmap) and store.num_bytes == 80_000_000
    store.scatter(np.array([1999]), {"model": np.ones((1, 10_000), np.float32)})
    on_disk = np.load(tmp_path / "leaf_0.npy", mmap_mode="r")
    assert on_disk[1999].sum() == 10_000 and on_disk[1998].sum() == 0


def test_clients_that_keep_nothing_need_no_store():
    store = ClientStore({}, 5)
    assert store.is_empty and store.num_bytes == 0 and store.gather(np.array([1])) == {}


def test_files_of_zeros_take_no_room_before_they_are_written_to(tmp_path):
    store = ClientStore({"model": np.zeros(100_000, np.float32)}, 100, tmp_path)
    path = tmp_path / "leaf_0.npy"
    assert path.stat().st_size > 40_000_000 > 512 * path.stat().st_blocks
    store.scatter(np.array([7]), {"model": np.full((1, 100_000), 2, np.float32)})
    assert store.gather(np.array([6, 7]))["model"].sum(axis=1).tolist() == [0, 200_000]
    assert np.load(path, mmap_mode="r")[7].sum() == 200_000
