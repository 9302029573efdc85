"""Objectives of encoder-decoders: what counts of either stack, and of the cross attention."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import distillation as kd
from jaxlab.layers.seq2seq import Seq2Seq, Seq2SeqConfig
from jaxlab.training import TrainState

CONFIG = Seq2SeqConfig(
    vocab_size=20, num_encoder_layers=1, num_decoder_layers=1, width=8, num_heads=2, mlp_width=12,
    max_positions=12, dropout=0.0, init_std=0.4,
)  # fmt: skip
SHAPE = kd.seq2seq_shape(CONFIG)
DEEPER = dataclasses.replace(CONFIG, num_encoder_layers=2, num_decoder_layers=3)
MATCHES = (
    "first:attention_mse:encoder,first:attention_mse:decoder,first:attention_mse:cross,"
    "first:attention_kl:decoder,first:attention_kl:cross,first:value_relation:decoder,"
    "first:query_relation:cross,first:query_key_relation:cross[heads=4,norm=bertdistiller],"
    "first:key_query_relation:cross,first:example_relation:cross,first:pkd:decoder"
)
OBJECTIVE = kd.compile_objective(
    kd.ObjectiveConfig(MATCHES, kd.ResponseConfig("kl")), SHAPE, SHAPE, task="mlm"
)
FORWARD = kd.make_seq2seq_forward(Seq2Seq(CONFIG))


def params_of(seed: int, config: Seq2SeqConfig = CONFIG):
    """Parameters drawn by NumPy, which compiles nothing."""
    rng = np.random.default_rng(seed)
    ids = jnp.zeros((1, 1), jnp.int32)
    traced = jax.eval_shape(Seq2Seq(config).init, jax.random.key(0), ids, ids)["params"]
    return jax.tree.map(lambda x: np.float32(rng.normal(0, 0.4, x.shape)), traced)


def make_batch(time: int = 5, decoder_time: int = 4):
    """Texts of 5, 2 and 4 tokens, and answers of 2, 4 and 0."""
    rng, batch = np.random.default_rng(3), {}
    ids = rng.integers(2, 20, (2, 3, 5))
    for name, longest, lengths in (("", time, (5, 2, 4)), ("decoder_", decoder_time, (2, 4, 0))):
        mask = np.arange(longest)[None] < np.array(lengths)[:, None]
        row = np.full((3, longest), CONFIG.pad_id)
        row[mask] = ids[int(bool(name)), :, : max(lengths)][mask[:, : max(lengths)]]
        batch |= {f"{name}ids": jnp.asarray(row), f"{name}mask": jnp.asarray(mask)}
    return batch | {"label": batch["decoder_ids"], "has_label": batch["decoder_mask"].any(1)}


shown_by = jax.jit(functools.partial(FORWARD, taps=OBJECTIVE.student_taps))


@jax.jit
def losses_of(student, teacher, batch):
    return OBJECTIVE({}, student, teacher, batch).values


@functools.cache
def found_of(seed: int, time: int = 5, decoder_time: int = 4):
    """The losses of a student beside the teacher, whose seed is 0."""
    batch = make_batch(time, decoder_time)
    return losses_of(*(shown_by(params_of(i), batch) for i in (seed, 0)), batch)


def test_padding_of_either_stack_changes_nothing():
    values, others = found_of(1), found_of(1, 8, 10)
    assert min(values.values()) > 1e-5
    for name, value in values.items():
        # Divergences of 1e-4 are sums of terms of order 1: they have no more digits.
        np.testing.assert_allclose(others[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


def test_a_copy_of_an_encoder_decoder_has_nothing_to_learn():
    for name, value in found_of(0).items():
        np.testing.assert_allclose(value, 0.0, atol=1e-6, err_msg=name)


def test_scores_count_where_a_query_sees_a_key():
    """Of the decoder not those of later tokens; of the cross attention those of both texts."""
    batch = make_batch()
    shown = [shown_by(params_of(i), batch) for i in (1, 0)]
    lengths = {"encoder": ((5, 5), (2, 2), (4, 4)), "decoder": ((2, 2), (4, 4), (0, 0))}
    lengths["cross"] = ((2, 5), (4, 2), (0, 4))
    for stack, of_texts in lengths.items():
        squares = []
        for i, (queries, keys) in enumerate(of_texts):
            one, other = (np.asarray(s[stack].scores[0][i], np.float64) for s in shown)
            seen = np.tri(queries, keys) if stack == "decoder" else np.ones((queries, keys))
            differences = (one - other)[:, :queries, :keys]
            squares += list((differences[:, seen.astype(bool)] ** 2).ravel())
        prefix = "" if stack == "encoder" else f"{stack}/"
        found = found_of(1)[f"attention_mse/{prefix}0-0"]
        np.testing.assert_allclose(found, np.mean(squares), rtol=1e-5, err_msg=stack)


def test_a_step_of_an_encoder_decoder_learns_from_its_stacks():
    matches = "random:attention_mse:cross,alp:pkd:decoder"
    config = kd.ObjectiveConfig(matches, kd.ResponseConfig("kl"), kd.HardConfig(0.5))
    objective = kd.compile_objective(config, SHAPE, SHAPE, task="mlm")
    tx, batch = optax.sgd(0.1), make_batch()
    params = kd.distillation_params(objective, params_of(1), jax.random.key(0))
    state = TrainState.create(params, tx, jax.random.key(1), kd.distillation_extra(objective))
    step = kd.make_distillation_step(kd.Parts(objective, FORWARD, FORWARD), tx, 10)
    run = (state, {"teacher": params_of(0)}, batch, jax.random.key(2))
    _, metrics = jax.eval_shape(step, *run)
    assert {f"loss/{name}" for name in objective.names} < set(metrics)


def test_layers_are_matched_by_the_depth_of_their_stack():
    matches = "gap:hidden_mse:encoder,gap:hidden_mse:decoder,last1:attention_kl:cross"
    config = kd.ObjectiveConfig(matches, kd.ResponseConfig("none"))
    objective = kd.compile_objective(config, SHAPE, kd.seq2seq_shape(DEEPER))
    assert objective.names == (
        "hidden_mse/emb-emb", "hidden_mse/1-0",
        "hidden_mse/decoder/emb-emb", "hidden_mse/decoder/2-0", "attention_kl/cross/2-0",
    )  # fmt: skip
    batch, deeper = make_batch(), kd.make_seq2seq_forward(Seq2Seq(DEEPER))
    shown = jax.jit(functools.partial(deeper, taps=objective.teacher_taps))
    student, teacher = shown_by(params_of(1), batch), shown(params_of(0, DEEPER), batch)
    found = objective({}, student, teacher, batch).values
    for stack, layer in (("encoder", 2), ("decoder", 3)):
        mask = np.asarray(batch["mask" if stack == "encoder" else "decoder_mask"])
        own, other = student[stack].hidden[1], teacher[stack].hidden[layer]
        name = f"hidden_mse/{'' if stack == 'encoder' else 'decoder/'}{layer - 1}-0"
        wanted = np.mean(np.asarray(own - other)[mask] ** 2)
        np.testing.assert_allclose(found[name], wanted, rtol=1e-5)


def test_a_student_of_either_depth_starts_from_layers_of_its_teacher():
    teacher = params_of(0, DEEPER)
    start = kd.StudentStart("last", decoder_layers=(1,))
    found = kd.start_student(params_of(1), teacher, start)
    assert found.drawn == () and found.num_shared_pieces == CONFIG.vocab_size
    for path in (("word_embeddings",), ("encoder", "position_embeddings"), ("logits_bias",)):
        own, theirs = found.params, teacher
        for name in path:
            own, theirs = own[name], theirs[name]
        np.testing.assert_array_equal(own, theirs)
    for stack, layer in (("encoder", 1), ("decoder", 1)):
        own, theirs = found.params[stack]["layer_0"], teacher[stack][f"layer_{layer}"]
        jax.tree.map(np.testing.assert_array_equal, own, theirs)
    again = kd.start_from_distilled(params_of(2), found.params)
    jax.tree.map(np.testing.assert_array_equal, again.params, found.params)
    with pytest.raises(ValueError, match="encoder: 2 layers there, 1 here.*\n.*decoder: 3 layers"):
        kd.start_from_distilled(params_of(2), teacher)
    with pytest.raises(ValueError, match=r"decoder: layers=\(0, 5\) are 2 teacher layers"):
        kd.start_student(params_of(1), teacher, kd.StudentStart("last", decoder_layers=(0, 5)))
    alone = {name: params_of(1)[name] for name in ("encoder", "word_embeddings")}
    with pytest.raises(ValueError, match="decoder_layers=first are of an encoder-decoder"):
        kd.start_student(alone, teacher, kd.StudentStart("last", decoder_layers="first"))


def test_errors_say_what_a_stack_lacks():
    batch = {name: array for name, array in make_batch().items() if name != "decoder_mask"}
    with pytest.raises(ValueError, match="an encoder-decoder also needs decoder_mask"):
        FORWARD(params_of(0), batch)
    shown = shown_by(params_of(0), make_batch())
    objective = kd.compile_objective(
        kd.ObjectiveConfig("first:attention_mse:cross", kd.ResponseConfig("none")), SHAPE, SHAPE
    )
    with pytest.raises(ValueError, match="a match is of cross, and the batch has decoder_ids"):
        objective({}, shown, shown, batch)
    deeper = {**shown, "cross": shown["cross"]._replace(scores=shown["cross"].scores * 3)}
    with pytest.raises(ValueError, match="shows 3 layers of it, and was to have 1"):
        objective({}, deeper, shown, make_batch())
    with pytest.raises(ValueError, match="attention between the stacks has none"):
        kd.compile_objective(kd.ObjectiveConfig("last1:cos:cross"), SHAPE, SHAPE)
