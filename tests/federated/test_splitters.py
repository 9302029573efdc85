from pathlib import Path

import numpy as np
import pytest

from jaxlab.federated.splitters import (
    split_by_dirichlet,
    split_by_key,
    split_by_quantity,
    split_by_shards,
    split_iid,
    split_like,
)
from jaxlab.federated.strategy import ConfigError

GOLDEN = Path(__file__).parents[1] / "golden" / "federated_splits.npz"
LABELS = np.random.default_rng(0).integers(7, size=500)
SPLITS = {
    "iid": lambda clients, seed: split_iid(500, clients, seed=seed),
    "dirichlet": lambda clients, seed: split_by_dirichlet(LABELS, clients, 0.5, seed=seed),
    "shards": lambda clients, seed: split_by_shards(LABELS, clients, seed=seed),
    "quantity": lambda clients, seed: split_by_quantity(500, clients, 0.3, seed=seed),
    "like": lambda clients, seed: split_like(
        LABELS, LABELS, split_iid(500, clients, seed=seed), seed=seed
    ),
}


@pytest.fixture(name="golden", scope="module")
def golden_fixture():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", SPLITS)
def test_every_example_goes_to_one_client_and_the_seed_decides_to_which(name):
    split = SPLITS[name](12, 3)
    assert len(split) == 12 and min(map(len, split)) >= 1
    np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.arange(500))
    again, other = SPLITS[name](12, 3), SPLITS[name](12, 4)
    assert all(np.array_equal(a, b) for a, b in zip(split, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(split, other, strict=True))
    rng = np.random.RandomState(0)
    assert sum(map(len, SPLITS[name](5, rng))) == 500


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_dirichlet_splits_are_those_of_the_original(golden, seed):
    num_clients, alpha = golden[f"{seed}_settings"]
    rng, labels = np.random.RandomState(seed), golden[f"{seed}_labels"]
    train = split_by_dirichlet(labels, int(num_clients), float(alpha), seed=rng)
    test = split_like(golden[f"{seed}_other_labels"], labels, train, seed=rng)
    for name, split in (("train", train), ("test", test)):
        np.testing.assert_array_equal([len(part) for part in split], golden[f"{seed}_{name}_sizes"])
        np.testing.assert_array_equal(np.concatenate(split), golden[f"{seed}_{name}_indices"])


def test_shares_of_a_class_follow_dirichlet():
    # Var of a share under Dirichlet(alpha 1_N): (N - 1) / (N^2 (N alpha + 1)).
    alpha, clients, labels = 0.5, 5, np.repeat(np.arange(400), 200)
    split = split_by_dirichlet(labels, clients, alpha, seed=0)
    shares = np.stack([np.bincount(labels[part], minlength=400) for part in split]) / 200
    expected = (clients - 1) / (clients**2 * (clients * alpha + 1))
    # 2000 shares: the relative error of the variance is about sqrt(2 / 2000) = 3 %, of heavy tails
    # somewhat more.
    np.testing.assert_allclose(shares.var(), expected, rtol=0.12)


def test_a_split_that_is_too_skewed_is_given_up():
    with pytest.raises(ConfigError, match="after 1000 draws with alpha=0.01 .* raise alpha"):
        split_by_dirichlet(np.zeros(40, int), 20, 0.01, seed=0)
    split = split_by_dirichlet(np.zeros(40, int), 20, 0.01, seed=0, min_size=0)
    assert sum(map(len, split)) == 40 and min(map(len, split)) == 0


def test_iid_parts_differ_by_one_at_most():
    assert [len(part) for part in split_iid(11, 4, seed=0)] == [3, 3, 3, 2]


def test_two_shards_of_sorted_labels_are_few_classes():
    labels = np.repeat(np.arange(10), 60)
    split = split_by_shards(labels, 30, seed=1)
    assert {len(part) for part in split} == {20}
    assert max(len(np.unique(labels[part])) for part in split) == 2


def test_quantity_skew_leaves_everyone_the_least_size():
    sizes = np.array([len(part) for part in split_by_quantity(1000, 20, 0.1, seed=0, min_size=7)])
    assert sizes.min() >= 7 and sizes.max() > 200


def test_clients_are_the_values_of_a_key():
    split, names = split_by_key(np.array(["b", "a", "b", "c", "a", "b"]), min_size=2)
    assert names.tolist() == ["a", "b"]
    assert [part.tolist() for part in split] == [[1, 4], [0, 2, 5]]


def test_test_examples_follow_the_classes_that_a_client_trains_on():
    labels = np.repeat(np.arange(4), 100)
    train = [np.arange(0, 200), np.arange(200, 400), np.zeros(0, int)]  # classes 0, 1 and 2, 3
    split = split_like(np.tile(np.arange(4), 10), labels, train, seed=0)
    assert [sorted({int(i) % 4 for i in part}) for part in split] == [[0, 1], [2, 3], []]
    assert [len(part) for part in split] == [20, 20, 0]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: split_iid(3, 4, seed=0), "3 examples are too few for 4 clients of at least 1"),
        (lambda: split_iid(3, 0, seed=0), "0 clients; at least one"),
        (lambda: split_by_dirichlet(LABELS, 3, 0.0, seed=0), "alpha=0.0 must be a positive"),
        (
            lambda: split_by_dirichlet(LABELS, 101, 1.0, seed=0, min_size=5),
            "500 examples are too few for 101 clients of at least 5; at most 100 fit",
        ),
        (lambda: split_by_dirichlet(LABELS[:, None], 3, 1.0, seed=0), r"shape \(500, 1\)"),
        (
            lambda: split_by_shards(LABELS, 5, seed=0, shards_per_client=101),
            "500 examples are too few for 505 shards",
        ),
        (
            lambda: split_by_key(np.array(["a", "b"]), min_size=2),
            "none of 2 keys has min_size=2 examples; the most is 1 of 2",
        ),
        (lambda: split_by_quantity(9, 3, 1.0, seed=0, min_size=-1), "min_size=-1 must not"),
        (
            lambda: split_like(np.array([0, 9]), LABELS, split_iid(500, 3, seed=0), seed=0),
            r"nobody holds an example of the classes \[9\]",
        ),
    ],
)
def test_impossible_splits_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
