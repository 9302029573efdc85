import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.distillation import hidden_mse, logits_kl
from jaxlab.distillation.cached_features import cached_features
from jaxlab.distillation.knowledge import Features
from jaxlab.distillation.teacher_cache import (
    Kept,
    TeacherCache,
    TeacherCacheWriter,
    fill_cache,
    teacher_identity,
)
from jaxlab.layers.bert import BertConfig, BertEncoder

LENGTHS = {3: 5, 2**40: 2, 11: 6, 12: 1, 8: 4, 9: 3}
PARAMS = {"encoder": {"w": jnp.arange(6.0)}}
IDENTITY = teacher_identity(tokenizer="v1", params=PARAMS, max_len=6)
ALL = Kept(
    features=(("hidden", 2), ("values", 1), ("scores", 0)), precision="float32"
)  # fmt: skip
CLASSES = 4


def batch_of(example_ids, length=6):
    ids, types = (np.zeros((len(example_ids), length), np.int32) for _ in range(2))
    mask = np.zeros((len(example_ids), length), bool)
    for row, example_id in enumerate(example_ids):
        if example_id >= 0:
            tokens = LENGTHS[example_id]
            ids[row, :tokens] = 1 + np.arange(tokens) + example_id % 1000
            types[row, tokens // 2 : tokens] = 1
            mask[row, :tokens] = True
    return {
        "ids": ids,
        "types": types,
        "mask": mask,
        "example_id": np.asarray(example_ids, np.int64),
    }


class Teacher:
    """Outputs that depend on the tokens of a text, and not on its batch; garbage where padded."""

    def __init__(self, scale=1.0, token_level=False, stop_after=10**6):
        self.calls, self.scale, self.token_level = 0, scale, token_level
        self.stop_after = stop_after

    def __call__(self, batch):
        if self.calls >= self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        ids, mask = batch["ids"].astype(np.float32), batch["mask"]
        padded = np.where(mask, 0.0, 1e9).astype(np.float32)

        def state(width, phase):
            values = np.sin(ids[..., None] * np.arange(1, width + 1) + phase)
            return jnp.asarray(self.scale * values + padded[..., None], jnp.float32)

        maps = [
            jnp.asarray(
                np.cos(ids[:, None, :, None] - factor * ids[:, None, None, :]).repeat(2, axis=1)
                - 1e4 * ~mask[:, None, None, :],
                jnp.float32,
            )
            for factor in (1, 3)
        ]
        logits = state(CLASSES, 0.3)
        if not self.token_level:
            logits = jnp.where(mask[..., None], logits, 0.0).sum(axis=1)
        return Features(
            logits=logits,
            hidden=tuple(state(5, i) for i in range(3)),
            scores=tuple(maps),
            values=tuple(state(5, 7 + i) for i in range(2)),
        )


BATCHES = [batch_of([3, 2**40, 11]), batch_of([12, 8, -1]), batch_of([9, -1, -1])]


def fill(folder, kept=ALL, teacher=None, batches=BATCHES):
    return fill_cache(folder, IDENTITY, kept, batches, teacher or Teacher())


def test_outputs_come_back_bit_by_bit_in_any_order_and_length(tmp_path):
    cache = fill(tmp_path)
    assert len(cache) == 6 and 2**40 in cache and 13 not in cache
    batch = batch_of([9, 2**40, -1, 3], length=9)
    found = cached_features(cache.attach(batch), num_layers=2)
    wanted, mask = Teacher()(batch), batch["mask"]
    assert found.logits is not None and wanted.logits is not None
    real = mask.any(axis=1)
    np.testing.assert_array_equal(np.asarray(found.logits)[real], np.asarray(wanted.logits)[real])
    for name, entry in (("hidden", 2), ("values", 1)):
        own, live = (np.asarray(getattr(f, name)[entry]) for f in (found, wanted))
        np.testing.assert_array_equal(own[mask], live[mask])
        assert not own[~mask].any()
    pairs = np.broadcast_to((mask[:, :, None] & mask[:, None, :])[:, None], (4, 2, 9, 9))
    own, live = np.asarray(found.scores[0]), np.asarray(wanted.scores[0])
    np.testing.assert_array_equal(own[pairs], live[pairs])
    assert not own[~pairs].any()
    assert len(found.hidden) == 3 and found.hidden[0].shape == (4, 9, 0)
    assert len(found.values) == 2 and found.queries == ()


def test_losses_from_the_cache_are_those_of_the_live_teacher(tmp_path):
    batch = batch_of([3, 12, -1, 11])
    cached = cached_features(fill(tmp_path).attach(batch), num_layers=2)
    live, mask = Teacher()(batch), jnp.asarray(batch["mask"])
    student = Teacher(scale=0.7)(batch)
    for teacher in (cached, live):
        student_hidden = jnp.where(mask[..., None], student.hidden[2], 0.0)
        losses = (
            hidden_mse(student_hidden, teacher.hidden[2], mask),
            logits_kl(student.logits, teacher.logits, mask.any(axis=1)),
        )
        values = [float(loss.value) for loss in losses]
        if teacher is cached:
            wanted = values
    assert values == pytest.approx(wanted, rel=1e-6) and min(values) > 1e-3


def test_a_network_is_found_equal_bit_by_bit_when_a_run_goes_on(tmp_path):
    config = BertConfig(vocab_size=1100, num_layers=2, width=8, num_heads=2, mlp_width=16)
    init = jax.jit(BertEncoder(config).init)
    params = init(jax.random.key(0), jnp.ones((1, 2), jnp.int32))

    @jax.jit
    def run(ids, mask):
        return BertEncoder(config).apply(params, ids, mask=mask, return_taps=True)

    def teacher(batch):
        last, taps = run(jnp.asarray(batch["ids"]), jnp.asarray(batch["mask"]))
        return Features(logits=last[:, 0], hidden=taps.hidden, scores=taps.scores)

    kept = Kept(features=(("hidden", 2), ("scores", 1)), precision="float32")
    identity = teacher_identity(tokenizer="v1", params=params, max_len=6)
    fill_cache(tmp_path, identity, kept, BATCHES[:2], teacher)
    cache = fill_cache(tmp_path, identity, kept, BATCHES, teacher)
    assert len(cache) == 6
    assert [cache.verify(batch, teacher(batch)) for batch in BATCHES] == [3, 2, 1]


def test_half_precision_is_the_rounded_number(tmp_path):
    kept = Kept(logits="float16", features=(("hidden", 1),), precision="float16")
    batch = fill(tmp_path, kept).attach(BATCHES[0])
    live = Teacher()(BATCHES[0])
    np.testing.assert_array_equal(batch["teacher/logits"], np.asarray(live.logits, np.float16))
    assert batch["teacher/hidden/1"].dtype == np.float16


@pytest.mark.parametrize("token_level", [False, True])
def test_the_largest_logits_rebuild_a_distribution(tmp_path, token_level):
    cache = fill(tmp_path, Kept(top_k=2), Teacher(token_level=token_level))
    batch = batch_of([8, 3])
    attached = cache.attach(batch)
    found = cached_features(attached, num_layers=2, num_classes=CLASSES).logits
    live = Teacher(token_level=token_level)(batch).logits
    kept = batch["mask"] if token_level else np.ones(2, bool)
    probabilities, exact = (np.asarray(jax.nn.softmax(z, axis=-1))[kept] for z in (found, live))
    order = np.argsort(-exact, axis=-1)[..., :2]
    np.testing.assert_allclose(
        np.take_along_axis(probabilities, order, -1),
        np.take_along_axis(exact, order, -1),
        rtol=1e-5,
    )
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1.0, rtol=1e-5)
    with pytest.raises(ValueError, match="give num_classes"):
        cached_features(attached, num_layers=2)


