import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab.distillation import theseus
from jaxlab.distillation.compilation import compile_objective
from jaxlab.distillation.model import TextModel, TextModelConfig, init_params
from jaxlab.distillation.objective_config import (
    HardConfig,
    ObjectiveConfig,
    ResponseConfig,
)
from jaxlab.distillation.terms import Shape
from jaxlab.distillation.train import distillation_params
from jaxlab.layers.bert import BertConfig, padding_bias
from jaxlab.training import TrainState

ENCODER = BertConfig(
    vocab_size=20, num_layers=4, width=8, num_heads=2, mlp_width=16, max_positions=8,
    hidden_dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
CONFIG = TextModelConfig(ENCODER, task="classification", num_labels=3)
IDS = jnp.asarray([[5, 9, 11, 0], [7, 8, 2, 1]])
MASK = IDS != 0
BATCH = {"ids": IDS, "mask": MASK}


def with_layers(number):
    return dataclasses.replace(CONFIG, encoder=dataclasses.replace(ENCODER, num_layers=number))


SMALL = with_layers(2)


def draw(config, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: leaf + jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32),
        init_params(config, jax.random.key(0)),
    )


TEACHER = draw(CONFIG, 0)
SUCCESSORS = {f"layer_{i}": draw(SMALL, 1)["encoder"][f"layer_{i}"] for i in range(2)}


@jax.jit
def outputs(successors, replaced, teacher=TEACHER):
    model = TextModel(CONFIG)
    return theseus.theseus_features(model, teacher, successors, BATCH, replaced).logits


def whole(config, params):
    return TextModel(config).apply({"params": params}, IDS, mask=MASK).logits


def test_all_replaced_is_the_successor_and_none_the_teacher():
    student = theseus.extract_successor(TEACHER, SUCCESSORS)
    found = outputs(SUCCESSORS, jnp.asarray([True, True]))
    np.testing.assert_allclose(found, whole(SMALL, student), rtol=1e-5, atol=1e-6)
    found = outputs(SUCCESSORS, jnp.asarray([False, False]))
    np.testing.assert_allclose(found, whole(CONFIG, TEACHER), rtol=1e-5, atol=1e-6)


def test_a_mixed_stack_is_the_network_of_its_layers():
    encoder = {**TEACHER["encoder"]}
    layers = [SUCCESSORS["layer_0"], encoder["layer_2"], encoder["layer_3"]]
    mixed = {**encoder, **{f"layer_{i}": layer for i, layer in enumerate(layers)}}
    del mixed["layer_3"]
    wanted = whole(with_layers(3), {**TEACHER, "encoder": mixed})
    found = outputs(SUCCESSORS, jnp.asarray([True, False]))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_gradients_go_to_the_successors_that_ran_alone():
    def loss(successors, teacher):
        return (outputs(successors, jnp.asarray([True, False]), teacher) ** 2).sum()

    ran, frozen = jax.grad(loss, argnums=(0, 1))(SUCCESSORS, TEACHER)
    assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(frozen))
    assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(ran["layer_1"]))
    kernel = SUCCESSORS["layer_0"]["mlp_in"]["kernel"]
    step = 1e-2 * jnp.asarray(np.random.default_rng(3).normal(size=kernel.shape), jnp.float32)

    def along(t):
        layer = {**SUCCESSORS["layer_0"], "mlp_in": {**SUCCESSORS["layer_0"]["mlp_in"]}}
        layer["mlp_in"]["kernel"] = kernel + t * step
        return float(loss({**SUCCESSORS, "layer_0": layer}, TEACHER))

    slope = float((ran["layer_0"]["mlp_in"]["kernel"] * step).sum())
    # The loss is float32 and curved: a central difference has three digits.
    assert slope == pytest.approx((along(1.0) - along(-1.0)) / 2, rel=1e-2)


def draws(probability, num_layers, num_draws=4096):
    keys = jax.random.split(jax.random.key(0), num_draws)
    return np.asarray(
        jax.vmap(lambda k: theseus.draw_replaced(k, jnp.float32(probability), num_layers))(keys)
    )


def test_at_the_ends_all_are_replaced_or_one_alone():
    assert draws(1.0, 3).all()
    alone = draws(0.0, 3)
    assert (alone.sum(axis=1) == 1).all()
    deviation = np.sqrt(4096 * (1 / 3) * (2 / 3))
    # Five standard deviations: a correct program misses this once in a million.
    assert (np.abs(alone.sum(axis=0) - 4096 / 3) < 5 * deviation).all()


@pytest.mark.parametrize(("probability", "num_layers"), [(0.3, 2), (0.1, 4), (0.7, 6)])
def test_blocks_are_replaced_as_often_as_they_should(probability, num_layers):
    found = draws(probability, num_layers)
    assert found.any(axis=1).all()
    wanted = probability + (1 - probability) ** num_layers / num_layers
    deviation = np.sqrt(4096 * wanted * (1 - wanted))
    assert (np.abs(found.sum(axis=0) - 4096 * wanted) < 5 * deviation).all()


def test_the_mean_output_is_that_of_the_stacks_by_their_probabilities():
    states = jnp.asarray([[False, True], [True, False], [True, True]])
    each = np.asarray([outputs(SUCCESSORS, state) for state in states])
    p = 0.4
    none = (1 - p) ** 2
    chances = np.array([p * (1 - p) + none / 2, p * (1 - p) + none / 2, p**2])
    drawn = draws(p, 2)
    shares = np.array([(drawn == np.asarray(state)).all(axis=1).mean() for state in states])
    assert shares.sum() == 1.0
    wanted, found = np.tensordot(chances, each, 1), np.tensordot(shares, each, 1)
    second = np.tensordot(chances, each**2, 1)
    deviation = np.sqrt(np.maximum(second - wanted**2, 1e-12) / 4096)
    assert (np.abs(found - wanted) < 5 * deviation).all()


