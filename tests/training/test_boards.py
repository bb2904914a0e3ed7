"""MLflow and Comet with their real packages, without a network: a run is gone on with."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from triax.training.records.boards import Comet, MLflow
from triax.training.records.metrics import MetricsWriters

CONFIG = {"run": {"name": "mine"}, "optimizer": {"lr": 0.001}, "data": {"sources": ["a", "b"]}}


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MLFLOW_TRACKING_URI", "COMET_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    return folder


def log_twice(board: type[MLflow] | type[Comet], run_dir: Path) -> None:
    """Two sessions of a run, the second of which takes a step again."""
    for steps in ((1, 2), (2, 3)):
        with MetricsWriters([board("experiment", run_dir, CONFIG)]) as writers:
            for step in steps:
                writers.log_row({"step": step, "loss": 4.0 - step, "mfu": None})


def test_mlflow_goes_on_with_its_run(run_dir: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    log_twice(MLflow, run_dir)
    client = mlflow.MlflowClient(tracking_uri=(run_dir / "mlruns").as_uri())
    owner = client.get_experiment_by_name("experiment").experiment_id
    [run] = client.search_runs([owner])
    assert run.info.run_name == "mine" and run.info.status == "FINISHED"
    assert run.data.params["optimizer.lr"] == "0.001"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted((each.step, each.value) for each in history) == [(1, 3), (2, 2), (2, 2), (3, 1)]


def test_mlflow_begins_anew_where_its_run_is_gone(run_dir: Path) -> None:
    pytest.importorskip("mlflow")
    (run_dir / "mlflow.json").write_text('{"run_id": "0123"}')
    MLflow("experiment", run_dir, CONFIG).close()
    assert json.loads((run_dir / "mlflow.json").read_text())["run_id"] != "0123"


def test_comet_keeps_archives_of_one_experiment(run_dir: Path) -> None:
    pytest.importorskip("comet_ml")
    log_twice(Comet, run_dir)
    archives = sorted((run_dir / "comet").glob("*.zip"))
    keys, losses = set(), []
    for archive in archives:
        with zipfile.ZipFile(archive) as opened:
            keys.add(json.loads(opened.read("experiment.json"))["offline_id"])
            lines = opened.read("messages.json").decode().splitlines()
        payloads = [json.loads(line)["payload"] for line in lines]
        losses += [
            (each["metric"]["step"], each["metric"]["metricValue"])
            for each in payloads
            if each.get("metric", {}).get("metricName") == "train/loss"
        ]
    assert len(archives) == 2 and len(keys) == 1
    assert sorted(losses) == [(1, 3), (2, 2), (2, 2), (3, 1)]
