import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxlab.federated.client_data import Schedule, gather_clients
from jaxlab.federated.labelled import classification
from jaxlab.federated.system_metrics import count_flops, device_memory, measure_model


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(50, use_bias=False)(x)


def test_a_product_of_matrices_is_two_operations_a_term():
    shapes = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((16, 4), jnp.float32)
    assert count_flops(jnp.matmul, *shapes) == 2 * 8 * 16 * 4


def test_a_step_of_a_layer_is_a_product_forward_and_one_back():
    x, y = np.zeros((20, 400), np.float32), np.zeros(20, np.int32)
    data = jax.tree.map(jnp.asarray, gather_clients({"x": x, "y": y}, [np.arange(20)]))
    task = classification(Linear(), jax.ShapeDtypeStruct((400,), jnp.float32))
    variables = task.init(jax.random.key(0))
    cost = measure_model(task, optax.sgd(0.1), Schedule(10), variables, data)
    assert cost.num_parameters == 20_000 and cost.num_bytes == 80_000
    product = 2 * 10 * 400 * 50  # the inputs need no gradient
    assert 2 * product < cost.step_flops < 2.3 * product
    assert cost.sample_flops == cost.step_flops / 10


def test_memory_is_told_where_devices_tell_it():
    assert all(value >= 0 for value in device_memory().values())
