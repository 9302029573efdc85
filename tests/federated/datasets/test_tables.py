import io
import tarfile
from importlib import metadata

import numpy as np
import pytest

from jaxlab.federated.datasets import federate, load_csv, load_npz, load_table, read_npz, tables
from jaxlab.federated.splitters import split_by_key

TABLE = """age,job,city,paid
30,cook,A,yes
41.5,smith,B,no
22,cook,A,no
"""


def has_package():
    try:
        return bool(metadata.distribution("pydataset"))
    except metadata.PackageNotFoundError:
        return False


def write(folder, text=TABLE):
    (folder / "people.csv").write_text(text, "utf-8")
    return folder / "people.csv"


def test_columns_become_numbers_and_one_column_a_value(tmp_path):
    data = load_csv(write(tmp_path), "paid", client="city")
    np.testing.assert_array_equal(data.train["x"], [[30, 1, 0], [41.5, 0, 1], [22, 1, 0]])
    assert data.train["y"].tolist() == [1, 0, 0] and data.info.num_classes == 2
    assert data.keys.tolist() == ["A", "B", "A"] and data.info.name == "people"
    split, names = split_by_key(data.keys)
    federated = federate(data, split, names=names.tolist(), shares=(1.0, 0.0, 0.0))
    assert federated.names == ("A", "B") and federated.train.sizes.tolist() == [2, 1]


def test_numbers_are_targets_or_classes(tmp_path):
    path = write(tmp_path)
    data = load_csv(path, "age", columns=["job"])
    assert data.train["y"].tolist() == [30, 41.5, 22] and data.info.num_classes is None
    assert data.train["x"].shape == (3, 2) and data.keys is None
    data = load_csv(path, "age", columns=["job"], classes=True)
    assert data.train["y"].tolist() == [1, 2, 0] and data.info.num_classes == 3
    with pytest.raises(ValueError, match="'job' has .* classes=False wants numbers"):
        load_csv(path, "job", columns=["age"], classes=False)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", r"no columns \['paid'\]; it has \[\]"),
        ("age,job\n1,a\n", r"no columns \['paid'\]; it has \['age', 'job'\]"),
        ("age,paid\n", "has 0 rows and inputs"),
        ("paid\nyes\n", r"has 1 rows and inputs \[\]"),
        ("age,paid\n1,yes\n2\n", "1 lines, the first is 3, have not the 2 fields"),
        ("age,paid\n1,yes\nNA,no\n", "'age' has no value in 1 rows, the first is row 2"),
        ("age,paid\n1,yes\ninf,no\n", "'age' has 'inf' in row 2"),
        (
            "id,paid\n" + "".join(f"u{i},yes\n" for i in range(1001)),
            "'id' has 1001 different texts; wanted numbers, or at most 1000",
        ),
    ],
)
def test_tables_that_cannot_be_learned_from_are_told(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_csv(write(tmp_path, text), "paid")


def test_files_that_are_no_tables_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="wanted a CSV file with a head line"):
        load_csv(tmp_path / "a.csv", "y")
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00y")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        load_csv(tmp_path / "a.csv", "y")


def test_arrays_with_test_behind_their_name_are_the_test_part(tmp_path):
    path = tmp_path / "mine.npz"
    x, y = np.zeros((4, 3), np.float32), np.array([0, 2, 1, 1])
    np.savez(path, x=x, y=y, client=np.array([5, 5, 6, 6]), x_test=x[:1], y_test=y[:1])
    data = load_npz(path)
    assert data.train.keys() == data.test.keys() == {"x", "y"}
    assert data.keys.tolist() == [5, 5, 6, 6] and data.info.num_classes == 3
    np.savez(path, x=x, y=x)
    data = load_npz(path)
    assert data.test is None and data.keys is None and data.info.num_classes is None


