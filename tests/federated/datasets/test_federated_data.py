from pathlib import Path

import numpy as np
import pytest

from jaxlab.federated.datasets import CentralData, DataInfo, federate, split_each_client
from jaxlab.federated.splitters import split_iid
from jaxlab.federated.strategy import ConfigError

GOLDEN = Path(__file__).parents[2] / "golden" / "federated_splits.npz"
INFO = DataInfo("numbers", "this test", "", 2)


def central(num_train=20, num_test=0):
    def part(start, count):
        return {"x": np.arange(start, start + count), "y": np.zeros(count, np.int32)}

    return CentralData(INFO, part(0, num_train), part(100, num_test) if num_test else None)


@pytest.mark.parametrize("shares", [(0.6, 0.2), (0.8, 0.1), (0.8, 0.0)])
@pytest.mark.parametrize("size", [5, 10, 57])
def test_the_cut_of_a_client_is_that_of_the_original(shares, size):
    train, val = shares
    parts = split_each_client([np.arange(size)], (train, val, 1 - train - val), seed=1234)
    with np.load(GOLDEN) as golden:
        name = f"cut_{train}_{val}_{size}"
        assert [len(part[0]) for part in parts] == golden[f"{name}_sizes"].tolist()
        np.testing.assert_array_equal(
            np.concatenate([part[0] for part in parts]), golden[f"{name}_indices"]
        )


def test_every_client_keeps_its_own_examples_and_trains_on_one_at_least():
    split = [np.arange(10, 10 + n) for n in (0, 1, 2, 3, 9)]
    parts = split_each_client(split, (0.5, 0.25, 0.25))
    for held, *cut in zip(split, *parts, strict=True):
        np.testing.assert_array_equal(np.sort(np.concatenate(cut)), held)
        assert len(cut[0]) >= min(len(held), 1)
    everything, *nothing = split_each_client(split, (1.0, 0.0, 0.0))
    np.testing.assert_array_equal(everything[4], split[4])  # in its order
    assert not sum(len(part) for cut in nothing for part in cut)


def test_clients_test_on_their_own_examples_where_there_is_no_test_part():
    data = federate(central(20), split_iid(20, 2, seed=0), shares=(0.6, 0.2, 0.2))
    assert data.names == ("1", "2") and data.num_clients == 2
    assert [part.sizes.tolist() for part in (data.train, data.val, data.test)] == [
        [6, 6],
        [2, 2],
        [2, 2],
    ]
    held = [part.examples["x"] for part in (data.train, data.val, data.test)]
    np.testing.assert_array_equal(np.sort(np.concatenate(held)), np.arange(20))
    assert list(data.splits) == ["val", "test"]


def test_a_test_part_is_shared_out():
    data = federate(central(20, 9), split_iid(20, 2, seed=0), names=["a", "b"])
    assert data.test.sizes.tolist() == [5, 4] and list(data.splits) == ["test"]
    assert data.train.sizes.sum() == 20 and data.names == ("a", "b")
    np.testing.assert_array_equal(np.sort(data.test.examples["x"]), np.arange(100, 109))
    given = federate(central(20, 9), split_iid(20, 2, seed=0), [np.array([8]), np.array([2, 3])])
    np.testing.assert_array_equal(given.test.examples["x"], [108, 102, 103])


def test_a_change_goes_over_all_parts():
    data = federate(central(20, 9), split_iid(20, 2, seed=0))
    changed = data.map(lambda part: part.replace(sizes=part.sizes * 0))
    assert not changed.splits and not changed.train.sizes.any() and changed.info == data.info


@pytest.mark.parametrize(
    "data, options, message",
    [
        (central(), {"shares": (0.5, 0.2, 0.2)}, r"shares=\(0.5, 0.2, 0.2\) of .* sum to 1"),
        (central(), {"shares": (0.0, 0.5, 0.5)}, "leave something for training"),
        (central(), {"shares": (1.5, -0.5, 0.0)}, "must not be negative"),
        (central(), {"names": ["a"]}, "1 names for 2 clients"),
        (central(), {"test_split": [np.arange(2)] * 2}, "numbers has no test part"),
        (central(20, 4), {"shares": (0.8, 0.1, 0.1)}, "set the third to 0"),
        (central(20, 4), {"test_split": [np.arange(2)]}, "test_split has 1 clients and split 2"),
    ],
)
def test_parts_that_do_not_fit_are_refused(data, options, message):
    with pytest.raises(ConfigError, match=message):
        federate(data, split_iid(20, 2, seed=0), **options)
