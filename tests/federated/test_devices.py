import json

import numpy as np
import pytest

from jaxlab.federated.devices import Device, answer_time_us, assign_devices, load_devices, slowness
from jaxlab.federated.strategy import ConfigError


def test_an_answer_takes_three_passes_and_the_model_down_and_up():
    # 20 samples of 25 ms, 1000 kibibits each way at 200 a second: 1.5 s and 10 s.
    assert answer_time_us(Device(25.0, 200.0), 20, 128_000, 128_000) == 11_500_000


def test_a_device_without_a_network_sends_at_once():
    assert answer_time_us(Device(10.0), 10, 10**9, 10**9) == 300_000


def test_slowness_is_the_time_of_a_sample_and_a_transfer():
    assert slowness(Device(500.0, 100.0), 128 * 100) == pytest.approx(1.5)


def test_devices_are_read_in_the_order_of_their_file(tmp_path):
    path = tmp_path / "devices.json"
    profile = {"computation": 20.5, "communication": 900}
    path.write_text(json.dumps({"7": profile, "2": {**profile, "computation": 3}}))
    assert load_devices(path) == (Device(20.5, 900.0), Device(3.0, 900.0))


@pytest.mark.parametrize(
    "text, wrong",
    [
        ("{", "is not JSON"),
        ("[]", "holds a list of 0; wanted an object"),
        ('{"1": {"computation": 3}}', "entry '1': got {'computation': 3}; wanted numbers"),
        ('{"1": {"computation": -3, "communication": 1}}', "compute_ms=-3.0 must not be negative"),
        ('{"1": 5}', "entry '1': got 5"),
    ],
)
def test_a_broken_file_is_named_with_its_entry(tmp_path, text, wrong):
    path = tmp_path / "devices.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=wrong):
        load_devices(path)
    with pytest.raises(FileNotFoundError, match="none.json does not exist"):
        load_devices(tmp_path / "none.json")


def test_profiles_are_drawn_without_replacement_if_there_are_enough():
    devices = tuple(Device(float(n)) for n in range(10))
    rng = np.random.default_rng(0)
    assert len(set(assign_devices(devices, 10, rng))) == 10
    assert len(assign_devices(devices, 25, rng)) == 25
