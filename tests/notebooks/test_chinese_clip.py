"""The notebook of Chinese CLIP: the pair is in step, and it runs from first cell to last."""

import re
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext", reason="comes with the extra `notebooks`")
FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "notebooks"
NAME = "chinese_clip"


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
    assert "pictures of 32 px, 128 numbers" in text
    assert "947 pictures, 947 new, 0 damaged" in text
    before, after = map(float, re.findall(r"not trained on: ([\d.]+) % -> ([\d.]+) %", text)[0])
    # Chance is 3.9 %.
    assert after > 2 * before and after > 30
    raw, calibrated = map(
        float, re.findall(r"itself ([\d.]+), match probability ([\d.]+)", text)[0]
    )
    assert calibrated < raw / 2
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 2
