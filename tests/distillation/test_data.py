"""Batches: every row once, the same for any number of processes, padding, labels, masking."""

import logging

import numpy as np
import pytest

from jaxlab.data.texts import TaggedExample, TextExample
from jaxlab.distillation.data import (
    BatchConfig,
    make_eval_batches,
    make_train_batches,
    steps_per_epoch,
)
from jaxlab.distillation.masking import MaskingConfig, MaskTable, mask_rows, mask_tokens
from jaxlab.distillation.rows import (
    IGNORED,
    map_rows,
    tokenize_tagged,
    tokenize_texts,
    without_labels,
)
from jaxlab.distillation.vocabularies import map_labels, map_vocabulary
from jaxlab.text import BertTokenizer
from tests.distillation import tiny_texts

CONFIG = BatchConfig(max_length=32, global_batch_size=8, eval_batch_size=8)


@pytest.fixture(scope="module")
def rows():
    return tokenize_texts(tiny_texts.examples(61), tiny_texts.bert(), 32)


def take(batches, count):
    return [next(batches) for _ in range(count)]


def test_an_epoch_has_every_row_once_in_its_bucket(rows):
    batches = make_train_batches(rows, CONFIG, seed=3)
    epoch = take(batches, batches.steps_per_epoch)
    assert batches.steps_per_epoch == steps_per_epoch(rows, CONFIG) == batches.step
    ids = np.concatenate([batch["example_id"] for batch in epoch])
    assert sorted(ids[ids >= 0]) == sorted(rows.example_id)
    assert {batch["ids"].shape for batch in epoch} == {(8, 16), (8, 32)}
    for batch in epoch:
        real = batch["mask"].sum(1)
        assert real.max() <= batch["ids"].shape[1]
        assert batch["ids"].shape[1] == 16 or real[real > 0].min() > 16
        filled = batch["example_id"] < 0
        assert not batch["mask"][filled].any() and not batch["has_label"][filled].any()
        assert (batch["ids"][~batch["mask"]] == rows.tokenizer.pad_id).all()


def test_rows_of_batches_are_those_of_the_tokenizer(rows):
    texts = {e.id: e for e in tiny_texts.examples(61)}
    for batch in take(make_train_batches(rows, CONFIG, seed=0), 5):
        for i in np.flatnonzero(batch["example_id"] >= 0):
            example = texts[int(batch["example_id"][i])]
            expected = rows.tokenizer.encode(example.text, max_length=32).ids
            np.testing.assert_array_equal(batch["ids"][i][batch["mask"][i]], expected)
            assert batch["has_label"][i] == (example.label is not None)
            assert batch["label"][i] == (example.label or 0)
    kinds = {name: values.dtype.name for name, values in batch.items()}
    assert kinds == {
        "ids": "int32", "mask": "bool", "types": "int32", "label": "int32", "has_label": "bool",
        "example_id": "int64",
    }  # fmt: skip


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


@pytest.mark.parametrize("masking", [None, MaskingConfig()])
def test_a_step_names_its_batch(rows, masking):
    whole = take(make_train_batches(rows, CONFIG, seed=1, masking=masking), 30)
    resumed = make_train_batches(rows, CONFIG, seed=1, start_step=17, masking=masking)
    for expected, batch in zip(whole[17:], resumed, strict=False):
        assert_same(expected, batch)
    resumed.seek(4)
    assert_same(whole[4], next(resumed))
    other = take(make_train_batches(rows, CONFIG, seed=2, masking=masking), 1)[0]
    assert not np.array_equal(other["example_id"], whole[0]["example_id"])
    first, second = (
        [b["example_id"].tolist() for b in whole[i : i + resumed.steps_per_epoch]]
        for i in (0, resumed.steps_per_epoch)
    )
    assert first != second


@pytest.mark.parametrize("processes", [2, 4])
def test_the_global_batch_is_the_same_for_any_number_of_processes(rows, processes):
    options = {"seed": 1, "masking": MaskingConfig()}
    alone = take(make_train_batches(rows, CONFIG, **options), 12)
    parts = [
        take(
            make_train_batches(rows, CONFIG, process_index=i, process_count=processes, **options),
            12,
        )
        for i in range(processes)
    ]
    for step, expected in enumerate(alone):
        joined = {k: np.concatenate([part[step][k] for part in parts]) for k in expected}
        assert_same(expected, joined)


