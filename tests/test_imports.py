"""What an import costs and what it brings with it, measured in fresh processes."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import jaxlab

CHECKOUT = Path(__file__).resolve().parents[1]
ENGINES = ("torch", "tensorflow", "transformers", "orbax", "grain", "pyspark", "flwr")
SLOW = ("tensorflow_datasets", "matplotlib", "lmdb", "ml_collections", "IPython")


def _in_fresh_process(code: str) -> dict:
    """Processor seconds that `code` takes in a new interpreter, and the modules loaded after it.

    Not seconds of the clock: other test processes run beside this one.
    """
    program = (
        "import json, sys, time\n"
        "start = time.process_time()\n"
        f"{code}\n"
        "seconds = time.process_time() - start\n"
        "print(json.dumps({'seconds': seconds, 'modules': sorted(sys.modules)}))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    return json.loads(result.stdout.splitlines()[-1])


def _modules_of(package: str, modules: list[str]) -> list[str]:
    return [name for name in modules if name == package or name.startswith(f"{package}.")]


@pytest.mark.parametrize("system", jaxlab.SYSTEMS)
def test_importing_a_system_takes_less_than_twice_the_time_of_jax_and_flax(system):
    base, ours = [], []
    for _ in range(3):
        base.append(_in_fresh_process("import jax, flax")["seconds"])
        ours.append(_in_fresh_process(f"import jaxlab.{system}")["seconds"])
    assert statistics.median(ours) < 2 * statistics.median(base), (ours, base)


@pytest.mark.parametrize("system", jaxlab.SYSTEMS)
def test_importing_a_system_loads_no_engine_and_no_other_system(system):
    modules = _in_fresh_process(f"import jaxlab.{system}")["modules"]
    for name in (*ENGINES, *SLOW):
        assert not _modules_of(name, modules), f"jaxlab.{system} loads {name}"
    for other in set(jaxlab.SYSTEMS) - {system}:
        assert not _modules_of(f"jaxlab.{other}", modules), f"jaxlab.{system} loads {other}"


def test_importing_the_library_loads_nothing_of_it():
    modules = _in_fresh_process("import jaxlab")["modules"]
    assert _modules_of("jaxlab", modules) == ["jaxlab"]
    assert not _modules_of("jax", modules)


def test_systems_and_machinery_are_attributes_on_first_use():
    code = "\n".join(
        f"from jaxlab import {name}; assert {name}.__name__ == 'jaxlab.{name}'"
        for name in (*jaxlab.SYSTEMS, *jaxlab.MACHINERY)
    )
    modules = _in_fresh_process(code)["modules"]
    for name in (*ENGINES, "tensorflow_datasets"):
        assert not _modules_of(name, modules), f"the machinery loads {name}"


def test_every_package_of_the_library_is_announced():
    packages = {path.parent.name for path in (CHECKOUT / "jaxlab").glob("*/__init__.py")}
    assert packages == {*jaxlab.SYSTEMS, *jaxlab.MACHINERY}
    assert set(dir(jaxlab)) == {*packages, "__version__"}


def test_an_unknown_attribute_names_what_exists():
    with pytest.raises(AttributeError, match="no attribute 'chinese_clipp'; it has .*chinese_clip"):
        _ = jaxlab.chinese_clipp
