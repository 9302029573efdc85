import json

import numpy as np
import pytest
from PIL import Image

from jaxlab.federated.datasets import (
    decode_text,
    load_leaf_celeba,
    load_leaf_femnist,
    load_leaf_numbers,
    load_leaf_reddit,
    load_leaf_sent140,
    load_leaf_shakespeare,
    read_leaf,
)
from jaxlab.federated.strategy import ConfigError


def write(path, users):
    """A LEAF file; `users` is user -> (x, y)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "users": list(users),
        "num_samples": [len(y) for _, y in users.values()],
        "user_data": {name: {"x": x, "y": y} for name, (x, y) in users.items()},
    }
    path.write_text(json.dumps(content), "utf-8")
    return path


def numbers(count, start=0):
    return [[float(start + i), 0.5] for i in range(count)], [i % 3 for i in range(count)]


def test_users_of_all_files_of_a_folder_are_read_in_order(tmp_path):
    write(tmp_path / "b.json", {"u3": numbers(1)})
    write(tmp_path / "a.json", {"u9": numbers(2), "u1": numbers(3)})
    users = read_leaf(tmp_path)
    assert list(users) == ["u9", "u1", "u3"] and len(users["u1"].y) == 3
    assert list(read_leaf(tmp_path / "b.json")) == ["u3"]


def test_clients_are_users_with_shares_of_their_own(tmp_path):
    path = write(tmp_path / "a.json", {"u": numbers(10), "v": numbers(5, 100), "w": numbers(1)})
    data = load_leaf_numbers(path, "mine", min_size=2, shares=(0.6, 0.2, 0.2))
    assert data.names == ("u", "v") and data.info.num_classes == 3 and data.info.name == "mine"
    assert data.train.sizes.tolist() == [6, 3] and data.test.sizes.tolist() == [2, 1]
    assert data.train.examples["x"].dtype == np.float32
    assert data.train.examples["x"][6:, 0].min() >= 100
    x = np.concatenate([part.examples["x"][:, 0] for part in (data.train, data.val, data.test)])
    assert sorted(x.tolist()) == [*range(10), *range(100, 105)]


def test_the_cut_of_the_files_is_kept(tmp_path):
    write(tmp_path / "train" / "a.json", {"u": numbers(4), "v": numbers(2)})
    write(tmp_path / "test" / "a.json", {"v": numbers(1, 50)})
    data = load_leaf_numbers(tmp_path)
    assert data.train.sizes.tolist() == [4, 2] and data.test.sizes.tolist() == [0, 1]
    assert list(data.splits) == ["test"] and data.test.examples["x"].tolist() == [[50, 0.5]]


def test_a_share_of_the_users_is_chosen_by_the_seed(tmp_path):
    path = write(tmp_path / "a.json", {f"u{i}": numbers(1) for i in range(20)})
    chosen = [load_leaf_numbers(path, subsample=0.26, seed=seed).names for seed in (0, 0, 1)]
    assert len(chosen[0]) == 6 and chosen[0] == chosen[1] != chosen[2]
    with pytest.raises(ConfigError, match=r"subsample=0.* must be above 0"):
        load_leaf_numbers(path, subsample=0.0)


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_pixels_of_femnist_are_normalised_whatever_their_range(tmp_path, scale):
    x = np.linspace(0, 1, 2 * 784).reshape(2, 784)
    path = write(tmp_path / "a.json", {"w": ((scale * x).tolist(), [61, 0])})
    data = load_leaf_femnist(path, shares=(1.0, 0.0, 0.0))
    expected = ((x - 0.9637) / 0.1592).reshape(2, 28, 28, 1)
    np.testing.assert_allclose(data.train.examples["x"], expected, rtol=1e-5, atol=1e-5)
    assert data.train.examples["y"].tolist() == [61, 0] and data.info.num_classes == 62


def test_pictures_of_celeba_are_scaled(tmp_path):
    Image.new("RGB", (178, 218), (10, 200, 30)).save(tmp_path / "1.png")
    path = write(tmp_path / "a.json", {"c": (["1.png", "1.png"], [0, 1])})
    data = load_leaf_celeba(path, tmp_path, shares=(1.0, 0.0, 0.0))
    assert data.train.examples["x"].shape == (2, 84, 84, 3)
    assert data.train.examples["x"][1, 40, 40].tolist() == [10, 200, 30]
    other = write(tmp_path / "b.json", {"c": (["2.png"], [0])})
    with pytest.raises(FileNotFoundError, match="no 2.png, which .* names"):
        load_leaf_celeba(other, tmp_path)


def test_windows_of_shakespeare_are_numbers_of_characters(tmp_path):
    texts = ["to be or n", "o be or no", " be or not"]
    path = write(tmp_path / "a.json", {"HAMLET": (texts, ["o", "t", "#"]), "X": (["a"], ["b"])})
    data = load_leaf_shakespeare(path, shares=(1.0, 0.0, 0.0))
    assert data.names == ("HAMLET",)  # X has fewer than 3 windows
    assert [decode_text(row) for row in data.train.examples["x"]] == texts
    assert decode_text(data.train.examples["y"]) == "ot "
    ragged = write(tmp_path / "b.json", {"H": (["ab", "abc", "abc"], list("xyz"))})
    with pytest.raises(ValueError, match=r"user 'H': x has texts of \[2, 3\] characters"):
        load_leaf_shakespeare(ragged)


def test_messages_are_bags_of_words(tmp_path):
    rows = [[1, "", "", "u", "good good day, mate!"], [2, "", "", "u", "bad day"]]
    path = write(tmp_path / "a.json", {"u": (rows, [1, 0])})
    data = load_leaf_sent140(path, ["good", "day", "!"], min_size=1, shares=(1.0, 0.0, 0.0))
    assert data.train.examples["x"].tolist() == [[2, 1, 1], [0, 1, 0]]
    assert data.train.examples["y"].tolist() == [1, 0]
    with pytest.raises(ValueError, match="none of 1 users of .* has min_size=51 .* is 2"):
        load_leaf_sent140(path, ["good"])


def test_the_last_word_of_a_stretch_is_predicted(tmp_path):
    def user(*stretches):
        return [[s.split()[:-1] for s in stretches]], [
            {"target_tokens": [s.split()[1:] for s in stretches], "count_tokens": None}
        ]

    write(tmp_path / "train_a.json", {"u": user("a b a c", "a a b d"), "v": user("a a b b")})
    write(tmp_path / "test_a.json", {"u": user("b a zz a")})
    data = load_leaf_reddit(tmp_path, num_words=3)
    # <UNK>, then a (6 times), b (3 times); c and d occur only as targets.
    assert data.info.num_classes == 3 and data.names == ("u", "v")
    assert data.train.examples["x"].tolist() == [[1, 2, 1], [1, 1, 2], [1, 1, 2]]
    assert data.train.examples["y"].tolist() == [0, 0, 2]
    assert data.test.examples["x"].tolist() == [[2, 1, 0]] and data.test.sizes.tolist() == [1, 0]
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; wanted"):
        load_leaf_reddit(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no train\*.json"):
        load_leaf_reddit(tmp_path / "empty")


def test_everything_that_is_wrong_in_a_file_is_told_at_once(tmp_path):
    content = {
        "users": ["a", "b", "c", "c"],
        "num_samples": [1, 3, 1, 1],
        "user_data": {"b": {"x": [1, 2], "y": [0]}, "c": {"x": [1], "y": [0]}},
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError) as caught:
        read_leaf(path)
    for problem in (
        "'a' has no x and y",
        "'b' has 2 x and 1 y, and num_samples says 3",
        "'c' is listed twice",
    ):
        assert problem in str(caught.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"users": [', "is not JSON.*truncated"),
        ('{"users": []}', r"has \['users'\]; a LEAF file has an object with \['users', 'num_s"),
        ("[1]", "has <class 'list'>; a LEAF file"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_leaf(tmp_path)


def test_missing_files_repeated_users_and_wrong_numbers_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no JSON files; wanted a LEAF file"):
        read_leaf(tmp_path)
    for load in (read_leaf, load_leaf_numbers, load_leaf_reddit):
        with pytest.raises(FileNotFoundError, match="nowhere does not exist; wanted a"):
            load(tmp_path / "nowhere")
    write(tmp_path / "a.json", {"u": numbers(1)})
    write(tmp_path / "b.json", {"u": numbers(1)})
    with pytest.raises(ValueError, match="b.json: user 'u' is in another file"):
        read_leaf(tmp_path)
    cases = {
        r"user 'u': x has rows of \[1, 2\] numbers": ([[1.0], [1.0, 2.0]], [0, 1]),
        r"user 'u': y has \[0.5\]; wanted whole": ([[1.0]], [0.5]),
        "user 'u': y goes from -1 to -1": ([[1.0]], [-1]),
    }
    for number, (message, user) in enumerate(cases.items()):
        with pytest.raises(ValueError, match=message):
            load_leaf_numbers(write(tmp_path / f"case{number}.json", {"u": user}))
    path = write(tmp_path / "case.json", {"u": numbers(1), "v": ([[1.0]], [0])})
    with pytest.raises(ValueError, match=r"have the shapes \[.*\]; wanted one"):
        load_leaf_numbers(path)
    with pytest.raises(ValueError, match="user 'u': x has 2 numbers; wanted 784"):
        load_leaf_femnist(path)
