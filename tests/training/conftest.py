"""One compilation cache for the tests of the loop, which run the same tiny program many times."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

SETTINGS = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    """Folder of the compiled programs, for child processes too."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module", autouse=True)
def shared_programs(cache_dir):
    """Keeps compiled programs while a module of tests runs."""
    settings = SETTINGS | {"jax_compilation_cache_dir": str(cache_dir)}
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
