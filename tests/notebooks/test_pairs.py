"""Script and notebook of every pair are in step."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def test_there_are_notebooks():
    assert {"chinese_clip", "federated", "ndv"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_both_files_of_the_pair_have_the_same_cells(name, read_notebook):
    script, notebook = (
        [(cell.cell_type, cell.source) for cell in read_notebook(name, suffix).cells]
        for suffix in (".py", ".ipynb")
    )
    assert notebook == script, (
        f"make {name}.ipynb again: jupytext --to ipynb experiments/notebooks/{name}.py"
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_is_stored_without_outputs(name, read_notebook):
    cells = [cell for cell in read_notebook(name, ".ipynb").cells if cell.cell_type == "code"]
    assert cells and not any(cell.outputs or cell.execution_count for cell in cells)
