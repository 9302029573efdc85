import math

import pytest

from jaxlab.federated.results_log import append_row, read_rows
from jaxlab.federated.strategy import ConfigError


def test_rows_come_back_and_a_broken_line_costs_only_itself(tmp_path, caplog):
    path = tmp_path / "results.jsonl"
    append_row(path, {"round": 1, "test/loss": 0.5})
    with path.open("a") as file:
        file.write('{"round": 2, "test/lo')  # a run that was killed
    append_row(path, {"round": 2, "test/loss": math.inf, "missing": None})
    assert read_rows(path) == [
        {"round": 1, "test/loss": 0.5},
        {"round": 2, "test/loss": math.inf, "missing": None},
    ]
    assert "1 broken lines are left out" in caplog.text


def test_lines_of_the_original_are_read_and_nothing_of_them_is_run(tmp_path):
    path = tmp_path / "eval_results.log"
    path.write_text(
        "{'Role': 'Server #', 'Round': 'Final', 'Results_avg': {'test_acc': np.float64(0.5), "
        "'val_loss': -inf, 'test_f1': nan}}\n"
        f"{{'Round': __import__('pathlib').Path({str(tmp_path / 'run')!r}).touch()}}\n"
    )
    (row,) = read_rows(path)
    assert row["Role"] == "Server #" and row["Results_avg"]["test_acc"] == 0.5
    assert row["Results_avg"]["val_loss"] == -math.inf
    assert math.isnan(row["Results_avg"]["test_f1"])
    assert not (tmp_path / "run").exists()


def test_what_is_no_log_is_told(tmp_path):
    with pytest.raises(ConfigError, match="nothing.log is no file; wanted the results"):
        read_rows(tmp_path / "nothing.log")
    (tmp_path / "text").write_text("Once upon a time\n")
    with pytest.raises(ConfigError, match="none of 1 lines is a row; .*'Once upon a time'"):
        read_rows(tmp_path / "text")
