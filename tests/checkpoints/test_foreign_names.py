"""Name tables: both directions, and every mismatch in one error."""

import numpy as np
import pytest

from jaxlab.checkpoints.foreign.names import (
    CONVOLUTION,
    TRANSPOSE,
    NameMismatchError,
    NameTable,
    Rule,
    flatten,
    split_rows,
    unflatten,
)

QKV = ("query", "key", "value")
TABLE = NameTable(
    (
        Rule("proj", "params/proj"),
        Rule("conv.weight", "params/conv/kernel", CONVOLUTION),
        Rule("blocks.{i}.fc.weight", "params/layer_{i}/fc/kernel", TRANSPOSE),
        Rule(
            "blocks.{i}.in_proj",
            tuple(f"params/layer_{{i}}/{n}/kernel" for n in QKV),
            split_rows(3, TRANSPOSE),
        ),
        Rule("blocks.{i}.{end:a|b}.stat", "stats/layer_{i}/{end:a|b}"),
        Rule(
            ("old.{i}.q", "old.{i}.k", "old.{i}.v"),
            tuple(f"params/layer_{{i}}/{n}/kernel" for n in QKV),
            TRANSPOSE,
            load_only=True,
        ),
    ),
    ignored=(r"pooler\..*", r".*\.count"),
    prefixes=("module.",),
)
RNG = np.random.default_rng(0)
FOREIGN = {
    "proj": RNG.standard_normal((2, 3)),
    "conv.weight": RNG.standard_normal((5, 3, 2, 4)),
    "blocks.0.fc.weight": RNG.standard_normal((4, 2)),
    "blocks.10.fc.weight": RNG.standard_normal((4, 2)),
    "blocks.0.in_proj": RNG.standard_normal((6, 2)),
    "blocks.0.a.stat": RNG.standard_normal(2),
    "blocks.0.b.stat": RNG.standard_normal(2),
}
EXPECTED = {
    "params/layer_0/query/kernel": (2, 2),
    "params/layer_0/key/kernel": (2, 2),
    "params/layer_0/value/kernel": (2, 2),
    "params/layer_0/fc/kernel": (2, 4),
    "params/layer_10/fc/kernel": (2, 4),
    "params/conv/kernel": (2, 4, 3, 5),
    "params/proj": (2, 3),
    "stats/layer_0/a": (2,),
    "stats/layer_0/b": (2,),
}


def test_load_gives_the_expected_paths_in_order():
    extra = {"module.pooler.weight": np.ones(1), "bn.count": np.ones(())}
    ours = TABLE.load({f"module.{n}": a for n, a in FOREIGN.items()} | extra, EXPECTED)
    assert list(ours) == list(EXPECTED)
    assert {path: a.shape for path, a in ours.items()} == EXPECTED
    np.testing.assert_array_equal(
        ours["params/layer_10/fc/kernel"][1, 3], FOREIGN["blocks.10.fc.weight"][3, 1]
    )
    np.testing.assert_array_equal(
        ours["params/conv/kernel"][1, 3, 2, 4], FOREIGN["conv.weight"][4, 2, 1, 3]
    )
    np.testing.assert_array_equal(
        ours["params/layer_0/key/kernel"], FOREIGN["blocks.0.in_proj"][2:4].T
    )
    np.testing.assert_array_equal(ours["stats/layer_0/b"], FOREIGN["blocks.0.b.stat"])


def test_load_copies_nothing():
    ours = TABLE.load(FOREIGN, EXPECTED)
    assert all(any(np.shares_memory(a, f) for f in FOREIGN.values()) for a in ours.values())


def test_save_is_the_inverse_of_load():
    saved = TABLE.save(TABLE.load(FOREIGN, EXPECTED))
    assert saved.keys() == FOREIGN.keys()
    for name, array in FOREIGN.items():
        np.testing.assert_array_equal(saved[name], array, strict=True)


def test_other_spelling_is_read_and_never_written():
    thirds = np.split(FOREIGN["blocks.0.in_proj"], 3)
    other = {n: a for n, a in FOREIGN.items() if n != "blocks.0.in_proj"}
    other |= dict(zip(("old.0.q", "old.0.k", "old.0.v"), thirds, strict=True))
    saved = TABLE.save(TABLE.load(other, EXPECTED))
    np.testing.assert_array_equal(saved["blocks.0.in_proj"], FOREIGN["blocks.0.in_proj"])
    assert not any(name.startswith("old") for name in saved)


def test_foreign_shapes_need_no_arrays():
    assert TABLE.foreign_shapes(EXPECTED) == {n: a.shape for n, a in FOREIGN.items()}


def test_all_mismatches_come_in_one_error():
    broken = FOREIGN | {
        "proj": np.ones((3, 2)),
        "blocks.0.fc.weight": np.ones((2, 4)),
        "blocks.1.fc.weight": np.ones((4, 2)),
        "mystery": np.ones(1),
        "old.2.q": np.ones((2, 2)),
    }
    del broken["conv.weight"], broken["blocks.0.in_proj"], broken["blocks.0.b.stat"]
    with pytest.raises(NameMismatchError) as error:
        TABLE.load(broken, EXPECTED)
    problems, text = error.value.problems, str(error.value)
    assert sorted(problems.missing) == ["blocks.0.b.stat", "blocks.0.in_proj", "conv.weight"]
    assert sorted(problems.unexpected) == ["blocks.1.fc.weight", "mystery", "old.2.q"]
    assert problems.misshaped == {
        "proj": ((3, 2), (2, 3)),
        "blocks.0.fc.weight": ((2, 4), (4, 2)),
    }
    for name in [*problems.missing, *problems.unexpected, *problems.misshaped]:
        assert name in text
    assert "proj: got (3, 2), want (2, 3)" in text and "3 missing" in text


def test_incomplete_groups_name_what_is_lacking():
    other = {n: a for n, a in FOREIGN.items() if n != "blocks.0.in_proj"}
    with pytest.raises(NameMismatchError) as error:
        TABLE.load(other | {"old.0.k": np.ones((2, 2))}, EXPECTED)
    assert error.value.problems.missing == ["old.0.q", "old.0.v"]
    ours = TABLE.load(FOREIGN, EXPECTED)
    del ours["params/layer_0/key/kernel"]
    with pytest.raises(NameMismatchError, match="params/layer_0/key/kernel"):
        TABLE.save(ours | {})
    with pytest.raises(NameMismatchError, match="1 unexpected:\n    params/other"):
        TABLE.save({"params/other": np.ones(1)})


@pytest.mark.parametrize("extra", ["module.proj", "old.0.q old.0.k old.0.v"])
def test_a_tensor_given_under_two_names_is_refused(extra):
    twice = FOREIGN | {name: np.ones((2, 2)) for name in extra.split()}
    with pytest.raises(NameMismatchError, match="given twice") as error:
        TABLE.load(twice, EXPECTED)
    assert error.value.problems.clashing == extra.split()


def test_a_path_without_a_rule_is_reported():
    with pytest.raises(NameMismatchError, match=r"params/new \(no rule gives it\)"):
        TABLE.load(FOREIGN, EXPECTED | {"params/new": (1,)})


def test_flatten_and_unflatten_are_inverse():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert flatten(tree) == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert unflatten(flatten(tree)) == tree
