"""Variants of texts: TinyBERT's algorithm, its candidates, labels, seeds."""

import numpy as np
import pytest

from jaxlab.data.texts import TextExample
from jaxlab.distillation.augment import (
    NUM_COPIES,
    STOP_WORDS,
    AugmentConfig,
    ModelCandidates,
    NearestWords,
    augment,
    augment_tinybert,
    delete_words,
    embedding_neighbours,
    read_glove,
    scores_from_rows,
    swap_words,
    vary_text,
)
from tests.distillation import tiny_texts

ENTRIES = tiny_texts.ENTRIES


def rng(seed=0):
    return np.random.default_rng(seed)


class Listed:
    """Two candidates of every word, none of `mat`; remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, words, place):
        self.asked.append(words[place])
        return () if words[place] == "mat" else [f"{words[place]}{i}" for i in range(2)]


def test_only_words_of_letters_that_are_no_stop_words_are_replaced():
    listed = Listed()
    config = AugmentConfig(num_copies=300, probability=0.4)
    variants = vary_text("The red cat, 9 mats and 1st mat!", listed, config, rng())
    assert listed.asked == ["red", "cat", "mats", "mat"]
    assert "the" in STOP_WORDS
    # 3 words of 3 forms each; the mat stays; the text itself is left out; 300 tries find all.
    assert len(variants) == len(set(variants)) == 3**3 - 1
    for variant in variants:
        words = variant.split()
        assert [words[i] for i in (0, 3, 4, 6, 7, 8, 9)] == [
            "The", ",", "9", "and", "1st", "mat", "!"
        ]  # fmt: skip


def test_words_are_replaced_with_the_probability():
    config = AugmentConfig(num_copies=1, probability=0.4)
    words = "red " * 2000
    (variant,) = vary_text(words, Listed(), config, rng())
    replaced = [word for word in variant.split() if word != "red"]
    # Six deviations of a binomial.
    assert abs(len(replaced) / 2000 - 0.4) < 6 * np.sqrt(0.4 * 0.6 / 2000)
    share = replaced.count("red0") / len(replaced)
    assert abs(share - 0.5) < 6 * np.sqrt(0.25 / len(replaced))
    assert vary_text("red", Listed(), AugmentConfig(probability=0.0), rng()) == []


def test_the_model_reads_the_masked_and_the_whole_sentence():
    tokenizer, seen = tiny_texts.bert(), []

    def score(ids, place):
        seen.append((ids.tolist(), place))
        scores = np.zeros(tokenizer.vocab_size)
        for rank, entry in enumerate(("##s", "dog", "[UNK]", "mat", "ran")):
            scores[ENTRIES.index(entry)] = 10 - rank
        return scores

    neighbours = Listed()
    candidates = ModelCandidates(tokenizer, score, num_candidates=4, neighbours=neighbours)
    # The four best are taken before those that begin no word are left out.
    assert candidates(["red", "cat"], 1) == ["dog", "mat"]
    red, cat = ENTRIES.index("red"), ENTRIES.index("cat")
    assert seen == [([2, red, tokenizer.mask_id, 3, red, cat, 3], 2)]
    assert candidates(["red", "cats"], 1) == ["cats0", "cats1"] and neighbours.asked == ["cats"]
    assert len(seen) == 1
    assert ModelCandidates(tokenizer, score)(["cats"], 0) == ()
    assert ModelCandidates(tokenizer, score, max_length=6)(["red", "cat"], 1) == ()


def test_scores_come_from_rows_of_few_lengths():
    tokenizer, batches = tiny_texts.bert(), []

    def predict(batch):
        batches.append(batch)
        return np.cumsum(np.ones((1, 8, 18)), axis=1)

    score = scores_from_rows(predict, tokenizer, buckets=(8,))
    assert (score(np.array([2, 5, 3, 6, 3], np.int32), 3) == 4).all()
    assert batches[0]["types"].tolist() == [[0, 0, 0, 1, 1, 0, 0, 0]]
    assert batches[0]["mask"].sum() == 5 and batches[0]["ids"].shape == (1, 8)


def test_nearest_words_are_those_of_the_slow_form():
    words = [f"w{chr(97 + i)}" for i in range(20)]
    vectors = rng().normal(size=(20, 5))
    nearest = NearestWords(words, vectors, num_candidates=4)
    cosines = [
        -vectors[3] @ v / np.linalg.norm(v) if i != 3 else np.inf for i, v in enumerate(vectors)
    ]
    expected = [words[i] for i in np.argsort(cosines)[:4]]
    assert nearest([words[3]], 0) == expected
    assert nearest(["x", words[3].title()], 1) == [word.title() for word in expected]
    assert nearest(["unknown"], 0) == ()
    few = NearestWords(words, vectors, max_words=3)
    assert len(few([words[0]], 0)) == 2 and few([words[5]], 0) == ()
    with pytest.raises(ValueError, match="20 words and 19 vectors"):
        NearestWords(words, vectors[1:])


def test_a_models_own_embeddings_give_words_without_continuations():
    vectors = rng().normal(size=(len(ENTRIES), 4))
    found = embedding_neighbours(tiny_texts.bert(), vectors)(["cat"], 0)
    assert set(found) == set(tiny_texts.WORDS) - {"cat"}


def test_glove_files(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("the 1 2\ncat 0.5 -1\ndog 1 1\n")
    words, vectors = read_glove(path, max_words=2)
    assert words == ["the", "cat"] and vectors.tolist() == [[1, 2], [0.5, -1]]
    path.write_text("the 1 2\ncat 0.5\n")
    with pytest.raises(ValueError, match="glove.txt:2: 1 numbers"):
        read_glove(path)
    path.write_text("the 1 x\n")
    with pytest.raises(ValueError, match="glove.txt:1"):
        read_glove(path)
    with pytest.raises(FileNotFoundError, match="GloVe"):
        read_glove(tmp_path / "none")


def test_variants_have_no_label_unless_asked_and_pairs_vary_one_side_at_a_time():
    examples = [TextExample(5, "red cat", "red mat", 1), TextExample(3, "dog", None, 0)]
    config = AugmentConfig(num_copies=20)
    made = augment_tinybert(examples, Listed(), config, seed=0)
    assert [e for e in made if e.id in (3, 5)] == examples and made[0] == examples[0]
    variants = [e for e in made if e.id not in (3, 5)]
    assert [e.id for e in variants] == list(range(6, 6 + len(variants)))
    assert all(e.label is None for e in variants)
    for e in variants:
        if e.pair is not None:
            assert (e.text == "red cat") != (e.pair == "red mat")
    assert {e.text == "red cat" for e in variants if e.pair is not None} == {True, False}
    high = augment(examples, lambda text, draws: [f"a {text}"], seed=0, first_id=50)
    assert [e.id for e in high] == [5, 50, 51, 3, 52]
    labelled = augment_tinybert(examples, Listed(), AugmentConfig(keep_labels=True), seed=0)
    assert all(e.label == (1 if e.pair else 0) for e in labelled)


def test_variants_depend_on_the_seed_and_the_example_alone():
    examples = [TextExample(i, "red cat sat far away") for i in range(6)]
    config = AugmentConfig(num_copies=2)

    def texts(which, seed):
        made = augment_tinybert(which, Listed(), config, seed=seed)
        return [e.text for e in made if e not in which]

    whole = texts(examples, 1)
    assert whole == texts(examples, 1) != texts(examples, 2)
    assert [text for e in examples for text in texts([e], 1)] == whole


def test_other_ways_to_vary():
    text = " ".join(map(str, range(200)))
    shorter = delete_words(text, 0.1, rng()).split()
    assert 160 < len(shorter) < 196 and shorter == sorted(shorter, key=int)
    assert (
        len(delete_words("a b c", 1.0, rng()).split()) == 1 and delete_words("", 0.5, rng()) == ""
    )
    swapped = swap_words(text, 5, rng()).split()
    moved = sum(a != b for a, b in zip(swapped, text.split(), strict=True))
    assert sorted(swapped) == sorted(text.split()) and 2 <= moved <= 10
    assert swap_words("one", 3, rng()) == "one"
    made = augment([TextExample(0, text)], lambda t, draws: [delete_words(t, 0.1, draws)], seed=0)
    assert len(made) == 2 and len(made[1].text) < len(text)


def test_settings():
    assert NUM_COPIES["cola"] == 30 and NUM_COPIES["mnli"] == 10 and len(NUM_COPIES) == 8
    with pytest.raises(ValueError, match="probability=1.5"):
        AugmentConfig(probability=1.5)
