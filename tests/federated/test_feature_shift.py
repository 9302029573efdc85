import numpy as np
import pytest

from jaxlab.federated.client_data import gather_clients
from jaxlab.federated.feature_shift import add_client_noise, rotate_client_images
from jaxlab.federated.strategy import ConfigError


def data_of(x, *sizes):
    return gather_clients({"x": x}, np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1]))


def test_noise_grows_with_the_number_of_the_client():
    data = data_of(np.zeros((9000, 4)), 3000, 3000, 3000)
    noisy = add_client_noise(data, 0.6, seed=0)
    variances = noisy.examples["x"].reshape(3, -1).var(axis=1)
    # 12,000 draws each: one standard deviation of the variance is 1.3 %.
    np.testing.assert_allclose(variances, [0.2, 0.4, 0.6], rtol=0.06)
    assert not data.examples["x"].any()
    other = add_client_noise(data_of(np.zeros((5000, 4)), 2000, 3000, 0), 0.6, seed=0)
    np.testing.assert_array_equal(other.examples["x"][2000:], noisy.examples["x"][3000:6000])


def test_images_turn_by_quarters():
    images = np.arange(5 * 9.0).reshape(5, 3, 3, 1)
    turned = rotate_client_images(data_of(images, 1, 1, 1, 1, 1)).examples["x"]
    for client in range(5):
        np.testing.assert_array_equal(turned[client], np.rot90(images[client], client))


def test_other_fields_and_types_are_refused():
    data = data_of(np.zeros((2, 3), np.uint8), 2)
    with pytest.raises(ConfigError, match="x of type uint8; wanted .* floating point"):
        add_client_noise(data, 1.0, seed=0)
    with pytest.raises(ConfigError, match=r"x has the shape \(2, 3\); wanted \(examples, n, n"):
        rotate_client_images(data)
    with pytest.raises(ConfigError, match=r"no 'image'; they have \['x'\]"):
        rotate_client_images(data, name="image")
