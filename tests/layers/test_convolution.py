import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.layers.convolution import Conv, average_pool, convolve

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(2, 7, 6, 3)), jnp.float32)


def reference(x, kernel, stride):
    """Convolution in float64, one output place at a time, padded on both sides alike."""
    size = kernel.shape[0]
    pad = (size - 1) // 2
    x = np.pad(np.asarray(x, np.float64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, columns = ((n - size) // stride + 1 for n in x.shape[1:3])
    out = np.zeros((x.shape[0], rows, columns, kernel.shape[3]))
    for i in range(rows):
        for j in range(columns):
            window = x[:, i * stride : i * stride + size, j * stride : j * stride + size]
            out[:, i, j] = np.einsum("bhwc,hwco->bo", window, kernel)
    return out


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_convolution_equals_float64(size, stride):
    kernel = jnp.asarray(RNG.normal(size=(size, size, 3, 5)), jnp.float32)
    expected = reference(X, np.asarray(kernel, np.float64), stride)
    np.testing.assert_allclose(convolve(X, kernel, stride), expected, rtol=1e-5, atol=1e-5)


def test_module_pads_symmetrically_and_starts_as_torch_does():
    variables = Conv(4, 3, 2).init(jax.random.key(0), X)
    kernel = variables["params"]["kernel"]
    assert kernel.shape == (3, 3, 3, 4)
    assert np.abs(kernel).max() <= 1 / np.sqrt(27)
    expected = reference(X, np.asarray(kernel, np.float64), 2)
    np.testing.assert_allclose(Conv(4, 3, 2).apply(variables, X), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [1, 2, 3])
def test_average_pool_leaves_out_what_does_not_fill_a_window(window):
    rows, columns = 7 // window, 6 // window
    expected = [
        [
            X[:, i * window : (i + 1) * window, j * window : (j + 1) * window].mean((1, 2))
            for j in range(columns)
        ]
        for i in range(rows)
    ]
    got = average_pool(X, window)
    np.testing.assert_allclose(got, np.array(expected).transpose(2, 0, 1, 3), rtol=1e-5, atol=1e-6)
