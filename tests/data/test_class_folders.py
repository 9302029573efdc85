"""Pictures in class folders: the published layout, folders named by their classes, mistakes."""

import pytest

from jaxlab.data.class_folders import read_class_folders, read_class_names


def make(folder, files, labels=None):
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    if labels is not None:
        folder.mkdir(exist_ok=True)
        (folder / "label_cn.txt").write_text(labels, "utf-8")
    return folder


def names_of(folder, found):
    return [path.relative_to(folder).as_posix() for path in found.paths]


def test_the_published_layout_in_the_order_of_torchvision(tmp_path):
    files = ["test/1/b.JPG", "test/1/a.png", "test/0/z/1.jpg", "test/0/y.webp", "train/0/x.jpg"]
    files += ["test/0/notes.txt", "test/0/.hidden.jpg", "test/.cache/x.jpg"]
    found = read_class_folders(make(tmp_path / "d", files, "\ufeff飞机\n汽车 \n\n"))
    assert found.class_names == ("飞机", "汽车")
    assert names_of(tmp_path / "d", found) == [
        *("test/0/y.webp", "test/0/z/1.jpg", "test/1/a.png", "test/1/b.JPG"),
    ]
    assert found.labels.tolist() == [0, 0, 1, 1]


def test_ids_of_three_digits_and_ids_without_padding_mean_the_line(tmp_path):
    labels = "".join(f"类{i}\n" for i in range(12))
    for name, pattern in (("padded", "test/{:03}/a.jpg"), ("plain", "test/{}/a.jpg")):
        files = [pattern.format(i) for i in range(12)]
        found = read_class_folders(make(tmp_path / name, files, labels))
        by_path = dict(zip(names_of(tmp_path / name, found), found.labels.tolist(), strict=True))
        assert by_path == {pattern.format(i): i for i in range(12)}
        assert list(by_path) == sorted(by_path)


def test_a_class_without_a_folder_keeps_the_others_in_place(tmp_path, caplog):
    found = read_class_folders(make(tmp_path / "d", ["test/0/a.jpg", "test/2/a.jpg"], "甲\n乙\n丙"))
    assert found.labels.tolist() == [0, 2] and "1 of 3 classes" in caplog.text


@pytest.mark.parametrize(("inside", "labels"), [("", None), ("test/", "甲\n乙")])
def test_pictures_in_no_class_folder_are_counted(tmp_path, caplog, inside, labels):
    loose = [f"{inside}{i}.jpg" for i in range(4)]
    others = [f"{inside}notes.txt", f"{inside}.hidden.jpg"]
    files = [*loose, *others, f"{inside}0/a.jpg", f"{inside}1/a.jpg"]
    found = read_class_folders(make(tmp_path / "d", files, labels))
    assert len(found.paths) == 2
    (message,) = caplog.messages
    assert message.startswith("4 pictures in ") and "none of its class folders" in message
    assert message.endswith("left out: 0.jpg, 1.jpg, 2.jpg, ...")


def test_folders_named_by_their_classes(tmp_path):
    found = read_class_folders(make(tmp_path / "d", ["猫/1.jpg", "狗/1.jpg", "狗/2.jpg"]))
    assert found.class_names == ("狗", "猫") and found.labels.tolist() == [0, 0, 1]


def test_files_of_one_name_are_one_picture_of_several_classes(tmp_path):
    files = ["test/0/1.jpg", "test/0/2.jpg", "test/1/2.jpg", "test/2/2.jpg", "test/2/3.jpg"]
    folder = make(tmp_path / "voc", files, "甲\n乙\n丙")
    found = read_class_folders(folder, multi_label=True)
    assert names_of(folder, found) == ["test/0/1.jpg", "test/0/2.jpg", "test/2/3.jpg"]
    assert found.labels.tolist() == [[True, False, False], [True] * 3, [False, False, True]]


@pytest.mark.parametrize(
    ("files", "labels", "message"),
    [
        (["test/1/a.jpg", "test/2/a.jpg"], "甲\n乙", r"folders \['2'\] for the 2 names"),
        (["test/a/a.jpg", "test/b/a.jpg"], "甲\n乙\n丙", "2 class folders and label_cn.txt 3"),
        (["test/01/a.jpg", "test/1/a.jpg"], "甲\n乙", "each once"),
        (["test/0/a.txt"], "甲", "no picture in them"),
        (["test/a.jpg"], "甲", "holds no folders"),
        (["test/0/a.jpg"], "\n甲", r"lines \[1\] are blank"),
        (["test/0/a.jpg"], "\n", "it is empty"),
        (["a.jpg"], None, "holds no folders"),
    ],
)
def test_folders_that_do_not_fit_are_refused(tmp_path, files, labels, message):
    with pytest.raises(ValueError, match=message):
        read_class_folders(make(tmp_path / "d", files, labels))


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing is not a folder"):
        read_class_folders(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="one folder a class id"):
        read_class_folders(make(tmp_path / "d", [], "甲"))
    (tmp_path / "gbk.txt").write_bytes("一张照片".encode("gbk"))
    with pytest.raises(ValueError, match="not UTF-8"):
        read_class_names(tmp_path / "gbk.txt")
