"""The notebook of NDV: the pair is in step, and it runs from the first cell to the last."""

from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext", reason="comes with the extra `notebooks`")
FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "notebooks"
NAME = "ndv"


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
    assert "8 devices" in text
    assert "8 devices and one device give the same bits: True" in text
    assert "the schema says that the column is unique" in text
    answers = {
        words[0]: [int(word.replace(",", "")) for word in words[1:3]]
        for words in map(str.split, text.splitlines())
        if words and words[0] in ("order_id", "customer", "day", "price", "city")
    }
    for column in ("order_id", "day", "city"):
        found = answers[column]
        assert found[0] == found[1], f"{column}: truth and estimate"
    for column in ("customer", "price"):  # within what the notebook says of any method
        assert 1 / 5.9 < answers[column][1] / answers[column][0] < 5.9
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 1
