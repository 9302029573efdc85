"""The notebooks: pairs of a script, which is edited, and a notebook, which Colab opens."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "notebooks"


@pytest.fixture
def read_notebook():
    jupytext = pytest.importorskip("jupytext", reason="comes with the extra `notebooks`")
    return lambda name, suffix: jupytext.read(FOLDER / f"{name}{suffix}")


@pytest.fixture
def run_notebook(read_notebook, monkeypatch):
    """`name -> (text, pictures)` that the cells of a notebook put out, run from first to last."""

    def run_notebook(name):
        from nbclient import NotebookClient

        # As a reader starts it, without the settings of the tests.
        monkeypatch.delenv("XLA_FLAGS", raising=False)
        notebook = read_notebook(name, ".ipynb")
        resources = {"metadata": {"path": str(FOLDER)}}
        NotebookClient(notebook, timeout=800, kernel_name="python3", resources=resources).execute()
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
        text = "".join(output.text for output in outputs if "text" in output)
        return text, [output for output in outputs if "image/png" in output.get("data", {})]

    return run_notebook
