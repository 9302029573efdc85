"""Uses the installed wheel away from the checkout: its version, its assets, a spawned process."""

import importlib.util
import multiprocessing
import os
import sys
from importlib.metadata import version
from pathlib import Path


def where() -> str:
    """Folder from which this process takes the library."""
    import jaxlab

    return str(Path(jaxlab.__file__).resolve().parent)


def main() -> None:
    """Check the installation; an AssertionError says what it lacks."""
    checkout = Path(os.environ["CHECKOUT"]).resolve()
    assert checkout not in Path(where()).parents, f"jaxlab comes from the checkout: {where()}"
    for name in ("experiments", "configs", "tests"):
        assert importlib.util.find_spec(name) is None, f"the wheel installs {name}"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(where) == where()

    import jaxlab
    from jaxlab.data.emoji import load_emoji
    from jaxlab.text import WordPieceTokenizer

    assert version("jaxlab") == jaxlab.__version__
    emoji = load_emoji()
    assert emoji.num_emoji == 3786, emoji.num_emoji
    ids = WordPieceTokenizer().tokenize(["饺子"])
    assert ids.shape == (1, 52), ids.shape
    package = Path(where())
    assert (package / "py.typed").is_file()
    assets = sorted(str(p.relative_to(package)) for p in package.glob("**/assets/**/*"))
    print(f"jaxlab {jaxlab.__version__} in {sys.prefix}: {len(assets)} assets")


if __name__ == "__main__":
    main()