def test_a_killed_run_computes_only_what_is_missing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, teacher=Teacher(stop_after=2))
    cache = TeacherCache(tmp_path, IDENTITY, ALL)
    with pytest.raises(KeyError, match="no outputs of example_id 9; run fill_cache"):
        cache.attach(BATCHES[2])
    bare = {name: array for name, array in BATCHES[0].items() if name != "example_id"}
    with pytest.raises(ValueError, match="the batch lacks example_id; it has"):
        cache.attach(bare)
    again = Teacher()
    fill(tmp_path, teacher=again)
    # The first batch, to compare, and the missing one.
    assert again.calls == 2
    whole = [(tmp_path / name).read_bytes() for name in ("records.bin", "index.bin")]
    fill(tmp_path / "other")
    assert whole == [(tmp_path / "other" / n).read_bytes() for n in ("records.bin", "index.bin")]


def test_a_tail_that_was_cut_off_is_written_again(tmp_path):
    fill(tmp_path)
    path = tmp_path / "records.bin"
    whole = path.read_bytes()
    os.truncate(path, len(whole) - 10)
    with pytest.raises(ValueError, match="cut short or unfinished: 5 records are whole"):
        TeacherCache(tmp_path, IDENTITY, ALL)
    fill(tmp_path)
    assert path.read_bytes() == whole


