import pytest

from jaxlab.distillation.matching import match_layers


@pytest.mark.parametrize(
    ("sizes", "strategy", "teachers"),
    [
        ((12, 6), "first", (0, 1, 2, 3, 4, 5)),
        ((12, 6), "last", (6, 7, 8, 9, 10, 11)),
        ((12, 6), "gap", (1, 3, 5, 7, 9, 11)),
        ((12, 4), "first", (0, 1, 2, 3)),
        ((12, 4), "last", (8, 9, 10, 11)),
        ((12, 4), "gap", (2, 5, 8, 11)),
        ((12, 3), "gap", (3, 7, 11)),
        ((12, 3), "last", (9, 10, 11)),
        ((24, 6), "last", (18, 19, 20, 21, 22, 23)),
        ((24, 6), "gap", (3, 7, 11, 15, 19, 23)),
        ((12, 5), "last", (7, 8, 9, 10, 11)),
        ((12, 5), "gap", (1, 3, 5, 7, 9)),
        ((12, 5), "uniform_top", (1, 4, 6, 9, 11)),
        ((6, 3), "last", (3, 4, 5)),
        ((6, 3), "gap", (1, 3, 5)),
        ((6, 3), "uniform_top", (1, 3, 5)),
        ((12, 6), "pkd_skip", (1, 3, 5, 7, 9)),
        ((12, 6), "pkd_last", (6, 7, 8, 9, 10)),
        ((12, 6), "reverse", (11, 9, 7, 5, 3, 1)),
    ],
)
def test_strategies_give_the_published_pairs(sizes, strategy, teachers):
    assert match_layers(strategy, *sizes) == tuple((t, i) for i, t in enumerate(teachers))


def test_some_layers_from_either_end():
    assert match_layers("first2", 12, 4) == ((0, 0), (1, 1))
    assert match_layers("last2", 12, 4) == ((10, 2), (11, 3))
    assert match_layers("last1", 12, 4) == match_layers("last1_reversed", 12, 4) == ((11, 3),)
    assert match_layers("last2_reversed", 12, 4) == ((10, 3), (11, 2))
    assert match_layers("last3", 4, 6) == ((1, 3), (2, 4), (3, 5))


@pytest.mark.parametrize("student", range(1, 25))
def test_evenly_spread_pairs_rise_and_end_at_the_top(student):
    pairs = match_layers("uniform_top", 24, student)
    layers = [teacher for teacher, _ in pairs]
    assert layers == sorted(set(layers))
    assert pairs[-1] == (23, student - 1)


@pytest.mark.parametrize(
    ("strategy", "sizes", "message"),
    [
        ("middle", (12, 4), "'middle' is no strategy.*first, last, gap"),
        ("Gab", (12, 4), "the nearest is 'gap', of first, last"),
        ("last5", (12, 4), "'last5' matches 5 layers.*use 1 to 4"),
        ("first0", (12, 4), "use 1 to 4"),
        ("first2_reversed", (12, 4), "lastK_reversed is one"),
        ("gap", (4, 6), "'gap' gives every layer.*which has 4 for 6"),
        ("gap", (4, 0), "give 1 or more"),
    ],
)
def test_what_cannot_be_matched_is_told(strategy, sizes, message):
    with pytest.raises(ValueError, match=message):
        match_layers(strategy, *sizes)