def test_either_order_of_a_name_is_the_same_part(tmp_path):
    path = tmp_path / "mine.npz"
    x = np.arange(6.0).reshape(3, 2)
    np.savez(path, x=x, x_test=x[:1], test_y=np.ones(1), y=np.zeros(3), val_x=x[:2], y_val=x[:2, 0])
    train, parts = read_npz(path)
    assert train.keys() == {"x", "y"} and parts.keys() == {"test", "val"}
    assert all(part.keys() == {"x", "y"} for part in parts.values())
    np.testing.assert_array_equal(parts["val"]["x"], x[:2])
    with pytest.raises(ValueError, match="has examples for val, which are cut from those"):
        load_npz(path)
    np.savez(path, x=x, y=np.zeros(3), test_x=x[:1], test_y=np.ones(1))
    assert load_npz(path).test.keys() == {"x", "y"}


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"x_test": np.zeros(3)}, r"holds \['x_test'\]; wanted x and y to train on"),
        (
            {"x": np.zeros(3), "x_test": np.zeros(3), "test_x": np.zeros(3)},
            "has both test_x and x_test; wanted one",
        ),
        (
            {"x": np.zeros(3), "tst_x": np.zeros(2)},
            "those to test or validate on are called x_test or te",
        ),
        ({"x": np.zeros(3), "y": np.zeros(2)}, r"lengths \{'x': 3, 'y': 2\}"),
        ({"x": np.zeros(3), "client": np.zeros(2)}, r"lengths \{'x': 3, 'client': 2\}"),
        ({"x": np.zeros(())}, r"lengths \{'x': 'no axis'\}"),
        ({"x": np.zeros(3), "z_test": np.zeros(3)}, r"\['x'\] to train and \['z'\] to test"),
        ({"x": np.array([{}])}, "'x' holds Python objects; wanted an NPZ file of plain arrays"),
    ],
)
def test_arrays_that_do_not_fit_are_told(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_npz(tmp_path / "a.npz")


def test_files_that_are_no_archives_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="make it with numpy.savez"):
        load_npz(tmp_path / "a.npz")
    np.save(tmp_path / "array.npy", np.zeros(3))
    files = {
        "a.npz": (b"hello", "is a text file; load_csv reads CSV"),
        "b.npz": (b"", "is empty"),
        "c.npz": (b"\x93\xff\x00" * 99, "is a file of another form"),
        "d.csv": (TABLE.encode(), "is a CSV file, which load_csv reads"),
        "e.npy": ((tmp_path / "array.npy").read_bytes(), "is an NPY file, one array without"),
    }
    for name, (content, message) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} {message}.*; wanted an NPZ file") as caught:
            load_npz(tmp_path / name)
        assert "pickle" not in str(caught.value)


def test_an_archive_that_is_cut_off_is_told(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(1000))
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content[:200] + b"\0" * 100 + content[300:])
    with pytest.raises(ValueError, match="it is broken .*; wanted an NPZ file"):
        load_npz(tmp_path / "a.npz")


def test_tables_of_the_package_are_read_inside_its_archive(monkeypatch, tmp_path):
    path = tmp_path / "resources.tar.gz"
    with tarfile.open(path, "w:gz") as packed:
        member = tarfile.TarInfo("resources/rdata/csv/Ecdat/HI.csv")
        member.size = len(TABLE.encode())
        packed.addfile(member, io.BytesIO(TABLE.encode()))
    monkeypatch.setattr(tables, "installed_file", lambda *args: (path, "0.2.0"))
    data = load_table("HI", "paid")
    assert data.train["x"].shape == (3, 5) and data.info.source == "pydataset 0.2.0"
    with pytest.raises(FileNotFoundError, match="no table 'diamonds'; wanted one of"):
        load_table("diamonds", "price")


@pytest.mark.skipif(not has_package(), reason="needs the package pydataset")
def test_the_package_has_the_lectures_that_2972_students_rated():
    data = load_table("InstEval", "y", client="s", columns=["d"])
    sizes = [len(part) for part in split_by_key(data.keys)[0]]
    assert (len(data.keys), len(sizes), min(sizes), max(sizes)) == (73_421, 2_972, 1, 92)
    assert np.median(sizes) == 22
