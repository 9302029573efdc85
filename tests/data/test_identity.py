import pytest

from jaxlab.data.identity import check_identity, read_json, write_json


def test_every_difference_is_named(tmp_path):
    check_identity({"a": 1, "b": [2]}, {"a": 1, "b": [2]}, tmp_path, "features")
    with pytest.raises(ValueError, match="holds outputs of .*: a: 1 there, 2 here; c: absent th"):
        check_identity({"a": 1, "b": 0}, {"a": 2, "b": 0, "c": 3}, tmp_path, "outputs")


def test_json_files_come_back_or_have_a_default(tmp_path):
    path = tmp_path / "identity.json"
    assert read_json(path, {}) == {}
    write_json(path, {"text": "é", "list": [1, 2.5]})
    assert read_json(path, {}) == {"text": "é", "list": [1, 2.5]}
    assert [found.name for found in tmp_path.iterdir()] == ["identity.json"]
