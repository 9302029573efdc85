import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.distillation.advisor import (
    Compared,
    advise,
    attention_distances,
    best_monotone,
)
from jaxlab.distillation.knowledge import Features
from jaxlab.layers.bert import BertConfig, BertEncoder
from jaxlab.metrics import linear_cka

RNG = np.random.default_rng(0)
CONFIG = BertConfig(
    vocab_size=30, num_layers=4, width=8, num_heads=2, mlp_width=16, max_positions=12,
    init_std=0.4, embedding_init_std=1.0,
)  # fmt: skip


def slow_cka(x, y):
    """By centred similarities of tokens (HSIC), the other way round."""
    n = len(x)
    centre = np.eye(n) - np.ones((n, n)) / n
    k, m = (centre @ (z @ z.T) @ centre for z in (x, y))
    return (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())


def test_cka_is_that_of_similarities():
    x, y = RNG.normal(size=(50, 6)), RNG.normal(size=(50, 9))
    mixed = np.concatenate([x[:, :3] + 1.0, y[:, :2]], axis=1)
    for first, second in ((x, y), (x, mixed), (mixed, y)):
        assert linear_cka(first, second) == pytest.approx(slow_cka(first, second), rel=1e-9)


def test_cka_knows_neither_rotation_nor_size_nor_place():
    x = RNG.normal(size=(40, 6))
    rotation = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    assert linear_cka(x, 3.0 * x @ rotation + 5.0) == pytest.approx(1.0, rel=1e-9)
    assert linear_cka(x, np.ones((40, 2))) == 0.0


@pytest.mark.parametrize("sizes", [(4, 4), (6, 3), (7, 1), (5, 2)])
def test_the_assignment_is_the_best_of_all_in_order(sizes):
    for _ in range(5):
        similarity = RNG.normal(size=sizes)
        best = max(
            itertools.combinations(range(sizes[0]), sizes[1]),
            key=lambda layers: sum(similarity[t, s] for s, t in enumerate(layers)),
        )
        assert best_monotone(similarity) == tuple((t, s) for s, t in enumerate(best))


def encode(config, params, ids, mask):
    _, taps = BertEncoder(config).apply({"params": params}, ids, mask=mask, return_taps=True)
    return Features(hidden=taps.hidden, probabilities=taps.probabilities)


def draw(config):
    shapes = jax.eval_shape(BertEncoder(config).init, jax.random.key(0), jnp.ones((1, 2), int))
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.5 * RNG.normal(size=leaf.shape), jnp.float32), shapes["params"]
    )


def batches_of(student_layers, num_batches=3):
    """A teacher, and a student that has some of its layers: its states are the teacher's then."""
    teacher, rotation = draw(CONFIG), np.linalg.qr(RNG.normal(size=(8, 8)))[0]
    for _ in range(num_batches):
        ids = jnp.asarray(RNG.integers(1, 30, size=(8, 10)))
        mask = jnp.asarray(np.arange(10)[None] < RNG.integers(3, 11, size=(8, 1)))
        features = encode(CONFIG, teacher, ids, mask)
        student = Features(
            hidden=tuple(
                jnp.asarray(np.asarray(features.hidden[i]) @ rotation, jnp.float32)
                for i in (0, *(layer + 1 for layer in student_layers))
            ),
            probabilities=tuple(features.probabilities[layer] for layer in student_layers),
        )
        yield Compared(features, student, mask)


@pytest.mark.parametrize("layers", [(0, 2), (1, 3)])
def test_a_student_of_teacher_layers_is_matched_to_them(layers):
    advice = advise(batches_of(layers))
    wanted = tuple((layer, i) for i, layer in enumerate(layers))
    assert advice.pairs == advice.attention_pairs == wanted
    for pair in wanted:
        assert advice.cka[pair] == pytest.approx(1.0, abs=1e-6)
        assert advice.attention_distance[pair] == pytest.approx(0.0, abs=1e-6)
    assert advice.embeddings_cka == pytest.approx(1.0, abs=1e-6)
    top = advice.ranking()[:2]
    assert {(pair.teacher, pair.student) for pair in top} == set(wanted)
    table = advice.table()
    assert f"      1 | {layers[1]:5d} | 1.000 |     0.000 | {layers[1]} (1.000)" in table
    assert "mean CKA 1.000" in table and f"by attention alone: {layers[0]}-0" in table
    if layers == (1, 3):
        means = dict(advice.strategies())
        assert means["gap"] == pytest.approx(1.0, abs=1e-6) == means["uniform_top"]
        assert means["reverse"] < means["gap"] and "pkd_skip" not in means