def test_the_probability_rises_to_one_at_two_thirds():
    steps = jnp.asarray([0.0, 0.33, 0.66, 0.8, 1.0])
    found = jax.vmap(theseus.replacing_probability)(steps)
    np.testing.assert_allclose(found, [0.3, 0.65, 1, 1, 1], rtol=1e-6)
    with pytest.raises(ValueError, match="until=0.0 in"):
        theseus.replacing_probability(jnp.float32(0.1), until=0.0)


@pytest.mark.parametrize(("sizes", "blocks"), [((12, 6), 2), ((12, 3), 4), ((4, 4), 1)])
def test_blocks_are_of_one_size_where_they_can_be(sizes, blocks):
    found = theseus.teacher_blocks(*sizes)
    assert [len(block) for block in found] == [blocks] * sizes[1]
    assert [layer for block in found for layer in block] == list(range(sizes[0]))


def test_blocks_cover_all_layers_where_sizes_differ():
    found = theseus.teacher_blocks(12, 5)
    assert [layer for block in found for layer in block] == list(range(12))
    assert {len(block) for block in found} == {2, 3}
    with pytest.raises(ValueError, match="which has 2 for 3"):
        theseus.teacher_blocks(2, 3)


def test_successors_start_as_copies_and_become_a_network():
    found = theseus.init_successors(TEACHER, 2)
    for i in range(2):
        jax.tree.map(
            np.testing.assert_array_equal, found[f"layer_{i}"], TEACHER["encoder"][f"layer_{i}"]
        )
    student = theseus.extract_successor(TEACHER, found)
    assert set(student["encoder"]) == set(draw(SMALL, 0)["encoder"])
    jax.jit(lambda tree: tree, donate_argnums=0)(student)
    assert not TEACHER["head"]["out"]["kernel"].is_deleted()
    with pytest.raises(ValueError, match="use first, last, gap or uniform_top"):
        theseus.init_successors(TEACHER, 2, "first1")


def test_dropout_draws_by_the_key_in_both_networks():
    config = dataclasses.replace(ENCODER, hidden_dropout=0.5)
    run = theseus.layer_runner(TextModel(dataclasses.replace(CONFIG, encoder=config)))
    layers = [TEACHER["encoder"][f"layer_{i}"] for i in range(4)]
    own = [SUCCESSORS[f"layer_{i}"] for i in range(2)]
    hidden, shared = TEACHER["encoder"]["word_embeddings"][IDS], padding_bias(MASK)

    @jax.jit
    def last(replaced, seed):
        key = jax.random.key(seed)
        return theseus.mixed_stack(run, layers, own, hidden, shared, replaced, key=key)

    for replaced in ([True, True], [False, False]):
        one, again, other = (last(jnp.asarray(replaced), seed) for seed in (0, 0, 1))
        np.testing.assert_array_equal(one, again)
        assert np.abs(one - other).max() > 0.1


LABELS = compile_objective(
    ObjectiveConfig(response=ResponseConfig("none"), hard=HardConfig(1.0)), Shape(2, 8, 2), None
)


def take_step(start, num_microbatches=1):
    tx = optax.sgd(0.1)
    params = distillation_params(LABELS, SUCCESSORS, jax.random.key(0))
    step = theseus.make_theseus_step(
        LABELS, TextModel(CONFIG), tx, 10, start=start, num_microbatches=num_microbatches
    )
    state = TrainState.create(params, tx, jax.random.key(1))
    batch = {**BATCH, "label": jnp.asarray([2, 0]), "has_label": jnp.asarray([True, True])}
    state, metrics = jax.jit(step)(state, {"teacher": TEACHER}, batch, jax.random.key(2))
    return state.params["student"], metrics


def test_a_step_with_probability_one_is_that_of_the_student_with_frozen_ends():
    trained, metrics = take_step(1.0, num_microbatches=2)

    def loss(successors):
        student = theseus.extract_successor(TEACHER, successors)
        logs = jax.nn.log_softmax(whole(SMALL, student))
        return -(logs[0, 2] + logs[1, 0]) / 2

    value, gradient = jax.jit(jax.value_and_grad(loss))(SUCCESSORS)
    assert float(metrics["loss"]) == pytest.approx(float(value), rel=1e-5)
    assert float(metrics["replaced"]) == 1.0
    for found, before, slope in zip(
        *map(jax.tree.leaves, (trained, SUCCESSORS, gradient)), strict=True
    ):
        np.testing.assert_allclose(found, before - 0.1 * slope, rtol=1e-5, atol=1e-6)


def test_a_step_with_probability_zero_trains_one_layer():
    trained, metrics = take_step(0.0)
    moved = [
        any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), trained[n], layer)))
        for n, layer in SUCCESSORS.items()
    ]
    assert sum(moved) == 1 and float(metrics["replaced"]) == 0.5


def test_an_objective_with_a_teacher_is_refused():
    objective = compile_objective(ObjectiveConfig(), Shape(2, 8, 2), Shape(4, 8, 2))
    with pytest.raises(ValueError, match="labels alone, and the objective has response"):
        theseus.make_theseus_step(objective, TextModel(CONFIG), optax.sgd(0.1), 10)
