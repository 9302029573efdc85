import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.distillation.fusion import FixedWeights, GradientBalance, LogVariances, RunningMeans
from jaxlab.distillation.means import Mean

BASE = FixedWeights((("soft", 2.0), ("hidden", 0.5)))


def terms(soft, hidden, *, hidden_count=2.0):
    return {
        "soft": Mean(jnp.float32(4 * soft), jnp.float32(4)),
        "hidden": Mean(jnp.float32(hidden_count * hidden), jnp.float32(hidden_count)),
    }


def test_fixed_weights_multiply_and_report_what_they_weigh():
    fused = BASE.apply(terms(3.0, 10.0), {"hidden": jnp.float32(0.1)})
    assert float(fused.loss) == pytest.approx(2 * 3 + 0.5 * 0.1 * 10)
    report = {name: float(value) for name, value in fused.metrics().items()}
    assert report == pytest.approx(
        {"term/soft": 3, "term/hidden": 10, "weight/soft": 2, "weight/hidden": 0.05}
    )


def test_running_means_are_those_of_a_loop():
    rule, batches = RunningMeans(BASE, decay=0.8), [(3.0, 100.0), (2.0, 50.0), (1.0, 400.0)]
    state, slow, total = rule.init(), np.zeros(2), 0.0
    for soft, hidden in batches:
        state, fused = jax.jit(rule.update)(state, terms(soft, hidden))
        slow = 0.8 * slow + 0.2 * np.array([soft, hidden])
        total = 0.8 * total + 0.2
        weights = np.array([2.0, 0.5]) / (slow / total)
        assert float(fused.weights["soft"]) == pytest.approx(weights[0], rel=1e-5)
        assert float(fused.weights["hidden"]) == pytest.approx(weights[1], rel=1e-5)
        assert float(fused.loss) == pytest.approx(weights @ [soft, hidden], rel=1e-5)
        assert float(fused.values["hidden"]) == pytest.approx(hidden)


def test_the_first_batch_weighs_every_term_alike_whatever_its_size():
    _, fused = RunningMeans(BASE).update(RunningMeans(BASE).init(), terms(1e-4, 1e5))
    assert float(fused.loss) == pytest.approx(2.5, rel=1e-5)


def test_no_gradient_goes_through_a_running_mean():
    rule = RunningMeans(BASE)

    def loss(soft):
        return rule.update(rule.init(), terms(soft, 1.0))[1].loss

    assert float(jax.grad(loss)(jnp.float32(4.0))) == pytest.approx(2.0 / 4.0, rel=1e-5)


@pytest.mark.parametrize("seen_before", [False, True])
def test_a_term_without_entries_moves_nothing(seen_before):
    rule = RunningMeans(BASE)
    state = rule.init()
    if seen_before:
        state, _ = rule.update(state, terms(3.0, 10.0))
    after, fused = rule.update(state, terms(3.0, 0.0, hidden_count=0.0))
    np.testing.assert_array_equal(after.means["hidden"], state.means["hidden"])
    np.testing.assert_array_equal(after.totals["hidden"], state.totals["hidden"])
    assert float(fused.loss) == pytest.approx(2.0, rel=1e-5)
    assert float(fused.weights["hidden"]) < 1.0


def test_learned_variances_start_as_given_and_settle_at_the_logarithm_of_the_loss():
    rule, batch = LogVariances(BASE), terms(3.0, 100.0)
    start = rule.apply(rule.init(), batch)
    assert float(start.loss) == pytest.approx(float(BASE.apply(batch).loss))
    best = {"soft": jnp.log(3.0), "hidden": jnp.log(100.0)}
    gradient = jax.grad(lambda s: rule.apply(s, batch).loss)(best)
    np.testing.assert_allclose(jax.tree.leaves(gradient), 0.0, atol=1e-6)
    fused = rule.apply(best, batch)
    assert float(fused.loss) == pytest.approx(2 * (1 + np.log(3)) + 0.5 * (1 + np.log(100)))
    missing = jax.grad(lambda s: rule.apply(s, terms(3.0, 0.0, hidden_count=0.0)).loss)(best)
    assert float(missing["hidden"]) == 0.0


def shared_terms(params):
    return {
        "soft": Mean(4 * (params["w"] ** 2).sum(), jnp.float32(4)),
        "hidden": Mean(2 * 100 * params["w"][0] + 2 * params["b"], jnp.float32(2)),
    }


def test_gradient_norms_are_those_of_every_term_alone():
    rule, shared = GradientBalance(BASE), {"w": jnp.asarray([3.0, 4.0]), "b": jnp.float32(1.0)}
    norms = rule.norms(shared_terms, shared)
    assert float(norms["soft"]) == pytest.approx(10.0)
    assert float(norms["hidden"]) == pytest.approx(np.hypot(100, 1))


def test_balanced_gradients_have_norms_in_the_ratio_of_the_weights():
    rule, shared = GradientBalance(BASE), {"w": jnp.asarray([3.0, 4.0]), "b": jnp.float32(1.0)}
    before = rule.apply(rule.init(), shared_terms(shared))
    assert {name: float(w) for name, w in before.weights.items()} == {"soft": 2.0, "hidden": 0.5}
    norms = rule.norms(shared_terms, shared)
    state = rule.update(rule.init(), norms)
    fused = rule.apply(state, shared_terms(shared))
    weighted = {name: float(fused.weights[name] * norms[name]) for name in norms}
    assert weighted["soft"] / weighted["hidden"] == pytest.approx(4.0, rel=1e-5)
    assert weighted["soft"] + 4 * weighted["hidden"] == pytest.approx(
        2 * 2 * (10 + np.hypot(100, 1)) / 2, rel=1e-5
    )
    again = rule.update(state, {"soft": norms["soft"], "hidden": jnp.float32(0.0)})
    np.testing.assert_array_equal(again.means["hidden"], state.means["hidden"])


def test_wrong_weights_are_told():
    with pytest.raises(ValueError, match="b=-1.0, c=nan must be 0 or more"):
        FixedWeights((("a", 1.0), ("b", -1.0), ("c", float("nan"))))
    with pytest.raises(ValueError, match="more than once"):
        FixedWeights((("a", 1.0), ("a", 2.0)))
    with pytest.raises(ValueError, match=r"weights of \['hidden', 'soft'\], terms \['soft'\]"):
        BASE.apply({"soft": terms(1.0, 1.0)["soft"]})
    with pytest.raises(ValueError, match=r"decay=1.0"):
        RunningMeans(BASE, decay=1.0)
    with pytest.raises(ValueError, match=r"decay=-0.1"):
        GradientBalance(BASE, decay=-0.1)
