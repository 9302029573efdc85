"""The notebook of federated learning runs from the first cell to the last."""

import re

import pytest


@pytest.mark.tiny
@pytest.mark.timeout(900)
def test_the_notebook_runs_and_says_what_it_promises(run_notebook):
    text, pictures = run_notebook("federated")
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
    assert len(pictures) == 1
