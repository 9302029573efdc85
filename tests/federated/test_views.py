"""Views are of the picture that they are of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import federated
from jaxlab.federated.views import Views, noisy_views, picture_views

PICTURES = jnp.asarray(np.random.default_rng(0).random((6, 8, 10, 3)), jnp.float32)
STILL = Views(min_area=1.0, flip=0.0, color=0.0, gray=0.0, blur=0.0)


def look(views, seed=0):
    return np.asarray(jax.jit(picture_views(views))(jax.random.key(seed), PICTURES))


def changed(**options):
    return look(Views(**{**{f: getattr(STILL, f) for f in STILL.__dataclass_fields__}, **options}))


def test_without_strength_a_view_is_the_picture():
    np.testing.assert_array_equal(look(STILL), PICTURES)


def test_every_part_does_what_its_name_says():
    np.testing.assert_array_equal(changed(flip=1.0), PICTURES[:, :, ::-1])
    gray = changed(gray=1.0)
    np.testing.assert_allclose(gray[..., 0], PICTURES @ jnp.array([0.299, 0.587, 0.114]), rtol=1e-5)
    assert np.ptp(gray, axis=-1).max() < 1e-6
    assert changed(blur=1.0).std() < 0.95 * float(PICTURES.std())
    recolored = changed(color=0.4, color_probability=1.0)
    assert np.abs(recolored - PICTURES).max(axis=(1, 2, 3)).min() > 0.01


def test_a_crop_of_a_ramp_is_a_part_of_it():
    ramp = jnp.broadcast_to(jnp.linspace(0.2, 0.8, 16)[None, None, :, None], (5, 16, 16, 1))
    views = Views(min_area=0.5, flip=0.0, color=0.0, gray=0.0, blur=0.0)
    found = np.asarray(picture_views(views)(jax.random.key(1), ramp))
    inner = found[:, :, 2:-2, 0]  # cubic weights reach over the edge
    assert (np.diff(inner, axis=2) > 0).all()
    spread = inner[:, 0, -1] - inner[:, 0, 0]
    assert (spread < 0.6 * 11 / 15 + 0.02).all() and spread.min() < 0.6 * 11 / 15 - 0.02


def test_views_differ_by_key_and_by_picture():
    default = Views()
    one, other = look(default), look(default, 1)
    assert np.abs(one - other).max(axis=(1, 2, 3)).min() > 0.01
    assert one.min() >= 0 and one.max() <= 1
    same = jnp.broadcast_to(PICTURES[:1], PICTURES.shape)
    found = np.asarray(picture_views(default)(jax.random.key(0), same))
    assert np.abs(found[0] - found[1]).max() > 0.01


def test_noise_has_its_scale():
    x = jnp.zeros((100, 50))
    assert float(noisy_views(0.5)(jax.random.key(0), x).std()) == pytest.approx(0.5, rel=0.05)


def test_what_is_out_of_range_is_told_at_once():
    with pytest.raises(federated.ConfigError, match=r"flip=2.*min_area=0"):
        Views(flip=2.0, min_area=0.0)
