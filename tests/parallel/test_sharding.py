import jax
import jax.numpy as jnp
import optax
import pytest

from jaxlab.parallel import (
    ShardingRules,
    make_mesh,
    param_shardings,
    state_shardings,
    with_shardings,
)


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


PARAMS = {
    "layer_0": {
        "query": {"kernel": shape(16, 24), "bias": shape(24)},
        "mlp": {"up": {"kernel": shape(16, 40)}, "odd": shape(15, 9)},
    },
    "log_scale": shape(),
}


def specs(shardings):
    """Path -> mesh axis of each dimension, trailing Nones dropped."""
    found = {}
    for path, sharding in jax.tree.leaves_with_path(shardings):
        axes = tuple(sharding.spec)
        while axes and axes[-1] is None:
            axes = axes[:-1]
        found[jax.tree_util.keystr(path, simple=True, separator="/")] = axes
    return found


def test_replicated_rules_split_nothing():
    found = specs(param_shardings(make_mesh(), PARAMS, ShardingRules.replicated()))
    assert set(found.values()) == {()}
    assert len(found) == 5


def test_fsdp_takes_the_largest_divisible_dimension_of_big_arrays():
    found = specs(param_shardings(make_mesh(), PARAMS, ShardingRules.fsdp(min_size=100)))
    assert found == {
        "layer_0/query/kernel": (None, "data"),
        "layer_0/query/bias": (),  # small
        "layer_0/mlp/up/kernel": (None, "data"),
        "layer_0/mlp/odd": (),  # neither 15 nor 9 is divisible by 8
        "log_scale": (),
    }
    # 12 is larger and not divisible by 8; of two equal dimensions the first is taken.
    more = {"a": shape(8, 12), "b": shape(16, 16)}
    found = specs(param_shardings(make_mesh(), more, ShardingRules.fsdp(min_size=1)))
    assert found == {"a": ("data",), "b": ("data",)}


def test_first_matching_pattern_wins_and_fsdp_takes_a_free_dimension():
    rules = ShardingRules.from_table(
        {r"up/kernel$": (None, "model"), r"kernel$": ("model",)}, fsdp_min_size=100
    )
    found = specs(param_shardings(make_mesh(model=2), PARAMS, rules))
    assert found["layer_0/mlp/up/kernel"] == ("data", "model")
    assert found["layer_0/query/kernel"] == ("model", "data")
    assert found["layer_0/query/bias"] == ()


def test_all_misfits_come_in_one_error():
    rules = ShardingRules.from_table(
        {"odd$": ("model", None), "bias$": (None, "model"), "nothing": ("data",)}
    )
    with pytest.raises(ValueError) as error:
        param_shardings(make_mesh(model=2), PARAMS, rules)
    text = str(error.value)
    assert "layer_0/mlp/odd of shape (15, 9): dimension 15 is not divisible by 2" in text
    assert "layer_0/query/bias of shape (24,) has fewer dimensions" in text
    assert "pattern 'nothing' matches no parameter" in text


def test_a_pattern_hidden_by_an_earlier_one_is_not_reported_as_unused():
    rules = ShardingRules.from_table({"query/kernel": ("model",), "query/k": ()})
    found = specs(param_shardings(make_mesh(model=2), PARAMS, rules))
    assert found["layer_0/query/kernel"] == ("model",)


def test_bad_rules_are_refused_with_every_reason():
    with pytest.raises(ValueError) as error:
        ShardingRules(table=(("(", ("row",)), ("x", ("data", "data"))), fsdp_min_size=0)
    for words in ("'(' is not a regular", "['row']", "'x' uses an axis twice", "fsdp_min_size=0"):
        assert words in str(error.value)


def test_optimizer_states_follow_their_parameters():
    mesh = make_mesh(model=2)
    rules = ShardingRules.from_table({"query/kernel$": (None, "model")}, fsdp_min_size=400)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    state = {
        "params": PARAMS,
        "opt_state": jax.eval_shape(tx.init, PARAMS),
        "extra": {"average": PARAMS, "queue": shape(64, 16), "kernel": shape(16, 24)},
        "step": jax.ShapeDtypeStruct((), jnp.int32),
        "key": jax.eval_shape(lambda: jax.random.key(0)),
    }
    found = specs(state_shardings(mesh, state, PARAMS, rules))
    params = specs(param_shardings(mesh, PARAMS, rules))
    for path, axes in params.items():
        assert found[f"params/{path}"] == axes
        assert found[f"extra/average/{path}"] == axes
        assert found[f"opt_state/1/0/mu/{path}"] == axes
        assert found[f"opt_state/1/0/nu/{path}"] == axes
    assert found["extra/queue"] == ("data",)  # not a parameter: by size
    assert found["extra/kernel"] == ()  # a parameter's shape, not its path
    assert found["step"] == found["key"] == found["opt_state/1/0/count"] == ()


def test_factored_moments_of_other_shapes_do_not_take_the_parameters_layout():
    rules = ShardingRules.from_table({"kernel$": (None, "model")})
    params = {"kernel": shape(16, 24)}
    tx = optax.scale_by_factored_rms(min_dim_size_to_factor=8)
    state = jax.eval_shape(tx.init, params)
    found = specs(state_shardings(make_mesh(model=2), state, params, rules))
    assert found["v_row/kernel"] == found["v_col/kernel"] == ()


def test_abstract_tree_carries_shardings_for_restoring():
    mesh = make_mesh()
    shardings = param_shardings(mesh, PARAMS, ShardingRules.fsdp(min_size=100))
    target = with_shardings(PARAMS, shardings)
    kernel = target["layer_0"]["query"]["kernel"]
    assert (kernel.shape, kernel.dtype) == ((16, 24), jnp.float32)
    assert kernel.sharding == shardings["layer_0"]["query"]["kernel"]
