"""Makes datasketches.npz: images of Apache DataSketches of known values.

`python tests/golden/make_datasketches.py` with datasketches 5.2.0.
"""

from importlib.metadata import version
from pathlib import Path

import numpy as np

VALUES = 100_000
LG_K = 12
THETA_LG_K = 10
NARROW = ((4, 0, "none"), (4, 640, "small"), (9, 1_000, "early"), (12, 163_840, "exceptions"))


def columns(number=VALUES):
    """The same values in three types: whole numbers, texts, fractions with both zeros and NaN."""
    numbers = np.arange(number) - 1_000
    fractions = numbers / 7
    fractions[:3] = [0.0, -0.0, np.nan]
    return {
        "ints": numbers.tolist(),
        "strings": [f"value {i}" for i in numbers],
        "floats": fractions.tolist(),
    }


def repeated(number=20_000):
    """Values that occur often, seldom and once."""
    return np.random.default_rng(0).zipf(1.3, number).astype(np.int64) % 5_000


def as_array(image):
    return np.frombuffer(image, np.uint8)


def hll_images():
    import datasketches as ds

    made = {}
    for name, values in columns().items():
        union = ds.hll_union(LG_K)
        for part in (values[::2], values[1::2]):
            sketch = ds.hll_sketch(LG_K, ds.tgt_hll_type.HLL_8)
            for value in part:
                sketch.update(value)
            union.update(sketch)
        made[f"hll/{name}"] = union.get_result(ds.tgt_hll_type.HLL_8).serialize_compact()
        made[f"hll/{name}/estimate"] = union.get_estimate()
        # Estimating makes a union count the registers at their true minimum, not at 0.
        made[f"hll/{name}/after"] = union.get_result(ds.tgt_hll_type.HLL_8).serialize_compact()
    for number in (0, 1, 5, 300):
        sketch = ds.hll_sketch(LG_K, ds.tgt_hll_type.HLL_8)
        for value in columns()["ints"][:number]:
            sketch.update(value)
        made[f"hll/few/{number}"] = sketch.serialize_compact()
        made[f"hll/few/{number}/updatable"] = sketch.serialize_updatable()
    return made


def narrow_images():
    """Registers of 4 and 6 bits: none, relative to a minimum, at 0, with exceptions."""
    import datasketches as ds

    made = {}
    for lg_k, number, name in NARROW:
        for bits in (4, 6):
            sketch = ds.hll_sketch(lg_k, getattr(ds.tgt_hll_type, f"HLL_{bits}"))
            for value in range(number):
                sketch.update(value)
            made[f"hll{bits}/{name}"] = sketch.serialize_compact()
            made[f"hll{bits}/{name}/updatable"] = sketch.serialize_updatable()
    return made


def theta_images():
    import datasketches as ds

    made = {}
    for number in (0, 1, 10, 10_000):
        sketch = ds.update_theta_sketch(THETA_LG_K)
        for value in columns()["ints"][:number]:
            sketch.update(value)
        sketch.trim()
        made[f"theta/{number}"] = sketch.compact().serialize()
        made[f"theta/{number}/estimate"] = sketch.get_estimate()
    return made


def tuple_counts():
    import datasketches as ds

    sketch = ds.update_tuple_sketch(ds.AccumulatorPolicy(), THETA_LG_K - 2)
    for value in repeated().tolist():
        sketch.update(value, 1)
    sketch.trim()
    pairs = sorted((pair[0], pair[1]) for pair in sketch.compact())
    hashes, counts = (list(part) for part in zip(*pairs, strict=True))
    return {
        "tuple/hashes": np.array(hashes, np.uint64),
        "tuple/counts": np.array(counts, np.int64),
        "tuple/theta": np.uint64(sketch.theta64),
    }


def main():
    made = {**hll_images(), **narrow_images(), **theta_images(), **tuple_counts()}
    arrays = {
        name: as_array(value) if isinstance(value, bytes) else np.asarray(value)
        for name, value in made.items()
    }
    arrays["version"] = np.array(version("datasketches"))
    np.savez_compressed(Path(__file__).with_name("datasketches.npz"), **arrays)


if __name__ == "__main__":
    main()
