"""Settings of every test: 8 virtual devices, one XLA thread a worker, strict JAX and types."""

import os
import warnings

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

# Every public signature of the library is checked against the arrays that the tests pass.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    install_import_hook("jaxlab", "beartype.beartype")