def test_every_difference_of_identity_is_named(tmp_path):
    fill(tmp_path)
    other = teacher_identity(tokenizer="v2", params={"encoder": {"w": jnp.ones(6)}}, max_len=6)
    for reader in (TeacherCache, TeacherCacheWriter):
        with pytest.raises(ValueError) as raised:
            reader(tmp_path, other, dataclasses.replace(ALL, precision="float16"))
        message = str(raised.value)
        assert "holds teacher outputs of something else" in message
        assert "precision: float32 there, float16 here" in message
        assert "tokenizer: v1 there, v2 here" in message
        assert f"teacher: {IDENTITY['teacher']} there" in message
        assert "max_len" not in message
    with pytest.raises(FileNotFoundError, match="write them with fill_cache"):
        TeacherCache(tmp_path / "none", IDENTITY, ALL)


def test_a_teacher_that_differs_in_one_bit_is_noticed(tmp_path):
    cache = fill(tmp_path)
    assert cache.verify(BATCHES[1], Teacher()(BATCHES[1])) == 2
    changed = Teacher()(BATCHES[1])
    values = np.asarray(changed.values[1]).copy()
    values[1, 2, 0] = np.nextafter(values[1, 2, 0], np.float32(9))
    changed = changed._replace(values=(changed.values[0], jnp.asarray(values)))
    with pytest.raises(ValueError, match=r"differs from its stored .* 1 of 2 examples.*id 8\."):
        cache.verify(BATCHES[1], changed)
    with pytest.raises(ValueError, match="3 of 3 examples, by up to"):
        fill(tmp_path, teacher=Teacher(scale=1.001))


def test_texts_of_one_number_are_told_before_one_is_kept(tmp_path):
    batch = batch_of([3, 9, 11])
    batch["ids"][:, 0] = [1, 2, 3]
    batch["example_id"][:] = 3
    with pytest.raises(ValueError, match="example_id 3, 3 stands for several texts of a batch"):
        fill_cache(tmp_path, IDENTITY, ALL, [batch], Teacher())


def test_outputs_are_attached_on_the_host(tmp_path):
    cache = fill(tmp_path)
    with pytest.raises(ValueError, match="attach them to the batch before the jitted step"):
        jax.jit(lambda batch: cache.attach(batch))(batch_of([3]))


def test_examples_with_another_text_are_listed(tmp_path):
    cache = fill(tmp_path)
    for name, row in (("ids", 0), ("types", 2)):
        batch = batch_of([3, 9, 11])
        batch[name][row, 0] += 1
        with pytest.raises(ValueError, match=f"tokens of example_id {[3, 9, 11][row]} are not"):
            cache.attach(batch)
    shorter = batch_of([3, 9])
    shorter["mask"][0, 4:] = False
    with pytest.raises(ValueError, match="length at which they are cut"):
        cache.attach(shorter)


def test_outputs_that_are_not_finite_stop_with_their_examples(tmp_path):
    def broken(batch):
        features = Teacher()(batch)
        return features._replace(logits=features.logits.at[1].set(jnp.nan))

    with pytest.raises(ValueError, match=f"outputs of example_id {2**40} are not finite"):
        fill(tmp_path, teacher=broken)
    with pytest.raises(ValueError, match="keep float32"):
        fill(tmp_path / "half", Kept(logits="float16"), Teacher(scale=1e6))


def test_what_cannot_be_kept_is_told(tmp_path):
    with pytest.raises(ValueError, match="'pooled' are none of.*top_k=2 of logits='none'"):
        Kept(logits="none", top_k=2, features=(("pooled", 0),))
    with pytest.raises(ValueError, match="nothing is kept"):
        Kept(logits="none")
    with pytest.raises(ValueError, match="put out no hidden 3, queries 0; ask it for them"):
        fill(tmp_path, Kept(features=(("hidden", 3), ("queries", 0))))
    gap = batch_of([3, 9])
    gap["mask"][0, 0] = False
    with pytest.raises(ValueError, match="tokens of example_id 3 do not come first"):
        fill(tmp_path / "gap", batches=[gap])
    with pytest.raises(ValueError, match="no batch"):
        fill(tmp_path / "empty", batches=[])
    batch = fill(tmp_path / "few", Kept(features=(("hidden", 2),))).attach(BATCHES[0])
    with pytest.raises(ValueError, match=r"hidden entries \[2\] are attached.*has 0 to 1"):
        cached_features(batch, num_layers=1)
    with pytest.raises(ValueError, match="call TeacherCache.attach first"):
        cached_features({"ids": jnp.zeros((1, 2), jnp.int32)}, 2)
