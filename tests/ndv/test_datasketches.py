"""DataSketches images: equal registers and hashes, byte-exact theta, damage; live with the peer."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlab.ndv import bottom_k, hll
from jaxlab.ndv import datasketches as ours
from jaxlab.ndv.columns import hash_column
from jaxlab.ndv.hashing import FAST, INTERCHANGE, Hasher, Lanes, join_words

GOLDEN = Path(__file__).parents[1] / "golden"
maker = runpy.run_path(str(GOLDEN / "make_datasketches.py"))
columns, repeated, LG_K = maker["columns"], maker["repeated"], maker["LG_K"]
THETA_LG_K = maker["THETA_LG_K"]
COLUMNS = ("ints", "strings", "floats")
ROWS = 20_000
update, merge = jax.jit(bottom_k.update), jax.jit(bottom_k.merge)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "datasketches.npz") as arrays:
        return dict(arrays)


def array_of(values):
    return np.array(values, np.int64) if not len(values) else np.array(values)


def hll_of(values, precision=LG_K):
    """Registers of a column, by NumPy."""
    lanes, _, second = hash_column(array_of(values), INTERCHANGE)
    return hll.update_on_host(hll.empty(precision, hasher=INTERCHANGE), lanes, second=second)


def bottom_k_of(values, lg_k):
    padded = np.zeros(ROWS, np.int64)
    padded[: len(values)] = values
    lanes = hash_column(padded, INTERCHANGE).lanes
    return update(bottom_k.empty(2**lg_k, hasher=INTERCHANGE), lanes, np.arange(ROWS) < len(values))


@pytest.mark.parametrize("name", COLUMNS)
def test_registers_equal_a_union_of_two_sketches(golden, name):
    image = golden[f"hll/{name}"].tobytes()
    theirs, own = ours.hll_from_bytes(image), hll_of(columns()[name])
    np.testing.assert_array_equal(own.registers, theirs.registers)
    assert theirs.hasher == INTERCHANGE
    later = golden[f"hll/{name}/after"].tobytes()
    assert later[6] > 0 == image[6]
    np.testing.assert_array_equal(ours.hll_from_bytes(later).registers, own.registers)
    # Their estimate of a union is another estimator of the same registers: well within its error.
    estimate = float(hll.distinct(theirs))
    assert estimate == pytest.approx(
        float(golden[f"hll/{name}/estimate"]), rel=0.2 / 2 ** (LG_K / 2)
    )


def test_a_device_builds_the_same_registers(golden):
    values = columns(300)["ints"]
    lanes, _, second = hash_column(np.array(values), INTERCHANGE)
    start = hll.empty(LG_K, hasher=INTERCHANGE)
    own = jax.jit(lambda s, h, o: hll.update(s, h, second=o))(start, lanes, second)
    theirs = ours.hll_from_bytes(golden["hll/few/300"].tobytes())
    np.testing.assert_array_equal(own.registers, theirs.registers)


@pytest.mark.parametrize("form", ["", "/updatable"])
@pytest.mark.parametrize("number", [0, 1, 5, 300])
def test_lists_and_sets_of_coupons_are_read(golden, number, form):
    theirs = ours.hll_from_bytes(golden[f"hll/few/{number}{form}"].tobytes())
    np.testing.assert_array_equal(
        theirs.registers, hll_of(columns(max(number, 3))["ints"][:number]).registers
    )


NARROW = maker["NARROW"]


@pytest.mark.parametrize("form", ["", "/updatable"])
@pytest.mark.parametrize("bits", [4, 6])
@pytest.mark.parametrize(("precision", "number", "name"), NARROW)
def test_registers_of_four_and_six_bits_are_read(golden, precision, number, name, bits, form):
    image = golden[f"hll{bits}/{name}{form}"].tobytes()
    own = hll_of(range(number), precision)
    np.testing.assert_array_equal(ours.hll_from_bytes(image).registers, own.registers)


@pytest.mark.parametrize("bits", [4, 6])
@pytest.mark.parametrize(("precision", "number", "name"), NARROW)
def test_registers_of_four_and_six_bits_are_written(golden, precision, number, name, bits):
    """As theirs but for flag 16 (no order) and the order-dependent estimate at 8."""
    own = bytearray(ours.hll_to_bytes(hll_of(range(number), precision), bits=bits))
    theirs = bytearray(golden[f"hll{bits}/{name}"].tobytes())
    if number:
        assert own[5] == 24
        for image in (own, theirs):
            image[5] = 8
            image[8:16] = bytes(8)
    # Their exceptions are in the order of a hash table.
    end = 40 + 2**precision // 2 if bits == 4 and name == "exceptions" else len(own)
    assert own[:end] == theirs[:end] and sorted(own[end:]) == sorted(theirs[end:])
    assert (end < len(own)) == (bits == 4 and name == "exceptions")


@given(st.integers(0, 45), st.lists(st.integers(0, 63), min_size=16, max_size=16))
@settings(max_examples=50, deadline=None)
def test_any_registers_come_back_in_any_width(least, ranks):
    registers = np.maximum(np.array(ranks, np.uint8), np.uint8(least))
    for bits in (4, 6, 8):
        image = ours.hll_to_bytes(hll.Hll(registers, INTERCHANGE), bits=bits)
        np.testing.assert_array_equal(ours.hll_from_bytes(image).registers, registers)


def test_two_million_registers_are_read_and_written():
    sketch = hll_of(range(5_000), 21)
    image = ours.hll_to_bytes(sketch, bits=4)
    assert len(image) == 40 + 2**20
    np.testing.assert_array_equal(ours.hll_from_bytes(image).registers, sketch.registers)


def test_an_image_of_registers_differs_from_theirs_in_order_alone(golden):
    """All bytes agree but flag 16 (no order) and the order-dependent estimate at 8."""
    theirs = bytearray(golden["hll/ints"].tobytes())
    own = bytearray(ours.hll_to_bytes(hll_of(columns()["ints"])))
    assert own[5] == 24
    sums_equal = np.allclose(*(np.frombuffer(image[16:32], "<f8") for image in (own, theirs)))
    assert sums_equal
    for image in (own, theirs):
        image[5] = 8
        image[8:32] = bytes(24)
    assert own == theirs


def test_an_empty_sketch_has_the_image_of_an_empty_one(golden):
    empty = hll.empty(LG_K, hasher=INTERCHANGE)
    assert ours.hll_to_bytes(empty) == golden["hll/few/0"].tobytes()


@pytest.mark.parametrize("number", [0, 1, 10, 10_000])
def test_theta_images_are_equal_byte_by_byte(golden, number):
    image = golden[f"theta/{number}"].tobytes()
    theirs = ours.theta_from_bytes(image)
    own = ours.theta_of_bottom_k(bottom_k_of(columns()["ints"][:number], THETA_LG_K))
    assert own.theta == theirs.theta
    np.testing.assert_array_equal(own.hashes, theirs.hashes)
    assert ours.theta_to_bytes(own) == image
    assert ours.theta_distinct(own) == pytest.approx(float(golden[f"theta/{number}/estimate"]))


def test_counts_of_bottom_k_equal_a_tuple_sketch(golden):
    sketch = bottom_k_of(repeated(), THETA_LG_K - 2)
    words = join_words(Lanes(sketch.hi, sketch.lo)) >> np.uint64(1)
    np.testing.assert_array_equal(words[:-1], golden["tuple/hashes"])
    np.testing.assert_array_equal(np.asarray(sketch.count)[:-1], golden["tuple/counts"])
    assert words[-1] == golden["tuple/theta"]
    assert golden["tuple/counts"].max() > 5  # the sum of many rows


def test_a_union_of_thetas_equals_the_theta_of_the_union():
    a, b = (bottom_k_of(np.arange(start, start + 600), 8) for start in (0, 300))
    together = ours.theta_of_bottom_k(merge(a, b))
    union = ours.theta_union(ours.theta_of_bottom_k(a), ours.theta_of_bottom_k(b), 256)
    assert union.theta == together.theta
    np.testing.assert_array_equal(union.hashes, together.hashes)


def test_every_truncation_and_every_extra_byte_is_refused(golden):
    for name, read in (
        ("hll/few/5", ours.hll_from_bytes),
        ("hll/few/300", ours.hll_from_bytes),
        ("theta/10", ours.theta_from_bytes),
    ):
        image = golden[name].tobytes()
        for length in range(len(image)):
            with pytest.raises(ValueError, match="truncated.* at offset"):
                read(image[:length])
        with pytest.raises(ValueError, match=f"1 bytes too many, from offset {len(image)}"):
            read(image + b"\0")
    for name in ("hll4/small", "hll4/small/updatable", "hll6/small"):
        image = golden[name].tobytes()
        for length in range(len(image)):
            with pytest.raises(ValueError, match="truncated"):
                ours.hll_from_bytes(image[:length])
        with pytest.raises(ValueError, match="1 bytes too many"):
            ours.hll_from_bytes(image + b"\0")
    for length in (0, 39, 40, 4135):
        with pytest.raises(ValueError, match="truncated"):
            ours.hll_from_bytes(golden["hll/ints"].tobytes()[:length])


def changed(image, offset, values):
    damaged = bytearray(image.tobytes())
    damaged[offset : offset + len(values)] = values
    return bytes(damaged)


@pytest.mark.parametrize(
    ("name", "offset", "values", "message"),
    [
        ("hll/ints", 1, [2], "serial version 2 is unknown"),
        ("hll/ints", 2, [3], "family 3 is not 7"),
        ("hll/ints", 3, [3], "lgK=3 is not from 4 to 21"),
        ("hll/ints", 5, [9], "big-endian"),
        ("hll/ints", 7, [6], "do not fit HLL_6 registers|padding|sums|above 63"),
        ("hll4/exceptions", 36, [2], "2 exceptions are announced"),
        ("hll4/exceptions", 36, [4], "truncated"),
        ("hll4/exceptions", 6, [1], "sums .* do not fit the registers"),
        ("hll4/exceptions", 6, [240], "exception of .* is less than 15"),
        ("hll4/exceptions", 2088, [0] * 4, "3 exceptions are announced and 2 listed"),
        ("hll4/exceptions", 2091, [0], "is less than 15 above|announced"),
        ("hll4/small", 40, [255], "0 exceptions are announced and 0 listed; 2 registers"),
        ("hll4/small", 32, [2], "2 registers at it"),
        ("hll6/small", 6, [3], "minimum 3, "),
        ("hll6/small", 36, [1], "1 exceptions do not fit HLL_6"),
        ("hll6/small", 52, [1], "the padding at offset 52 is not 0"),
        ("hll6/small", 40, [0], "do not fit"),
        ("hll/ints", 7, [11], "mode 11 with a preamble of 10"),
        ("hll/ints", 20, [255], "sums .* do not fit the registers"),
        ("hll/ints", 32, [77], "77 registers at it"),
        ("hll/ints", 6, [9], "minimum 9, .* registers with minimum"),
        ("hll/ints", 60, [64], "a register holds 64, above 63"),
        ("hll/few/5", 5, [12], "disagree on whether the sketch is empty"),
        ("hll/few/5", 8, [0, 0, 0, 0], "5 coupons are announced"),
        ("hll/few/5", 11, [0], "5 coupons are announced"),
        ("theta/10", 1, [4], "serial version 4 is unknown"),
        ("theta/10", 5, [18], "only compact images are read"),
        ("theta/10", 6, [0], "the image has the seed hash 0x9300"),
        ("theta/10", 16, [0] * 8, "a hash is 0 or not below theta"),
        ("theta/10", 23, [127], "not in the order"),
        ("theta/10000", 16, [0] * 8, "theta=0 is not from 1"),
        ("theta/10000", 16, [255, 0, 0, 0, 0, 0, 0, 0], "not below theta=255"),
        ("theta/0", 0, [3], "truncated"),
    ],
)
def test_damage_is_named(golden, name, offset, values, message):
    read = ours.hll_from_bytes if name.startswith("hll") else ours.theta_from_bytes
    with pytest.raises(ValueError, match=message):
        read(changed(golden[name], offset, values))


def test_other_hashes_have_no_image():
    for other in (FAST, Hasher(1, 7)):
        with pytest.raises(ValueError, match="build the sketch with hashing.INTERCHANGE"):
            ours.hll_to_bytes(hll.empty(6, hasher=other))
    with pytest.raises(ValueError, match=r"bits=5; images hold registers of \[4, 6, 8\] bits"):
        ours.hll_to_bytes(hll.empty(6, hasher=INTERCHANGE), bits=5)
    with pytest.raises(ValueError, match="build the sketch with hashing.INTERCHANGE"):
        ours.theta_of_bottom_k(bottom_k.empty(6))


@pytest.mark.parity
@pytest.mark.parametrize("name", COLUMNS)
def test_an_image_from_here_loads_there_and_unions_to_the_same_estimate(name):
    import datasketches as peer

    values = columns()[name]
    theirs = peer.hll_sketch(LG_K, peer.tgt_hll_type.HLL_8)
    for value in values[:60_000]:
        theirs.update(value)
    later = peer.hll_sketch(LG_K, peer.tgt_hll_type.HLL_8)
    for value in values[60_000:]:
        later.update(value)
    estimates = []
    loaded = peer.hll_sketch.deserialize(ours.hll_to_bytes(hll_of(values[60_000:])))
    for second in (later, loaded):
        union = peer.hll_union(LG_K)
        union.update(theirs)
        union.update(second)
        estimates.append(union.get_estimate())
        image = union.get_result(peer.tgt_hll_type.HLL_8).serialize_compact()
        read = ours.hll_from_bytes(image)
        np.testing.assert_array_equal(read.registers, hll_of(values).registers)
    assert estimates[0] == pytest.approx(estimates[1], rel=1e-12)


@pytest.mark.parity
@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("number", [0, 3, 40, 3_000, 163_840])
def test_registers_of_every_width_go_there_and_come_back(number, bits):
    import datasketches as peer

    kind = getattr(peer.tgt_hll_type, f"HLL_{bits}")
    for precision in (4, 12, 21):
        theirs = peer.hll_sketch(precision, kind)
        for value in range(number):
            theirs.update(value)
        own = hll_of(range(number), precision)
        for image in (theirs.serialize_compact(), theirs.serialize_updatable()):
            np.testing.assert_array_equal(ours.hll_from_bytes(image).registers, own.registers)
        loaded = peer.hll_sketch.deserialize(ours.hll_to_bytes(own, bits=bits))
        union = peer.hll_union(precision)
        union.update(loaded)
        there = union.get_result(kind).serialize_compact()
        np.testing.assert_array_equal(ours.hll_from_bytes(there).registers, own.registers)
        # Their estimate from an image without order is that of the registers.
        assert loaded.get_estimate() == pytest.approx(
            float(hll.distinct(own)), rel=0.3 / 2 ** (precision / 2)
        )


@pytest.mark.parity
def test_a_theta_image_from_here_loads_there_and_unions_to_the_same():
    import datasketches as peer

    values = columns(ROWS)["ints"]
    own = ours.theta_of_bottom_k(bottom_k_of(values[:12_000], 10))
    loaded = peer.compact_theta_sketch.deserialize(ours.theta_to_bytes(own))
    theirs = peer.update_theta_sketch(10)
    for value in values[8_000:]:
        theirs.update(value)
    union = peer.theta_union(10)
    union.update(loaded)
    union.update(theirs)
    read = ours.theta_from_bytes(union.get_result().serialize())
    expected = ours.theta_of_bottom_k(bottom_k_of(values, 10))
    assert read.theta == expected.theta
    np.testing.assert_array_equal(read.hashes, expected.hashes)
    # An untrimmed sketch holds exactly the hashes below its own theta.
    wide = ours.theta_of_bottom_k(bottom_k_of(values[8_000:], 15)).hashes
    own_theta = ours.theta_from_bytes(theirs.compact().serialize())
    np.testing.assert_array_equal(own_theta.hashes, wide[wide < np.uint64(own_theta.theta)])