def test_padding_and_tokens_beyond_the_limit_change_nothing():
    batches = list(batches_of((0, 2)))
    plain = advise(batches, max_tokens=60)
    garbage = [
        Compared(spoil(batch.teacher, batch.mask), spoil(batch.student, batch.mask), batch.mask)
        for batch in batches
    ]
    np.testing.assert_allclose(advise(garbage, max_tokens=60).cka, plain.cka, rtol=1e-9)
    num_first = int(np.asarray(batches[0].mask).sum())
    alone = advise(batches[:1], max_tokens=10**6)
    np.testing.assert_allclose(advise(batches, max_tokens=num_first).cka, alone.cka, rtol=1e-9)


def test_a_mask_of_numbers_is_one_and_few_tokens_are_told(caplog):
    batch = next(iter(batches_of((0, 2))))
    plain = advise([batch])
    numbers = batch._replace(mask=np.asarray(batch.mask, np.int32))
    np.testing.assert_array_equal(advise(iter([numbers])).cka, plain.cka)
    assert (
        plain.num_tokens == int(batch.mask.sum()) and f"{plain.num_tokens} tokens" in plain.table()
    )
    assert f"CKA of {plain.num_tokens} tokens is too large" in caplog.text


def spoil(features, mask):
    hidden = tuple(jnp.where(mask[..., None], h, 1e3) for h in features.hidden)
    return features._replace(hidden=hidden)


def test_attention_is_compared_over_real_tokens_whatever_the_heads():
    mask = np.array([[True, True, False]])
    first = np.array([[0.5, 0.3, 0.2], [0.1, 0.9, 0.0], [1.0, 0.0, 0.0]])
    second = np.array([[0.2, 0.8, 0.0], [0.6, 0.4, 0.0], [0.0, 1.0, 0.0]])
    one = Features(probabilities=(jnp.asarray(first[None, None], jnp.float32),))
    two = Features(probabilities=(jnp.asarray(np.stack([second, first])[None], jnp.float32),))
    mean = (second + first)[:2, :2] / 2
    mean /= mean.sum(axis=1, keepdims=True)
    own = first[:2, :2] / first[:2, :2].sum(axis=1, keepdims=True)
    wanted = 0.5 * np.abs(own - mean).sum(axis=1).mean()
    assert attention_distances(one, two, mask).item() == pytest.approx(wanted, rel=1e-6)


def test_without_attention_there_is_none():
    batch = next(iter(batches_of((0, 2))))
    advice = advise([batch._replace(student=batch.student._replace(probabilities=()))])
    assert advice.attention_distance is None and advice.attention_pairs is None
    assert "        - |" in advice.table()


def test_what_cannot_be_compared_is_told():
    batch = next(iter(batches_of((0, 2))))
    with pytest.raises(ValueError, match="no hidden states of layers of the teacher; ask for them"):
        advise([batch._replace(teacher=Features())])
    with pytest.raises(TypeError, match=r"as Compared\(teacher, student, mask\).*got a Features"):
        advise(iter(batch))
    with pytest.raises(ValueError, match="max_tokens=0 must be 1 or more"):
        advise([batch], max_tokens=0)
    broken = (*batch.student.hidden[:2], batch.student.hidden[2] * jnp.nan)
    with pytest.raises(ValueError, match=r"hidden states \[2\] of the student hold NaN"):
        advise([batch._replace(student=batch.student._replace(hidden=broken))])
    with pytest.raises(ValueError, match="2 teacher and 4 student layers"):
        advise([Compared(batch.student, batch.teacher, batch.mask)])
    with pytest.raises(ValueError, match="must see the same tokens"):
        advise([batch._replace(mask=batch.mask[:, :5])])
    with pytest.raises(ValueError, match="no real token"):
        advise([batch._replace(mask=jnp.zeros_like(batch.mask))])
    with pytest.raises(ValueError, match="1 teacher and 2 student layers, of which 1"):
        best_monotone(np.array([[1.0, np.nan]]))
