"""The Python of the guide runs as it stands, and what it names is there."""

import re
from pathlib import Path

import jaxlab.distillation as kd

CHECKOUT = Path(__file__).resolve().parents[2]
README = Path(kd.__file__).with_name("README.md").read_text("utf-8")


def test_the_example_runs_and_prints_its_terms(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    output = capsys.readouterr().out
    assert "hidden_mse/emb-emb" in output and "value_relation/3-1" in output
    assert "'loss/response'" in output and "nan" not in output


def test_every_recipe_and_room_of_the_guide_is_there():
    for name in re.findall(r"`(\w+\.py)(?::[\w]+)?`", README):
        assert (CHECKOUT / "configs" / "distillation" / name).is_file(), name
    rooms = README.rpartition("## Rooms")[2]
    for name in re.findall(r"`(\w+)`", rooms):
        assert (CHECKOUT / "jaxlab" / "distillation" / f"{name}.py").is_file(), name
