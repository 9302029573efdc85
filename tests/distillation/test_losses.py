"""All losses between features: values of independent programs, and what must hold for any input.

The values for `convention="textbrewer"` are those of TextBrewer 0.2.1's functions, the masked `mmd`
by its published package; the others come from the formulas in float64.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.distillation import attentions, hidden, relations
from jaxlab.distillation.means import Mean
from jaxlab.parallel import batch_sharding, make_mesh
from tests.distillation.goldens import (
    MASK,
    NARROW_HIDDEN,
    STUDENT_HIDDEN,
    STUDENT_PROJECTED,
    STUDENT_SCORES,
    TEACHER_HIDDEN,
    TEACHER_PROJECTED,
    TEACHER_SCORES,
)

EVERYTHING = jnp.ones_like(MASK)
SCORES = (STUDENT_SCORES, TEACHER_SCORES)
ONE_LAYER = (STUDENT_HIDDEN[0], TEACHER_HIDDEN[0])
TWO_LAYERS = (STUDENT_HIDDEN, TEACHER_HIDDEN)
NARROW = (NARROW_HIDDEN, TEACHER_HIDDEN)
QUERIES, KEYS, VALUES = (
    ((s, s), (t, t)) for s, t in zip(STUDENT_PROJECTED, TEACHER_PROJECTED, strict=True)
)

four_heads = functools.partial(relations.relation, num_relation_heads=4)
by_text = functools.partial(four_heads, average="texts")
of_examples = functools.partial(relations.example_relation, num_relation_heads=4)

LOSSES = {
    "attention_mse": (attentions.attention_mse, SCORES),
    "attention_mse_sum": (attentions.attention_mse_sum, SCORES),
    "attention_mse_mean": (attentions.attention_mse_mean, SCORES),
    "attention_ce": (attentions.attention_ce, SCORES),
    "attention_ce_mean": (attentions.attention_ce_mean, SCORES),
    "attention_kl": (attentions.attention_kl, SCORES),
    "hidden_mse": (hidden.hidden_mse, ONE_LAYER),
    "cos": (hidden.hidden_cosine, ONE_LAYER),
    "pkd": (hidden.hidden_pkd, ONE_LAYER),
    "gram": (hidden.feature_gram, TWO_LAYERS),
    "mmd": (hidden.token_similarity, NARROW),
    "relation": (four_heads, QUERIES),
    "relation by text": (by_text, QUERIES),
    "relation of examples": (of_examples, VALUES),
}
GIVEN = pytest.mark.parametrize("name", LOSSES)


def value(loss, pair, mask, **options):
    return float(jax.jit(functools.partial(loss, **options))(*pair, mask).value)


@pytest.mark.parametrize(
    ("loss", "pair", "without", "masked"),
    [
        (attentions.attention_mse, SCORES, 0.40129426, 0.93064070),
        (attentions.attention_mse_sum, SCORES, 0.01269830, 0.02896982),
        (attentions.attention_ce, SCORES, 0.86634731, 1.29128230),
        (attentions.attention_ce_mean, SCORES, 0.78109056, 1.36578977),
        (hidden.hidden_pkd, ONE_LAYER, 0.14757571, 0.14757571),
        (hidden.feature_gram, TWO_LAYERS, 0.14017931, 0.15300551),
        (hidden.token_similarity, NARROW, 0.13310280, 0.23191352),
    ],
)
def test_losses_have_the_values_of_textbrewer(loss, pair, without, masked):
    assert value(loss, pair, None, convention="textbrewer") == pytest.approx(without, rel=1e-5)
    assert value(loss, pair, MASK, convention="textbrewer") == pytest.approx(masked, rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "pair", "without", "masked"),
    [
        (attentions.attention_mse, SCORES, None, 0.93064070),
        (attentions.attention_mse_sum, SCORES, None, 0.02896982),
        (attentions.attention_ce, SCORES, None, 1.3429519775),
        (attentions.attention_ce_mean, SCORES, None, 1.4170685854),
        (attentions.attention_kl, SCORES, 0.10512899, 0.07859815),
        (attentions.attention_tinybert, SCORES, None, 0.74016571),
        (hidden.hidden_mse, ONE_LAYER, 0.07794518, 0.07663503),
        (hidden.hidden_cosine, ONE_LAYER, 0.07719991, 0.07463659),
        (hidden.hidden_pkd, ONE_LAYER, 0.14757571, 0.14757571),
        (hidden.feature_gram, TWO_LAYERS, 0.14017931, 0.15300551),
        (hidden.token_similarity, NARROW, 0.13310280, 0.14119054),
        (four_heads, QUERIES, 0.36860120, 0.31330487),
        (four_heads, KEYS, 0.40108007, 0.37836233),
        (four_heads, VALUES, 0.40213355, 0.39380756),
        (by_text, QUERIES, 0.36860120, 0.30255735),
        (by_text, KEYS, 0.40108007, 0.37420237),
        (by_text, VALUES, 0.40213355, 0.38824475),
    ],
)
def test_losses_have_the_values_of_their_formulas(loss, pair, without, masked):
    assert value(loss, pair, MASK) == pytest.approx(masked, rel=1e-5)
    if without is not None:
        assert value(loss, pair, EVERYTHING) == pytest.approx(without, rel=1e-5)


def padded(tree, tokens, filling):
    """More tokens at the end of every time axis, and one more text; masks stay without them."""

    def pad(x):
        grown = [0] * x.ndim
        for axis in range(2, x.ndim) if x.ndim == 4 else (1,):
            grown[axis] = tokens
        grown[0] = 1
        return jnp.pad(x, [(0, n) for n in grown], constant_values=filling)

    return jax.tree.map(pad, tree)


@GIVEN
def test_padding_changes_neither_values_nor_gradients(name):
    loss, (student, teacher) = LOSSES[name]
    mask = EVERYTHING if name == "relation of examples" else MASK
    value_and_grad = jax.jit(jax.value_and_grad(lambda s, t, m: loss(s, t, m).value))
    wanted, gradient = value_and_grad(student, teacher, mask)
    longer = padded(student, 7, 3.0), padded(teacher, 7, -5.0), padded(mask, 7, False)
    found, grown = value_and_grad(*longer)
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)
    for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(grown), strict=True):
        kept = other[tuple(slice(0, size) for size in one.shape)]
        np.testing.assert_allclose(kept, one, atol=1e-7)
        assert float(jnp.abs(other).sum()) == pytest.approx(float(jnp.abs(kept).sum()), rel=1e-6)


@GIVEN
def test_a_student_like_its_teacher_has_no_loss_and_stays(name):
    loss, (_, teacher) = LOSSES[name]
    value_and_grad = jax.jit(jax.value_and_grad(lambda s, t: loss(s, t, MASK).value))
    found, gradient = value_and_grad(teacher, teacher)
    if "_ce" in name:  # the entropy of the teacher is left
        found = found - loss(teacher, teacher, MASK).value
    assert float(found) == pytest.approx(0.0, abs=1e-6)
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-6)


@GIVEN
def test_no_gradient_goes_to_the_teacher(name):
    loss, (student, teacher) = LOSSES[name]
    gradient = jax.jit(jax.grad(lambda t: loss(student, t, MASK).value))(teacher)
    for leaf in jax.tree.leaves(gradient):
        assert not leaf.any()


@GIVEN
def test_a_batch_of_padding_alone_is_zero_with_finite_gradients(name):
    loss, (student, teacher) = LOSSES[name]
    nothing = jnp.zeros_like(MASK)
    value_and_grad = jax.jit(jax.value_and_grad(lambda s: loss(s, teacher, nothing).value))
    found, gradient = value_and_grad(student)
    assert found == 0
    for leaf in jax.tree.leaves(gradient):
        assert not leaf.any()


# Relations of examples compare the examples of a batch, which cannot be cut.
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "relation of examples"])
def test_microbatches_add_up_to_the_batch(name):
    loss, (student, teacher) = LOSSES[name]
    whole: Mean = jax.jit(loss)(student, teacher, MASK)
    one_text = jax.jit(loss)

    def part(row):
        cut = [jax.tree.map(lambda x: x[row : row + 1], tree) for tree in (student, teacher, MASK)]
        return one_text(*cut)

    first, second = part(0), part(1)
    assert float(first.count + second.count) == float(whole.count)
    assert float(first.total + second.total) == pytest.approx(float(whole.total), rel=1e-6)


@GIVEN
def test_a_mesh_gives_the_loss_of_one_device(name):
    loss, pair = LOSSES[name]
    eight = [jax.tree.map(lambda x: jnp.concatenate([x] * 4), tree) for tree in (*pair, MASK)]
    compute = jax.jit(lambda s, t, m: loss(s, t, m).value)
    wanted = compute(*eight)
    found = compute(*jax.device_put(eight, batch_sharding(make_mesh())))
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)


def test_half_precision_is_summed_in_float32():
    student = jnp.asarray(STUDENT_HIDDEN[0], jnp.bfloat16)
    found = hidden.hidden_mse(student, TEACHER_HIDDEN[0], MASK)
    assert found.total.dtype == jnp.float32
    assert float(found.value) == pytest.approx(0.07663503, rel=2e-2)


def test_other_widths_heads_and_lengths_are_told():
    with pytest.raises(ValueError, match="width 6 and the teacher's 8.*project"):
        hidden.hidden_mse(NARROW_HIDDEN[0], TEACHER_HIDDEN[0], MASK)
    with pytest.raises(ValueError, match="2 attention heads and the teacher 1.*mse_mean"):
        attentions.attention_mse(STUDENT_SCORES, TEACHER_SCORES[:, :1], MASK)
    with pytest.raises(ValueError, match="have 4 tokens and the teacher's 5.*one vocabulary"):
        hidden.hidden_mse(STUDENT_HIDDEN[0][:, :4], TEACHER_HIDDEN[0], MASK[:, :4])
    with pytest.raises(ValueError, match="over 4 tokens and the teacher's over 5"):
        attentions.attention_ce(STUDENT_SCORES[..., :4, :4], TEACHER_SCORES, MASK[:, :4])
    with pytest.raises(ValueError, match="need a mask"):
        attentions.attention_mse(STUDENT_SCORES, TEACHER_SCORES, None)
    with pytest.raises(ValueError, match=r"=5 must divide.*1, 2, 3, 4, 6, 12"):
        relations.relation(*QUERIES, MASK, 5)
    with pytest.raises(ValueError, match="have 4 tokens and the teacher's 5"):
        student = STUDENT_PROJECTED[0][:, :4]
        relations.relation((student, student), QUERIES[1], MASK[:, :4], 4)
    with pytest.raises(ValueError, match="have 4 tokens and the teacher's 5"):
        relations.example_relation((student, student), QUERIES[1], MASK[:, :4], 4)


@pytest.mark.parametrize("average", ["tokens", "texts"])
def test_relations_are_the_same_piece_by_piece(monkeypatch, average):
    def loss_of(student, teacher):
        pair = ((student, student), (teacher, teacher))
        return relations.relation(*pair, MASK, 4, average=average).value

    arguments = (QUERIES[0][0], QUERIES[1][0])
    at_once = jax.value_and_grad(loss_of)(*arguments)
    for scores in (0, 2 * MASK.size * MASK.shape[1]):
        monkeypatch.setattr(relations, "SCORES_AT_ONCE", scores)
        found = jax.jit(jax.value_and_grad(lambda *xs: loss_of(*xs)))(*arguments)
        for one, other in zip(found, at_once, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_relations_never_hold_the_scores_of_all_pieces():
    """Sizes of MiniLMv2, forwards and backwards: of any array that is made on the way."""
    student, teacher = (jax.ShapeDtypeStruct((32, 512, n), jnp.float32) for n in (384, 768))

    def loss_of(student, teacher, mask):
        return relations.relation((student,) * 2, (teacher,) * 2, mask, 48).value

    mask = jax.ShapeDtypeStruct((32, 512), jnp.bool_)
    text = str(jax.make_jaxpr(jax.grad(loss_of))(student, teacher, mask))
    sizes = [math.prod(map(int, shape.split(","))) for shape in re.findall(r"\w\[([\d,]+)\]", text)]
    assert 32 * 512 * 512 <= max(sizes) <= relations.SCORES_AT_ONCE
