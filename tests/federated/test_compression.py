"""Codecs lose what they say they lose, and courses count what they send to the byte."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxlab.federated.algorithm import EvaluationInput
from jaxlab.federated.algorithms.mime import mime_lite
from jaxlab.federated.client_data import Schedule, gather_clients, view_client
from jaxlab.federated.compression import (
    chain,
    compressed,
    decode_tree,
    dequantize_state_dict,
    encode_tree,
    hadamard,
    is_original_entry,
    quantize,
    quantize_state_dict,
    rotate,
    top_k,
)
from jaxlab.federated.devices import Device, answer_time_us
from jaxlab.federated.fedavg import fed_avg
from jaxlab.federated.labelled import regression
from jaxlab.federated.learning import make_simulation
from jaxlab.federated.local import Limits
from jaxlab.federated.server_state import CourseConfig
from jaxlab.federated.simulation import run_course
from jaxlab.federated.strategy import ConfigError, Strategy
from jaxlab.federated.traffic import answer_content, broadcast_content, metrics_content
from jaxlab.federated.trust import fl_trust
from jaxlab.federated.wire import name_leaves, pack, unpack
from jaxlab.parallel import make_mesh

CODECS = {
    "8_bits": quantize(8),
    "16_bits_by_channel": quantize(16, per_channel=True),
    "stochastic": quantize(8, stochastic=True),
    "top_k": top_k(0.25),
    "rotated": chain(rotate(64), quantize(8)),
    "all": chain(top_k(0.5), rotate(16), quantize(16)),
}


@functools.partial(jax.jit, static_argnums=0)
def _arrive(codec, array, key):
    return decode_tree(codec, encode_tree(codec, {"x": array}, key))["x"]


def there_and_back(codec, array):
    return np.asarray(_arrive(codec, array, new_key()))


def new_key():
    return jax.random.key(7)


def test_the_numbers_of_the_original():
    """`symmetric_uniform_quantization` of FederatedScope 0.3.0, run on the same tensor."""
    values, side = quantize(8).encode(jnp.array([0.1, -0.37, 2.5, -1.25]), new_key())
    assert values.tolist() == [5, -19, 127, -64] and values.dtype == jnp.int8
    assert float(side["scale"]) == pytest.approx(0.0196850393, rel=1e-7)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("per_channel", [False, True])
def test_the_error_is_at_most_half_a_scale(bits, per_channel):
    array = np.random.default_rng(bits).standard_t(3, (50, 6)).astype(np.float32)
    array *= np.float32(10.0) ** np.arange(-3, 3, dtype=np.float32)
    largest = np.abs(array).max(axis=0 if per_channel else None, keepdims=True)
    scale = largest.astype(np.float64) / (2 ** (bits - 1) - 1)
    error = np.abs(there_and_back(quantize(bits, per_channel=per_channel), array) - array)
    assert (error <= scale * (0.5 + 1e-3)).all() and error.max() > 0.4 * scale.max()


def test_zeros_stay_zeros():
    for codec in CODECS.values():
        assert not there_and_back(codec, np.zeros((8, 5), np.float32)).any()


def test_stochastic_rounding_is_right_on_average():
    """Over 4,096 draws; six standard deviations, which one in 10^7 correct programs would miss."""
    array = jnp.array([1.0, 0.3, -0.123, 0.00391, -0.9999, 0.0])
    codec, keys = quantize(8, stochastic=True), jax.random.split(new_key(), 4096)
    values, side = jax.vmap(codec.encode, in_axes=(None, 0))(array, keys)
    steps = np.asarray(array, np.float64) * 127
    share = steps - np.floor(steps)
    deviation = np.sqrt(share * (1 - share) / 4096)
    mean = np.asarray(values, np.float64).mean(axis=0)
    assert (np.abs(mean - steps) <= 6 * deviation + 1e-4).all()
    assert set(np.unique(values[:, 1])) == {38, 39}


def test_the_largest_numbers_arrive_and_the_others_are_zeros():
    array = np.random.default_rng(0).normal(size=(4, 25)).astype(np.float32)
    values, side = top_k(0.29).encode(jnp.asarray(array), new_key())
    assert values.shape == side["places"].shape == (29,) and side["places"].dtype == jnp.uint16
    back = there_and_back(top_k(0.29), array)
    kept = np.abs(array) >= np.sort(np.abs(array).ravel())[-29]
    np.testing.assert_array_equal(back, np.where(kept, array, 0))
    assert top_k(0.001).encode(jnp.ones(70_000), new_key())[1]["places"].dtype == jnp.uint32
    assert there_and_back(top_k(0.01), np.float32(3.0)) == 3.0


def test_the_transform_is_the_matrix_of_hadamard():
    matrix = np.ones((1, 1))
    for _ in range(3):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    rows = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    expected = rows.astype(np.float64) @ matrix / np.sqrt(8)
    np.testing.assert_allclose(hadamard(jnp.asarray(rows)), expected, atol=1e-6)


def test_a_rotation_keeps_lengths_and_spares_what_few_large_numbers_would_cost():
    array = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    array[3] = 500.0
    values, _ = jax.jit(rotate(256).encode)(jnp.asarray(array), new_key())
    assert values.shape == (4, 256)
    assert np.linalg.norm(values) == pytest.approx(np.linalg.norm(array), rel=1e-6)
    np.testing.assert_allclose(there_and_back(rotate(256), array), array, atol=1e-4)
    plain = np.square(there_and_back(quantize(8), array) - array).mean()
    rotated = np.square(there_and_back(chain(rotate(256), quantize(8)), array) - array).mean()
    assert rotated < plain / 10


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_never_made_finite(name, bad):
    array = np.ones((8, 5), np.float32)
    array[3, 2] = bad
    assert not np.isfinite(there_and_back(CODECS[name], array)).all()


def test_what_is_sent_may_be_written_to_a_wire_and_keeps_types():
    codec = CODECS["all"]
    tree = {"w": jnp.ones((6, 3), jnp.bfloat16), "n": jnp.int32(3), "e": jnp.zeros((0, 2))}
    sent = jax.jit(lambda tree, key: encode_tree(codec, tree, key))(tree, new_key())
    data = pack(name_leaves(sent))
    assert unpack(data)["w/like"].shape == (0, 6, 3)
    back = jax.jit(lambda sent: decode_tree(codec, sent))(sent)
    assert [leaf.dtype for leaf in jax.tree.leaves(back)] == [
        leaf.dtype for leaf in jax.tree.leaves(tree)
    ]
    assert back["n"] == 3 and back["w"].shape == (6, 3)


def test_state_dicts_are_quantised_as_in_the_original():
    rng = np.random.default_rng(0)
    names = ["conv1.weight", "conv1.bias", "bn1.weight", "fc1.weight", "encoder.weight"]
    tensors = {name: rng.normal(size=(4, 3)).astype(np.float32) for name in names}
    sent = quantize_state_dict(tensors, 16)
    assert list(sent) == [
        "conv1.weight_quant", "conv1.weight_scale", "conv1.bias", "bn1.weight", "fc1.weight_quant",
        "fc1.weight_scale", "encoder.weight",
    ]  # fmt: skip
    assert sent["fc1.weight_quant"].dtype == np.int16
    back = dequantize_state_dict(sent)
    for name in names:
        scale = np.abs(tensors[name]).max() / 32767
        np.testing.assert_allclose(back[name], tensors[name], atol=scale)
    with pytest.raises(ValueError, match="fc1.weight has numbers that are not finite"):
        quantize_state_dict({"fc1.weight": np.full(2, np.nan)})
    with pytest.raises(ValueError, match="fc1.weight_quant has no fc1.weight_scale"):
        dequantize_state_dict({"fc1.weight_quant": np.zeros(2, np.int8)})
    assert is_original_entry("params/fc1/kernel") and is_original_entry("params/conv2/kernel")
    assert not is_original_entry("params/fc1/bias") and not is_original_entry("params/bn1/scale")


@pytest.mark.parametrize(
    "make, wrong",
    [
        (lambda: quantize(4), "bits=4 must be one of 8, 16"),
        (lambda: top_k(0.0), "share=0.0"),
        (lambda: rotate(24), "block_size=24 must be a power of two"),
        (lambda: chain(), "at least one"),
        (lambda: chain(quantize(8), quantize(16)), "none twice"),
        (lambda: compressed(ALGORITHM, error_feedback=True), "without up"),
    ],
)
def test_codecs_that_make_no_sense_are_told(make, wrong):
    with pytest.raises(ConfigError, match=wrong):
        make()


# Courses.

NUM_CLIENTS, DIM = 8, 40
TRUTH = np.sin(np.arange(DIM, dtype=np.float32))
SCHEDULE = Schedule(16, 1)
DEVICES = [Device(float(n), 50.0 * n) for n in range(1, NUM_CLIENTS + 1)]


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(1)(x)


TASK = regression(Linear(), jax.ShapeDtypeStruct((DIM,), jnp.float32))
ALGORITHM = fed_avg(TASK, optax.sgd(0.05), SCHEDULE)
EVERY = {"up": chain(top_k(0.5), quantize(8)), "error_feedback": True, "down": quantize(16)}


def clients(num_examples=32, broken=()):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(NUM_CLIENTS * num_examples, DIM)).astype(np.float32)
    y = x @ TRUTH
    rows = np.split(np.arange(len(x)), NUM_CLIENTS)
    for client in broken:
        y[rows[client - 1]] = np.nan
    return gather_clients({"x": x, "y": y}, rows)


@pytest.fixture(name="variables", scope="module")
def make_variables():
    return TASK.init(jax.random.key(0))


def make(algorithm, variables, num_rounds=2, data=None, **options):
    config = CourseConfig(NUM_CLIENTS, num_rounds, Strategy(cohort_size=4), eval_every_rounds=0)
    return make_simulation(
        config, algorithm, clients() if data is None else data, variables, SCHEDULE,
        mesh=make_mesh(devices=jax.devices()[:1]), devices=DEVICES, **options,
    )  # fmt: skip


def weights(simulation, state):
    return np.asarray(simulation.variables(state)["params"]["Dense_0"]["kernel"][:, 0])


def test_a_compressed_course_learns_refuses_what_is_not_finite_and_counts_every_byte(variables):
    algorithm = compressed(ALGORITHM, **EVERY)
    data = clients(broken=(3,))
    simulation = make(
        algorithm, variables, 80, data, splits={"test": clients(2)},
        fails=lambda client, number: client == 5,
    )  # fmt: skip
    state = run_course(simulation.course, simulation.start())
    report = simulation.report(state)
    np.testing.assert_allclose(weights(simulation, state), TRUTH, atol=0.02)
    assert {c for a in state.server.aggregations for c in a.rejected} == {3}

    # What is sent for real, array by array.
    server = algorithm.init_server(variables)
    down = len(pack(broadcast_content(jax.device_get(algorithm.broadcast(server)))))
    view, limits = view_client(jax.tree.map(jnp.asarray, data), jnp.int32(0)), Limits(32, 1)
    kept = algorithm.init_client(variables)
    local = jax.jit(lambda sent: algorithm.local(sent, kept, view, limits, new_key()))
    result = local(algorithm.broadcast(server))
    up = len(pack(jax.device_get(answer_content(result.update, result.weight))))
    given = EvaluationInput(view, view, limits, new_key())
    evaluate = jax.jit(lambda sent: algorithm.evaluate(sent, kept, given))
    sums = {"test": evaluate(algorithm.evaluation(server))}
    answered = len(pack(jax.device_get(metrics_content(sums))))
    assert simulation.traffic.sizes == (down, up, down, answered)

    exchanges = simulation.traffic.exchanges
    asked, failed = len(exchanges), int((exchanges[:, 1] == 5).sum())
    assert failed > 0 and asked == 80 * 4
    assert report["bytes_down"] == asked * down and report["bytes_up"] == (asked - failed) * up
    assert set(exchanges[exchanges[:, 1] == 5, 3]) == {0}
    assert collections.Counter(exchanges[:, 0].tolist()) == dict.fromkeys(range(80), 4)
    assert report["evaluation_bytes_down"] == NUM_CLIENTS * down
    assert report["bits_per_parameter_up"] == 8 * up / (DIM + 1)
    times = simulation.settings["answer times (us)"]
    assert times.tolist() == [answer_time_us(device, 32, down, up) for device in DEVICES]


def test_bytes_are_those_of_the_numbers_and_less_than_80_beside_each_array(variables):
    def sizes(**options):
        return make(compressed(ALGORITHM, **options), variables).traffic.sizes

    plain, small = sizes(), sizes(up=quantize(8), down=quantize(16))
    numbers = DIM + 1
    assert plain.evaluation_down == 0
    # Kernel and bias; quantised with two scales and two empty arrays, up with weight and loss.
    assert 0 < plain.down - 4 * numbers < 2 * 80
    assert 0 < small.down - 2 * numbers - 2 * 4 < 6 * 80
    assert 0 < small.up - numbers - 2 * 4 - 3 * 4 < 8 * 80


def test_what_is_lost_is_sent_later_and_a_lossless_codec_loses_nothing(variables):
    """All that has arrived and the residual are all updates, whatever the codec drops."""
    view, limits = view_client(jax.tree.map(jnp.asarray, clients()), jnp.int32(2)), Limits(32, 1)

    def train(algorithm):
        sent = algorithm.broadcast(algorithm.init_server(variables))
        local = jax.jit(lambda state: algorithm.local(sent, state, view, limits, new_key()))
        return local, algorithm.init_client(variables)

    local, state = train(ALGORITHM)
    plain = local(state).update
    lossless = compressed(ALGORITHM, up=top_k(1.0), down=top_k(1.0))
    local, state = train(lossless)
    arrived = lossless.receive(local(state).update)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), plain, arrived))

    lossy = compressed(ALGORITHM, up=top_k(0.1), error_feedback=True)
    local, state = train(lossy)
    arrived = jax.tree.map(jnp.zeros_like, plain)
    for _ in range(3):
        result = local(state)
        arrived = jax.tree.map(jnp.add, arrived, lossy.receive(result.update))
        state = result.client_state
    for whole, sent, left in zip(
        *(jax.tree.leaves(tree) for tree in (plain, arrived, state["residual"])), strict=True
    ):
        np.testing.assert_allclose(3 * whole, sent + left, rtol=1e-5, atol=1e-7)
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(state["residual"]))


def test_error_feedback_wants_updates_of_the_form_of_the_model(variables):
    algorithm = compressed(
        mime_lite(TASK, optax.sgd(0.1), SCHEDULE), up=top_k(0.1), error_feedback=True
    )
    with pytest.raises(ConfigError, match="error feedback needs one whose updates"):
        make(algorithm, variables)


def test_a_server_trusts_what_arrives(variables):
    algorithm = compressed(ALGORITHM, up=quantize(8), down=quantize(16))
    data = clients()
    rule = fl_trust(
        algorithm, SCHEDULE, {n: v[:32] for n, v in data.examples.items()}, variables, key=new_key()
    )
    sent = algorithm.broadcast(algorithm.init_server(variables))
    ones = jax.tree.map(lambda leaf: jnp.ones((2, *leaf.shape)), variables)
    mean = rule.at(sent, 0).combine(ones, jnp.ones(2), jnp.zeros(2, jnp.int32))
    assert jax.tree.structure(mean) == jax.tree.structure(variables)
