"""FedAvg in fedjax 0.0.17 (jax 0.4): its algorithm, its sampler, its `jit` backend."""

import functools
from typing import Any

import fedjax
import jax
import jax.numpy as jnp

from experiments.federated.peers.gate import open_gate, read_work


def loss(params: list[Any], batch: dict[str, Any], rng: Any) -> Any:
    """Mean cross-entropy of a batch; `params` are kernel, bias, kernel, ..."""
    del rng
    hidden = batch["x"]
    for kernel, bias in zip(params[0:-2:2], params[1:-2:2], strict=True):
        hidden = jax.nn.relu(hidden @ kernel + bias)
    logits = jax.nn.log_softmax(hidden @ params[-2] + params[-1])
    return -jnp.take_along_axis(logits, batch["y"][:, None], axis=1).mean()


def main() -> None:
    """Run rounds until no other is wanted."""
    path, gate = open_gate()
    work, x, y, layers = read_work(path)
    clients = {f"{i:06d}": {"x": x[i], "y": y[i].astype("int32")} for i in range(len(x))}
    data = fedjax.InMemoryFederatedData(clients)
    sampler = fedjax.client_samplers.UniformGetClientSampler(data, work["cohort_size"], seed=0)
    fedjax.set_for_each_client_backend("jit")
    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        jax.grad(loss),
        fedjax.optimizers.sgd(work["rate"]),
        fedjax.optimizers.sgd(1.0),
        fedjax.ShuffleRepeatBatchHParams(batch_size=work["batch_size"], num_epochs=1, seed=0),
    )
    state = algorithm.init([jnp.asarray(layer) for layer in layers])
    while gate.wait(functools.partial(getattr, state, "params")):
        state, diagnostics = algorithm.apply(state, sampler.sample())
        jax.block_until_ready((state.params, diagnostics))


if __name__ == "__main__":
    main()
