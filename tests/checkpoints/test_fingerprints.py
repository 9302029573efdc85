import hashlib

import jax.numpy as jnp
import numpy as np

from jaxlab.checkpoints.fingerprints import tree_sha256

TREE = {"a": {"w": jnp.arange(4.0).reshape(2, 2)}, "b": np.ones(3, np.float32)}


def test_the_checksum_is_that_of_names_types_shapes_and_values():
    data = b"a/w float32 (2, 2)" + np.arange(4, dtype="<f4").tobytes()
    data += b"b float32 (3,)" + np.ones(3, "<f4").tobytes()
    assert tree_sha256(TREE) == hashlib.sha256(data).hexdigest()
    assert tree_sha256({"b": TREE["b"], "a": TREE["a"]}) == tree_sha256(TREE)


def test_what_does_not_count_changes_nothing():
    other = {**TREE, "b": np.zeros(3, np.float32)}
    assert tree_sha256(other) != tree_sha256(TREE)
    own = [tree_sha256(tree, lambda path: path.startswith("a/")) for tree in (TREE, other)]
    assert own[0] == own[1]
    assert tree_sha256({**TREE, "b": np.ones((3, 1), np.float32)}) != tree_sha256(TREE)
