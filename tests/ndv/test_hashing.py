"""Hashes: published vectors, a slow second form, the same bits on host and device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.ndv.hashing import (
    AUTHORS,
    FAST,
    INTERCHANGE,
    Hasher,
    Lanes,
    fmix32,
    hash_bytes,
    hash_words,
    join_words,
    leading_zeros,
    murmur3_x64_128,
    murmur3_x64_128_words,
    murmur3_x86_64,
    split_words,
    text_words,
    trailing_zeros,
)

FOX = b"The quick brown fox jumps over the lazy dog"
RECORD = b"I will not buy this record, it is scratched."


def packed(texts):
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
    return np.frombuffer(b"".join(texts), np.uint8), offsets


def words_of(rng, rows):
    edges = np.array([0, 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64 - 1], np.uint64)
    return np.concatenate([edges, rng.integers(0, 2**64, rows, np.uint64)])


def slow_x64_128(text, seed):
    """MurmurHash3 x64 128 with Python's integers, one byte string at a time."""
    mask = 2**64 - 1
    c1, c2 = 0x87C37B91114253D5, 0x4CF5AD432745937F

    def rotate(x, bits):
        return ((x << bits) | (x >> (64 - bits))) & mask

    def mix(x):
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            x = (x ^ (x >> 33)) * factor & mask
        return x ^ (x >> 33)

    h1 = h2 = seed
    for at in range(0, len(text) // 16 * 16, 16):
        k1, k2 = (int.from_bytes(text[at + i : at + i + 8], "little") for i in (0, 8))
        h1 ^= rotate(k1 * c1 & mask, 31) * c2 & mask
        h1 = ((rotate(h1, 27) + h2) * 5 + 0x52DCE729) & mask
        h2 ^= rotate(k2 * c2 & mask, 33) * c1 & mask
        h2 = ((rotate(h2, 31) + h1) * 5 + 0x38495AB5) & mask
    tail = text[len(text) // 16 * 16 :]
    h2 ^= rotate(int.from_bytes(tail[8:], "little") * c2 & mask, 33) * c1 & mask
    h1 ^= rotate(int.from_bytes(tail[:8], "little") * c1 & mask, 31) * c2 & mask
    h1, h2 = h1 ^ len(text), h2 ^ len(text)
    h1 = (h1 + h2) & mask
    h1, h2 = mix(h1), mix((h2 + h1) & mask)
    h1 = (h1 + h2) & mask
    return h1, (h2 + h1) & mask


def test_published_vectors():
    first, second = murmur3_x64_128(*packed([b"", b"hello", FOX, RECORD]), 0)
    assert [f"{a:016x}{b:016x}" for a, b in zip(first, second, strict=True)] == [
        "0" * 32,
        "cbd8a7b341bd9b025b1e906a48ae1d19",
        "e34bbc7bbc071b6c7a433ca9c49a9347",
        "c382657f9a06c49d4a71fdc6d9b0d48f",
    ]
    # The first two 32-bit words of MurmurHash3 x86 128; the first one is the lower half.
    hashes = murmur3_x86_64(*packed([FOX, RECORD]), 0)
    assert [f"{int(h):016x}" for h in hashes] == ["ecee2c672f1583c3", "25ac5e40a0a9683b"]
    assert int(murmur3_x86_64(*packed([b"value 17"]), 313)[0]) == 0xF70E97BFDA34B77F


def test_every_length_equals_a_slow_form():
    rng = np.random.default_rng(0)
    texts = [rng.bytes(length) for length in [*range(36), 35, 7, 0]]
    first, second = murmur3_x64_128(*packed(texts), 9001)
    assert [(int(a), int(b)) for a, b in zip(first, second, strict=True)] == [
        slow_x64_128(text, 9001) for text in texts
    ]


def test_the_seed_hash_of_data_sketches():
    seed_bytes = np.array([9001], "<u8").view(np.uint8)
    first, _ = murmur3_x64_128(seed_bytes, np.array([0, 8]), 0)
    assert int(first[0]) % 2**16 == 0x93CC


@pytest.mark.parametrize("seed", [0, 77])
def test_short_texts_are_their_own_words_and_long_ones_their_hash(seed):
    texts = [b"", b"a", b"a\0", b"\xff" * 7, b"sevenby", b"eightby8", b"a" * 40]
    words = text_words(*packed(texts), seed).tolist()
    for text, word in zip(texts, words, strict=True):
        if len(text) <= 7:
            assert word == int.from_bytes(text, "little") + (len(text) << 56)
        else:
            assert word == slow_x64_128(text, seed)[0]
    hashes = join_words(hash_bytes(*packed(texts), Hasher(0, seed))[0])
    again = join_words(hash_words(split_words(np.array(words, np.uint64)), Hasher(0, seed)))
    np.testing.assert_array_equal(hashes, again)
    assert len(set(hashes.tolist())) == len(texts)


def test_no_strings_have_no_hashes():
    lanes, second = hash_bytes(np.zeros(0, np.uint8), np.zeros(1, np.int64), INTERCHANGE)
    assert lanes.hi.shape == second.lo.shape == (0,)


@pytest.mark.parametrize("hasher", [FAST, Hasher(0, 77), INTERCHANGE, Hasher(1, 2**32 - 1)])
def test_host_and_device_give_the_same_bits(hasher):
    words = split_words(words_of(np.random.default_rng(1), 57))
    host = hash_words(words, hasher)
    device = jax.jit(hash_words, static_argnums=1)(Lanes(*map(jnp.asarray, words)), hasher)
    assert isinstance(host.hi, np.ndarray) and isinstance(device.hi, jax.Array)
    np.testing.assert_array_equal(host.hi, device.hi)
    np.testing.assert_array_equal(host.lo, device.lo)


def test_words_hash_as_their_eight_bytes():
    words = words_of(np.random.default_rng(2), 50)
    by_lanes = murmur3_x64_128_words(split_words(words), 9001)
    data = words.astype("<u8").view(np.uint8)
    by_bytes = murmur3_x64_128(data, np.arange(len(words) + 1) * 8, 9001)
    for lanes, expected in zip(by_lanes, by_bytes, strict=True):
        np.testing.assert_array_equal(join_words(lanes), expected)


def test_the_fast_hash_never_collides_and_spreads_every_pattern():
    patterns = {
        "small": np.arange(65_536, dtype=np.uint64),
        "high": np.arange(65_536, dtype=np.uint64) << np.uint64(40),
        "strided": np.arange(65_536, dtype=np.uint64) * np.uint64(4096),
        "floats": np.arange(65_536, dtype=np.float64).view(np.uint64),
    }
    for name, words in patterns.items():
        hashes = join_words(hash_words(split_words(words), FAST))
        assert len(np.unique(hashes)) == len(words), name
        for shift in (0, 16, 32, 54):  # any ten bits are uniform
            counts = np.bincount((hashes >> np.uint64(shift)) % np.uint64(1024), minlength=1024)
            chi_square = ((counts - 64) ** 2 / 64).sum()
            # 1,023 degrees of freedom: five standard deviations either way.
            assert abs(chi_square - 1023) < 5 * np.sqrt(2 * 1023), (name, shift)


def test_a_seed_and_a_kind_change_all_hashes():
    words = split_words(np.arange(100, dtype=np.uint64))
    hashes = [join_words(hash_words(words, h)) for h in (FAST, Hasher(0, 1), INTERCHANGE)]
    assert len(np.unique(np.concatenate(hashes))) == 300


def test_fmix32_is_the_published_finaliser():
    # MurmurHash3 x86 32 of the empty string with seed 1 is the finaliser of 1.
    np.testing.assert_array_equal(fmix32(np.array([0, 1], np.uint32)), [0, 0x514E28B7])


def test_leading_and_trailing_zeros_count_over_both_words():
    words = [0, 1, 2**31, 2**32, 2**63, 12, 3 << 40]
    host = split_words(np.array(words, np.uint64))
    for lanes in (host, Lanes(*map(jnp.asarray, host))):
        leading, trailing = leading_zeros(lanes), trailing_zeros(lanes)
        assert leading.tolist() == [64 - word.bit_length() for word in words]
        assert trailing.tolist() == [64, 0, 31, 32, 63, 2, 40]
        assert isinstance(leading, type(lanes.hi)) and isinstance(trailing, type(lanes.hi))


def test_bad_hashers_are_refused():
    with pytest.raises(ValueError, match="hash_id=3 is not one of"):
        Hasher(3)
    with pytest.raises(ValueError, match="seed=-1 is not a 32-bit"):
        Hasher(0, -1)
    with pytest.raises(ValueError, match="hash_id=2 reads the text"):
        hash_words(split_words(np.zeros(1, np.uint64)), AUTHORS)