def test_evaluation_sees_every_row_once_and_outputs_come_back_in_order(rows):
    batches = make_eval_batches(rows, CONFIG)
    assert len(batches) == len(list(batches))
    seen = np.concatenate([batch["example_id"] for batch in batches])
    assert sorted(seen[seen >= 0]) == sorted(rows.example_id)
    outputs = [batch["example_id"][:, None] * np.ones(3) for batch in batches]
    np.testing.assert_array_equal(batches.in_order(outputs)[:, 0], rows.example_id)
    tokens = batches.in_order([batch["ids"] for batch in batches])
    assert tokens.shape == (61, 32)
    with pytest.raises(ValueError, match="give all of them"):
        batches.in_order(outputs[1:])


def test_texts_that_are_cut_are_counted_and_reported(caplog):
    with caplog.at_level(logging.WARNING):
        rows = tokenize_texts(tiny_texts.examples(50), tiny_texts.bert(), 10)
    lengths = [len(e.text.split()) for e in tiny_texts.examples(50)]
    assert rows.num_truncated == sum(n > 8 for n in lengths) > 0
    assert f"{rows.num_truncated} of 50 texts" in caplog.text
    assert rows.lengths.max() == 10


def test_labels_of_regressions_are_numbers_and_can_be_hidden():
    found = [TextExample(0, "the cat", None, 2.5), TextExample(1, "dog"), TextExample(2, "mat")]
    rows = tokenize_texts(found, tiny_texts.bert(), 16, is_regression=True)
    (batch,) = make_eval_batches(rows, BatchConfig(16, eval_batch_size=4))
    assert batch["label"].dtype == np.float32
    assert batch["label"].tolist() == [2.5, 0, 0, 0]
    assert batch["has_label"].tolist() == [True, False, False, False]
    assert not without_labels(rows).has_label.any()


def test_labels_are_mapped_by_name():
    names = ("contradiction", "entailment", "neutral")
    places = map_labels(names, ("entailment", "neutral", "contradiction"))
    assert places == (2, 0, 1)
    rows = tokenize_texts(tiny_texts.examples(6), tiny_texts.bert(), 32, label_map=places)
    assert rows.label.tolist() == [2, 0, 1, 2, 0, 1]
    with pytest.raises(ValueError, match=r"only the data has \['neutral'\].*model has \['LABEL_2"):
        map_labels(names, ("contradiction", "entailment", "LABEL_2"))
    with pytest.raises(ValueError, match="labels of the model occur twice"):
        map_labels(("a",), ("a", "a"))
    with pytest.raises(ValueError, match="have no place in label_map"):
        tokenize_texts(tiny_texts.examples(6), tiny_texts.bert(), 32, label_map=places[:2])


def test_a_negative_class_is_no_label_and_a_negative_number_is_one():
    found = [TextExample(0, "the cat", None, 1), TextExample(1, "dog", None, -1)]
    for label_map in (None, (2, 1, 0)):
        rows = tokenize_texts(found, tiny_texts.bert(), 16, label_map=label_map)
        assert rows.label[0] == 1 and rows.has_label.tolist() == [True, False]
    numbers = tokenize_texts(found, tiny_texts.bert(), 16, is_regression=True)
    assert numbers.label.tolist() == [1, -1] and numbers.has_label.all()
    tagged = [TaggedExample(0, ("cat", "dog"), (-1, 1))]
    for label_map, place in ((None, 1), ((5, 6), 6)):
        rows = tokenize_tagged(tagged, tiny_texts.bert(), 16, label_map=label_map)
        assert rows.label.tolist() == [IGNORED, IGNORED, place, IGNORED]


def test_an_mpnet_teacher_and_a_bert_student_share_their_tokens():
    teacher, student = tiny_texts.mpnet(), tiny_texts.bert()
    table = map_vocabulary(student, teacher)
    assert table[5:].tolist() == [i + 4 for i in range(5, len(table))]
    assert table[[2, 3, 0, 4]].tolist() == [0, 2, 1, teacher.mask_id]
    rows = tokenize_texts(tiny_texts.examples(20), teacher, 32)
    mapped = map_rows(rows, student)
    direct = tokenize_texts(tiny_texts.examples(20), student, 32)
    np.testing.assert_array_equal(mapped.ids, direct.ids)
    np.testing.assert_array_equal(mapped.types, direct.types)
    np.testing.assert_array_equal(map_rows(direct, teacher).ids, rows.ids)
    batch = next(make_train_batches(rows, CONFIG, seed=0, student_rows=mapped))
    np.testing.assert_array_equal(batch["mask"], batch["student_mask"])
    assert not np.array_equal(batch["ids"], batch["student_ids"])
    assert batch["student_types"].shape == batch["ids"].shape


