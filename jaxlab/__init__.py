"""Ten published systems of industrial AI research as one functional JAX/Flax library.

Each system is a package of its own, imported on first use::

    from jaxlab import chinese_clip

The machinery they share lies in `parallel`, `layers`, `data`, `text`, `metrics`, `checkpoints` and
`training`. Importing `jaxlab` itself imports none of them.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

SYSTEMS = ("chinese_clip", "distillation", "federated", "ndv")
MACHINERY = (
    "checkpoints",
    "data",
    "layers",
    "metrics",
    "packages",
    "parallel",
    "text",
    "training",
)

__all__ = [*SYSTEMS, *MACHINERY, "__version__"]  # pyrefly: ignore


def __getattr__(name: str) -> ModuleType:
    if name in SYSTEMS or name in MACHINERY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {sorted(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
