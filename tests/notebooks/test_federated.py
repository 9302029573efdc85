"""The notebook of federated learning: the pair is in step, and it runs from first cell to last."""

import re
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext", reason="comes with the extra `notebooks`")
FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "notebooks"
NAME = "federated"


def read(suffix):
    return jupytext.read(FOLDER / f"{NAME}{suffix}")


def test_both_files_of_the_pair_have_the_same_cells():
    script, notebook = (
        [(cell.cell_type, cell.source) for cell in read(suffix).cells]
        for suffix in (".py", ".ipynb")
    )
    assert notebook == script, (
        f"make {NAME}.ipynb again: jupytext --to ipynb experiments/notebooks/{NAME}.py"
    )


def test_the_notebook_is_stored_without_outputs():
    cells = [cell for cell in read(".ipynb").cells if cell.cell_type == "code"]
    assert cells and not any(cell.outputs or cell.execution_count for cell in cells)


@pytest.mark.tiny
@pytest.mark.timeout(900)
def test_the_notebook_runs_and_says_what_it_promises(monkeypatch):
    from nbclient import NotebookClient

    # As a reader starts it, without the settings of the tests.
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    notebook = read(".ipynb")
    client = NotebookClient(
        notebook, timeout=800, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    text = "".join(output.text for output in outputs if "text" in output)
    seconds = dict(re.findall(r"(\w*synchronous): (\d+) virtual s", text))
    # 50 asynchronous rounds of 4 take less than 20 synchronous ones of 10.
    assert int(seconds["asynchronous"]) < int(seconds["synchronous"])
    names = ("shared model", "fine-tuned", "Ditto", "FedEM")
    found = {name: float(re.search(rf"{name} +([\d.]+)", text)[1]) for name in names}
    assert min(found[name] for name in names[1:]) > found["shared model"] + 0.02
    assert float(re.search(r"kept apart: ([\d.]+)", text)[1]) > 0.85
    assert "client.on(model_para) may send 'battery', which no server handles" in text
    low, least = map(int, re.search(r"(\d+) clients run low, none below (\d+) %", text).groups())
    assert low > 5 and least == 40
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 1