def test_pairs_and_other_vocabularies_are_refused_with_the_remedy():
    teacher, student = tiny_texts.mpnet(), tiny_texts.bert()
    found = tiny_texts.examples(5, longest=8, pairs=True)
    rows = tokenize_texts(found, teacher, 32)
    with pytest.raises(ValueError, match="5 rows are pairs.*match logits only"):
        map_rows(rows, student)
    separate = tokenize_texts(found, student, 32)
    assert (rows.lengths == separate.lengths + 1).all()
    batch = next(make_train_batches(rows, CONFIG, seed=0, student_rows=separate))
    assert (batch["mask"].sum(1) == batch["student_mask"].sum(1) + batch["mask"].any(1)).all()
    assert batch["student_types"].max() == 1 and batch["types"].max() == 0
    with pytest.raises(ValueError, match="2 of 18 entries, such as .'red', 'mat'.* 16 of the"):
        map_vocabulary(student, BertTokenizer([e for e in tiny_texts.ENTRIES
                                               if e not in ("red", "mat")]))  # fmt: skip
    with pytest.raises(ValueError, match="other examples"):
        make_train_batches(
            rows, CONFIG, seed=0, student_rows=tokenize_texts(found[1:], student, 32)
        )


def test_tags_stand_on_first_pieces():
    found = [TaggedExample(7, ("cats", "sat", "dogs"), (1, 0, 2)), TaggedExample(8, ("mat",))]
    rows = tokenize_tagged(found, tiny_texts.bert(), 16, label_map=(5, 6, 7))
    (batch,) = make_eval_batches(rows, BatchConfig(16, eval_batch_size=2))
    ignored = [IGNORED]
    assert batch["label"][0].tolist() == [IGNORED, 6, IGNORED, 5, 7, IGNORED] + ignored * 10
    assert batch["label"][1].tolist() == ignored * 16
    assert batch["has_label"].tolist() == [True, False]
    cut = tokenize_tagged(found, tiny_texts.bert(), 5)
    assert cut.num_truncated == 1 and cut.label[:5].tolist() == [IGNORED, 1, IGNORED, 0, IGNORED]


def masked(config, count=400, seed=0):
    tokenizer = tiny_texts.bert()
    rows = tokenize_texts(tiny_texts.examples(count, longest=31), tokenizer, 32)
    (batch,) = make_eval_batches(rows, BatchConfig(32, (32,), eval_batch_size=count))
    table = MaskTable.of(tokenizer, rows.ids, config)
    ids, label = mask_tokens(batch["ids"], batch["mask"], table, np.random.default_rng(seed))
    return tokenizer, batch, ids, label


def test_the_share_of_tokens_is_hidden_in_three_ways():
    tokenizer, batch, ids, label = masked(MaskingConfig(share=0.3), count=3000)
    chosen = label != IGNORED
    ordinary = batch["mask"] & ~np.isin(batch["ids"], sorted(tokenizer.special_ids))
    assert not chosen[~ordinary].any()
    np.testing.assert_array_equal(label[chosen], batch["ids"][chosen])
    np.testing.assert_array_equal(ids[~chosen], batch["ids"][~chosen])
    wanted = np.maximum(1, np.rint(0.3 * ordinary.sum(1)))
    np.testing.assert_array_equal(chosen.sum(1), wanted)
    total = chosen.sum()
    is_mask = ids[chosen] == tokenizer.mask_id
    # A tenth becomes any of 13 pieces, of which one is the same: 0.1 * 12 / 13. Six deviations.
    changed = ~is_mask & (ids[chosen] != label[chosen])
    for found, share in ((is_mask, 0.8), (changed, 0.1 * 12 / 13)):
        assert abs(found.mean() - share) < 6 * np.sqrt(share * (1 - share) / total)


