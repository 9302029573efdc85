"""The published learned estimator: its file, its numbers, and what its file may not do."""

import io
import pickle

import jax
import numpy as np
import pytest

from jaxlab.ndv.estimators import Status, estimate
from jaxlab.ndv.estndv import (
    WIDTHS,
    EstndvParams,
    estndv,
    load_estndv,
    make_estndv,
    public_estndv,
    save_estndv,
)
from jaxlab.ndv.profile import (
    profile_from_frequencies,
    profile_from_values,
    stack_profiles,
    to_dense,
    to_device,
)


def random_params(seed=0):
    rng = np.random.default_rng(seed)
    kernels = [rng.normal(size=(o, i)) / i**0.5 for i, o in zip(WIDTHS, WIDTHS[1:], strict=False)]
    biases = [rng.normal(size=o) / 10 for o in WIDTHS[1:]]
    return EstndvParams(
        tuple(kernel.astype(np.float32) for kernel in kernels),
        tuple(bias.astype(np.float32) for bias in biases),
    )


def public_params():
    return public_estndv().formula.args[0]


def published_file(params, descr="|O", protocol=2):
    """A file as the package has it: an array of arrays, pickled behind an npy header."""
    arrays = np.empty(14, object)
    arrays[:] = [leaf for pair in zip(*params, strict=True) for leaf in pair]
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": descr, "fortran_order": False, "shape": (14,)}
    )
    return stream.getvalue() + pickle.dumps(arrays, protocol)


def reference(params, frequencies, numbers, population):
    """The network by another road: one profile, float64, loops over the definition."""
    x = np.zeros(106)
    n, d = sum(frequencies * numbers), sum(numbers)
    tail = frequencies >= 100
    x[:6] = (
        population**2, n, population**2 / (n + 1e-6), d,
        sum((frequencies * numbers)[tail]), sum(numbers[tail]),
    )  # fmt: skip
    for i, f in zip(frequencies[~tail], numbers[~tail], strict=True):
        x[5 + i] = f
    x = np.log(np.abs(x) + 1e-3) - np.log(population + 0.1)
    for layer, (kernel, bias) in enumerate(zip(*params, strict=True)):
        x = kernel.astype(np.float64) @ x + bias
        if layer <= 4:
            x = np.where(x > 0, x, 0.01 * x)
    y = -max(x[0], 0.0)
    return np.exp(y + np.log(population + 0.1)) - 0.1 + sum(numbers[tail])


def test_the_public_weights_give_the_published_numbers():
    sample = profile_from_values(np.array([1, 1, 1, 3, 5, 5, 12]), population=100_000)
    assert float(estndv(public_params(), sample)) == pytest.approx(33.508654781344994, rel=1e-6)
    unique = profile_from_frequencies([1], [1000], population=10_000)
    assert float(estndv(public_params(), unique)) == pytest.approx(9999.999999999993, rel=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_the_network_equals_its_definition_on_host_and_device(seed):
    rng = np.random.default_rng(seed)
    params = random_params(seed) if seed % 2 else public_params()
    frequencies = np.unique(rng.integers(1, 300, 30))
    numbers = rng.integers(1, 10 ** rng.integers(1, 6), len(frequencies))
    population = int((frequencies * numbers).sum() * 10 ** rng.uniform(0.1, 4))
    profile = profile_from_frequencies(frequencies, numbers.astype(float), population=population)
    wanted = reference(params, frequencies, numbers, float(population))
    assert float(estndv(params, profile)) == pytest.approx(wanted, rel=1e-6)
    found = jax.jit(lambda p: estndv(params, p))(to_device(to_dense(profile, 128)))
    assert float(found) == pytest.approx(wanted, rel=1e-4)


def test_a_batch_equals_its_columns():
    profiles = [profile_from_frequencies([1, k], [50, 10], population=9000) for k in (2, 3, 150)]
    batch = [float(value) for value in estndv(public_params(), stack_profiles(profiles))]
    assert batch == pytest.approx([float(estndv(public_params(), p)) for p in profiles])


def test_as_an_estimator_it_is_clamped_and_says_so():
    full = profile_from_frequencies([1, 2], [3, 4], population=11)
    found = estimate(full, public_estndv())
    assert (float(found.value), int(found.status)) == (7.0, Status.FULL_SCAN)
    common = profile_from_frequencies([1, 5000], [1, 3], population=20_000)
    assert 4 <= float(estimate(common, public_estndv()).value) <= 4 + 20_000 - 15_001


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_the_package_s_file_and_ours_give_the_same_weights(tmp_path, protocol):
    params = random_params()
    theirs, ours = tmp_path / "model_paras.npy", tmp_path / "estndv.npz"
    theirs.write_bytes(published_file(params, protocol=protocol))
    save_estndv(ours, load_estndv(theirs))
    for found in (load_estndv(theirs), load_estndv(ours)):
        for one, other in zip(sum(found, ()), sum(params, ()), strict=True):
            np.testing.assert_array_equal(one, other)
    assert make_estndv(params).name == "ESTNDV"


class Evil:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize("content", [[Evil()], {"a": 1}, np.array(["text"]), [b"x"]])
def test_a_pickle_that_wants_anything_else_is_refused_and_not_executed(tmp_path, content, capsys):
    path = tmp_path / "bad.npy"
    header = published_file(random_params())[:128]
    path.write_bytes(header + pickle.dumps(content, 2))
    with pytest.raises(ValueError, match="holds no estndv weights"):
        load_estndv(path)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("length", [0, 5, 60, 200, 5000, 200_000])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path, length):
    path = tmp_path / "short.npy"
    path.write_bytes(published_file(random_params())[:length])
    with pytest.raises(ValueError, match=r"short\.npy holds no estndv weights"):
        load_estndv(path)


def test_weights_of_other_shapes_are_refused(tmp_path):
    params = random_params()
    wrong = EstndvParams((params.kernels[0][:5], *params.kernels[1:]), params.biases)
    save_estndv(tmp_path / "wrong.npz", wrong)
    with pytest.raises(ValueError, match="has arrays of shapes"):
        load_estndv(tmp_path / "wrong.npz")


@pytest.mark.parity
def test_a_thousand_profiles_equal_the_package(tmp_path):
    estimator = pytest.importorskip("estndv").ndvEstimator()
    rng = np.random.default_rng(0)
    for _ in range(1000):
        frequencies = np.unique(rng.integers(1, 300, rng.integers(1, 40)))
        numbers = rng.integers(1, 10 ** rng.integers(1, 6), len(frequencies))
        population = int((frequencies * numbers).sum() * 10 ** rng.uniform(0.1, 3))
        pairs = np.stack([frequencies, numbers], axis=1)
        wanted = float(estimator.profile_predict_batch([pairs], [population], is_sparse=True))
        profile = profile_from_frequencies(
            frequencies, numbers.astype(float), population=population
        )
        assert float(estndv(public_params(), profile)) == pytest.approx(wanted, rel=1e-5)
