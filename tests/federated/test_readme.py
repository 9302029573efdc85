"""The example at the top of the README, as it stands."""

import re
from pathlib import Path

import jaxlab.federated


def test_the_first_example_of_the_readme_runs(capsys):
    readme = Path(jaxlab.federated.__file__).with_name("README.md").read_text("utf-8")
    example = re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1]
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert "'rounds': 20" in capsys.readouterr().out
    # Better than the more frequent of two classes.
    assert names["state"].server.evaluations[-1].metrics["test/correct"] > 0.6
