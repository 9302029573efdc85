import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from jaxlab.training import OptimizerConfig, read_metrics, read_results, write_results
from jaxlab.training.metric_log import MetricLog
from jaxlab.training.workdir import open_workdir, save_config, to_json


def test_results_gather_numbers_and_survive_a_failed_write(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("disk is full")

    write_results(tmp_path, {"recall": 31.5, "step": 10})
    write_results(tmp_path, {"floor": np.float32(0.5), "recall": 32.0, "lost": float("nan")})
    found = read_results(tmp_path)
    assert np.isnan(found.pop("lost"))
    assert found == {"recall": 32.0, "step": 10, "floor": 0.5}
    before = (tmp_path / "results.json").read_text()
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk is full"):
        write_results(tmp_path, {"recall": 99.0})
    assert (tmp_path / "results.json").read_text() == before
    assert os.listdir(tmp_path) == ["results.json"]


def test_broken_results_are_named(tmp_path):
    (tmp_path / "results.json").write_text('{"recall": ')
    with pytest.raises(ValueError, match="results.json is not JSON.*mend or remove"):
        read_results(tmp_path)
    assert read_results(tmp_path / "elsewhere") == {}


def test_config_is_saved_and_every_change_is_named(tmp_path, caplog):
    save_config(tmp_path, OptimizerConfig(learning_rate=0.1, no_decay=("bias",)))
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["learning_rate"] == 0.1 and saved["no_decay"] == ["bias"]
    with caplog.at_level(logging.WARNING, logger="jaxlab"):
        save_config(tmp_path, OptimizerConfig(learning_rate=0.1, no_decay=("bias",)))
        assert not caplog.messages
        save_config(tmp_path, OptimizerConfig(learning_rate=0.2))
    assert "learning_rate: 0.1 -> 0.2; no_decay: ['bias'] -> []" in caplog.text
    assert json.loads((tmp_path / "config.1.json").read_text()) == saved
    assert json.loads((tmp_path / "config.json").read_text())["learning_rate"] == 0.2
    save_config(tmp_path, OptimizerConfig(learning_rate=0.3))
    assert json.loads((tmp_path / "config.2.json").read_text())["learning_rate"] == 0.2


def test_json_takes_numbers_of_every_library():
    value = {"a": np.int64(2**40), "b": np.float32(0.5), "c": np.array(3), "d": float("inf")}
    assert to_json(value) == {"a": 2**40, "b": 0.5, "c": 3, "d": None}


def test_workdir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file; give the name of a folder"):
        open_workdir(tmp_path / "file")
    assert open_workdir(tmp_path / "new" / "run").is_dir()


def test_log_has_each_step_once_after_going_back(tmp_path, caplog):
    with MetricLog(tmp_path, 0) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": 1 / step})
        log.write(4, {})
    (tmp_path / "metrics.jsonl").open("a").write('{"step": 4, "lo')
    with MetricLog(tmp_path, 2) as log:
        log.write(3, {"loss": 7.0})
    assert read_metrics(tmp_path) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": 7.0},
    ]
    assert "line 4 is no record" in caplog.text
