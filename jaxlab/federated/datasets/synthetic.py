"""Data sets that are drawn: a mixture of logistic models, linear regression, quadratics.

References:
  Marfoq, Neglia, Bellet, Kameni, Vidal 2021, arXiv:2108.10252 (the mixture);
  `federatedscope/nlp/dataset/leaf_synthetic.py`, `federatedscope/tabular/dataloader/toy.py` and
  `quadratic.py` of FederatedScope 0.3.0.
"""

import numpy as np
from jaxtyping import Float64

from jaxlab.federated.client_data import ClientData, gather_clients
from jaxlab.federated.datasets.federated_data import Arrays, DataInfo, FederatedData
from jaxlab.federated.strategy import ConfigError

MIN_CURVATURE, MAX_CURVATURE = 0.02, 12.5


def make_logistic_mixture(
    num_clients: int = 300,
    *,
    dim: int = 150,
    num_components: int = 3,
    alpha: float = 0.4,
    noise: float = 0.1,
    num_val: int = 5000,
    num_test: int = 5000,
    seed: int = 0,
) -> FederatedData:
    """Clients whose labels follow mixtures of a few logistic models.

    theta_c ~ U(-1, 1)^dim; a client's weights ~ Dirichlet(alpha); x ~ U(-1, 1)^dim; the counts of
    the components are multinomial; y = round(sigmoid(x theta_c + N(0, noise^2))). A client has
    min(int(lognormal(4, 2)) + 50, 1000) training examples. Every client is drawn from a stream of
    its own: it does not depend on how many others there are.

    Args:
      num_clients: clients.
      dim: numbers of an input.
      num_components: logistic models.
      alpha: concentration of the weights; small ones make clients of one component.
      noise: standard deviation before the sigmoid.
      num_val: validation examples of a client.
      num_test: test examples of a client.
      seed: of everything.

    Returns:
      `x` (dim,) float32 and `y` int32, 2 classes.

    Raises:
      ConfigError: (a ValueError) if there is no client or alpha is not positive.
    """
    _check_clients(num_clients)
    if alpha <= 0:
        raise ConfigError(f"alpha={alpha} must be positive")
    theta = np.random.default_rng([seed, 0]).uniform(-1, 1, (num_components, dim))
    parts: tuple[list[Arrays], ...] = ([], [], [])
    for client in range(num_clients):
        rng = np.random.default_rng([seed, 1, client])
        weights = rng.dirichlet(np.full(num_components, alpha))
        num_train = min(int(rng.lognormal(4, 2)) + 50, 1000)
        for part, count in zip(parts, (num_train, num_val, num_test), strict=True):
            part.append(_mixture(rng, theta, weights, noise, count))
    info = DataInfo("synthetic", f"drawn, seed {seed}", "", 2)
    return _federated(info, *(_gather(part) for part in parts))


def make_linear_regression(
    num_clients: int = 5,
    *,
    num_examples: int = 1000,
    dim: int = 5,
    seed: int = 0,
) -> FederatedData:
    """Clients with one linear law and inputs of different scale: client c has x ~ N(0, (c/2)^2).

    Validation and test inputs are N(0, 1) and the same for all clients; weights and bias are drawn
    from N(0, 1), and y has no noise, so that the best model is exact.

    Returns:
      `x` (dim,) float32 and `y` (1,) float32.

    Raises:
      ConfigError: (a ValueError) if there is no client.
    """
    _check_clients(num_clients)
    rng = np.random.default_rng(seed)
    weights, bias = rng.normal(size=dim), rng.normal()

    def draw(scale: float) -> Arrays:
        x = rng.normal(0.0, scale, (num_examples, dim))
        y = (x @ weights + bias)[:, None]
        return {"x": x.astype(np.float32), "y": y.astype(np.float32)}

    train = _gather([draw(0.5 * client) for client in range(1, num_clients + 1)])
    shared = [gather_clients(draw(1.0), [np.arange(num_examples)] * num_clients) for _ in "vt"]
    return _federated(DataInfo("toy", f"drawn, seed {seed}"), train, *shared)


def make_quadratics(
    num_clients: int,
    *,
    dim: int = 1,
    min_curvature: float = MIN_CURVATURE,
    max_curvature: float = MAX_CURVATURE,
) -> FederatedData:
    """One example a client, its curvature A_i: the loss is x^T A_i x / 2, the best x is 0.

    A_i is a_i times the identity, a_i = min (max / min)^((i - 1) / (N - 1)). After one step of
    gradient descent with rate r on every client, the mean of models is (1 - r mean(a)) x: a closed
    form for tests.

    Returns:
      `x` (dim, dim) float32, the curvature, and `y` float32, the value at the best x: 0. Training,
      validation and test are the same.

    Raises:
      ConfigError: (a ValueError) if there is no client, or a curvature is not positive.
    """
    _check_clients(num_clients)
    if not 0 < min_curvature <= max_curvature:
        raise ConfigError(
            f"min_curvature={min_curvature} and max_curvature={max_curvature}; wanted "
            "0 < min <= max"
        )
    curvatures = np.geomspace(min_curvature, max_curvature, num_clients)
    x = (curvatures[:, None, None] * np.eye(dim)).astype(np.float32)
    data = gather_clients(
        {"x": x, "y": np.zeros(num_clients, np.float32)}, list(np.arange(num_clients)[:, None])
    )
    return _federated(DataInfo("quadratic", "closed form"), data, data, data)


def _mixture(
    rng: np.random.Generator,
    theta: Float64[np.ndarray, "components dim"],
    weights: Float64[np.ndarray, " components"],
    noise: float,
    count: int,
) -> Arrays:
    counts = rng.multinomial(count, weights)
    component = rng.permutation(np.repeat(np.arange(len(weights)), counts))
    x = rng.uniform(-1, 1, (count, theta.shape[1]))
    scores = (x * theta[component]).sum(axis=1) + rng.normal(0, noise, count)
    # round(sigmoid(s)) is 1 exactly where s > 0.
    return {"x": x.astype(np.float32), "y": (scores > 0).astype(np.int32)}


def _gather(parts: list[Arrays]) -> ClientData:
    sizes = np.array([len(part["y"]) for part in parts], np.int32)
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return ClientData({**arrays}, (np.cumsum(sizes) - sizes).astype(np.int32), sizes)


def _federated(
    info: DataInfo, train: ClientData, val: ClientData, test: ClientData
) -> FederatedData:
    names = tuple(str(number + 1) for number in range(train.num_clients))
    return FederatedData(info, names, train, val, test)


def _check_clients(num_clients: int) -> None:
    if num_clients < 1:
        raise ConfigError(f"num_clients={num_clients} must be at least 1")