def test_rare_pieces_are_hidden_more_often():
    tokenizer = tiny_texts.bert()
    texts = [TextExample(i, "the " * 16 + "mat " + "the " * 3) for i in range(500)]
    rows = tokenize_texts(texts, tokenizer, 32)
    (batch,) = make_eval_batches(rows, BatchConfig(32, (32,), eval_batch_size=500))
    shares = {}
    for smoothing in (0.0, 0.7):
        table = MaskTable.of(tokenizer, rows.ids, MaskingConfig(0.05, smoothing=smoothing))
        assert table.weight[tokenizer.cls_id] == 0
        _, label = mask_tokens(batch["ids"], batch["mask"], table, np.random.default_rng(0))
        shares[smoothing] = (label[:, 17] != IGNORED).mean()
    # One of 20 tokens is hidden: the rare one with 1 / 20, or by its weight. Six deviations.
    weight = np.array([500.0, 9500.0]) ** -0.7
    for smoothing, expected in ((0.0, 1 / 20), (0.7, weight[0] / (weight[0] + 19 * weight[1]))):
        deviation = np.sqrt(expected * (1 - expected) / 500)
        assert abs(shares[smoothing] - expected) < 6 * deviation


def test_whole_words_are_hidden_together():
    tokenizer = tiny_texts.bert()
    texts = [TextExample(i, "cats sat dogs mats the.") for i in range(200)]
    rows = tokenize_texts(texts, tokenizer, 16)
    (batch,) = make_eval_batches(rows, BatchConfig(16, eval_batch_size=200))
    table = MaskTable.of(tokenizer, rows.ids, MaskingConfig(0.3, whole_words=True))
    _, label = mask_tokens(batch["ids"], batch["mask"], table, np.random.default_rng(0))
    chosen = label != IGNORED
    for first, second in ((1, 2), (4, 5), (6, 7)):
        np.testing.assert_array_equal(chosen[:, first], chosen[:, second])
    assert chosen.any(0)[1:10].all() and (3 <= chosen.sum(1)).all() and (chosen.sum(1) <= 4).all()


def test_rows_are_masked_for_good_by_seed_and_example_where_asked(rows):
    which = np.arange(len(rows)) % 2 == 0
    masked = mask_rows(rows, which, 0.3, seed=4)
    for row in range(len(rows)):
        own = slice(rows.begin(row), rows.ends[row])
        before, after = rows.ids[own], masked.ids[own]
        changed = before != after
        count = np.isin(before, list(rows.tokenizer.special_ids), invert=True).sum()
        assert changed.sum() == (max(1, round(0.3 * count)) if which[row] else 0)
        assert (after[changed] == rows.tokenizer.mask_id).all()
        assert not changed[[0, -1]].any()
    np.testing.assert_array_equal(masked.label, rows.label)
    np.testing.assert_array_equal(mask_rows(rows, which, 0.3, seed=4).ids, masked.ids)
    assert not np.array_equal(mask_rows(rows, which, 0.3, seed=5).ids, masked.ids)
    # Another choice of rows does not change what is masked of a row.
    every = mask_rows(rows, np.ones(len(rows), bool), 0.3, seed=4)
    last = slice(rows.begin(2), rows.ends[2])
    np.testing.assert_array_equal(every.ids[last], masked.ids[last])


def test_masked_batches_have_tokens_as_labels(rows):
    batch = next(make_train_batches(rows, CONFIG, seed=0, masking=MaskingConfig()))
    assert batch["label"].shape == batch["ids"].shape
    np.testing.assert_array_equal(batch["has_label"], batch["mask"].any(1))
    assert (batch["label"][~batch["mask"]] == IGNORED).all()
    assert (batch["label"] != IGNORED).any(1)[batch["has_label"]].all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 600}, "max_length=600 is not between 3 and the largest bucket 512"),
        ({"buckets": (32, 16)}, "do not rise"),
        ({"global_batch_size": 0}, "global_batch_size=0"),
    ],
)
def test_bad_shapes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        BatchConfig(**options)


def test_other_mistakes_are_refused(rows):
    with pytest.raises(ValueError, match="step=-1 is negative"):
        make_train_batches(rows, CONFIG, seed=0, start_step=-1)
    with pytest.raises(ValueError, match="not a positive multiple of 3 processes"):
        make_train_batches(rows, CONFIG, seed=0, process_index=0, process_count=3)
    with pytest.raises(ValueError, match="a row has 30 ids|more than the largest bucket 16"):
        make_train_batches(rows, BatchConfig(16, (16,)), seed=0)
    with pytest.raises(ValueError, match="no examples"):
        tokenize_texts([], tiny_texts.bert(), 16)
    with pytest.raises(ValueError, match="share=0.0"):
        MaskingConfig(share=0.0)
    with pytest.raises(ValueError, match="no shares of 1"):
        MaskingConfig(masked=0.9, random=0.2)
