"""Boards that show a run's figures while it goes on: TensorBoard, and three of others.

Each goes on with the run that it began, whenever triax is started again. Their packages are slow to
import or extras, so each is imported by the class that needs it.
"""

from __future__ import annotations

import hashlib
import json
import os
import textwrap
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from triax.common.files import write_atomically
from triax.common.json_lines import read_object


class TensorBoard:
    """TensorBoard event files.

    Args:
        folder: the run's `tensorboard/`.
        next_step: what older files say of this step and later ones is hidden.
    """

    def __init__(self, folder: Path, next_step: int) -> None:
        # Slow to import, and chosen by the config.
        from torch.utils.tensorboard import SummaryWriter

        self._open = partial(SummaryWriter, str(folder))
        self._writer: Any = self._open(purge_step=next_step)

    def rewind(self, next_step: int) -> None:
        self._writer.close()
        self._writer = self._open(purge_step=next_step)

    def log(self, step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def log_texts(self, step: int, texts: dict[str, str]) -> None:
        for name, text in texts.items():
            # Shown as Markdown, in which indented lines are kept as they are.
            self._writer.add_text(name, textwrap.indent(text, "    ", lambda _: True), step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A Weights & Biases run that is gone on with under the same name.

    Its own steps can't go back, as a run does that is resumed or rolled back: ours is a metric
    beside the others, by which they are drawn.
    """

    def __init__(self, project: str, run_dir: Path, config: dict[str, Any]) -> None:
        # Only there with the `wandb` extra.
        import wandb

        self._run: Any = wandb.init(
            project=project, name=run_dir.name, id=run_dir.name, resume="allow",
            dir=str(run_dir), config=config,
        )  # fmt: skip
        self._run.define_metric("*", step_metric="step")

    def rewind(self, next_step: int) -> None:
        """Nothing to do: what comes again is drawn at its step again."""

    def log(self, step: int, scalars: dict[str, float]) -> None:
        self._run.log({"step": step, **scalars})

    def log_texts(self, step: int, texts: dict[str, str]) -> None:
        self._run.log({"step": step, **texts})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """An MLflow run: of the server that `MLFLOW_TRACKING_URI` names, else in the run's `mlruns/`.

    Its id is kept in `mlflow.json` of the run's folder. A step that is taken again is there twice,
    the later value at the later time.

    Args:
        experiment: its name; made where it is missing.
        run_dir: the run's folder.
        config: shown as parameters.
    """

    def __init__(self, experiment: str, run_dir: Path, config: dict[str, Any]) -> None:
        # Only there with the `mlflow` extra.
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        self._metric = Metric
        # Its own store in files is asked for twice since version 3.7.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (run_dir.resolve() / "mlruns").as_uri()
        self._client: Any = MlflowClient(tracking_uri=uri)
        self._id = self._run_id(experiment, run_dir, config)
        self._client.update_run(self._id, status="RUNNING")

    def _run_id(self, experiment: str, run_dir: Path, config: dict[str, Any]) -> str:
        path = run_dir / "mlflow.json"
        known = (read_object(path) or {}).get("run_id")
        if isinstance(known, str) and self._is_there(known):
            return known
        found = self._client.get_experiment_by_name(experiment)
        owner = self._client.create_experiment(experiment) if found is None else found.experiment_id
        run = self._client.create_run(owner, run_name=run_dir.name)
        for name, value in _flat(config):
            self._client.log_param(run.info.run_id, name, str(value)[:500])
        write_atomically(path, json.dumps({"run_id": run.info.run_id}) + "\n")
        return str(run.info.run_id)

    def _is_there(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self._client.get_run(run_id)
        except MlflowException:  # of another server, or deleted
            return False
        return True

    def rewind(self, next_step: int) -> None:
        """Nothing to do: what comes again is shown at its step again."""

    def log(self, step: int, scalars: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, step) for name, value in scalars.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def log_texts(self, step: int, texts: dict[str, str]) -> None:
        for name, text in texts.items():
            self._client.log_text(self._id, text, f"{name}/step-{step:08}.txt")

    def close(self) -> None:
        self._client.set_terminated(self._id)


class Comet:
    """A Comet experiment: sent where `COMET_API_KEY` is set, else kept in the run's `comet/` as an
    archive for `comet upload`.

    Its key follows from project and run, so that the same experiment is gone on with.

    Args:
        project: its name.
        run_dir: the run's folder.
        config: shown as parameters.
    """

    def __init__(self, project: str, run_dir: Path, config: dict[str, Any]) -> None:
        # Only there with the `comet` extra.
        import comet_ml

        is_online = bool(os.environ.get("COMET_API_KEY"))
        key = hashlib.blake2b(f"{project}/{run_dir.name}".encode(), digest_size=20).hexdigest()
        self._run: Any = comet_ml.start(
            project_name=project,
            experiment_key=key,
            online=is_online,
            mode="get_or_create",
            experiment_config=comet_ml.ExperimentConfig(
                name=run_dir.name,
                offline_directory=str(run_dir / "comet"),
                disabled=False,
                parse_args=False,
                log_code=False,
                log_graph=False,
                log_git_metadata=False,
                log_git_patch=False,
                log_env_details=False,
                auto_output_logging=False,
                display_summary_level=0,
            ),
        )
        self._run.log_parameters(dict(_flat(config)))

    def rewind(self, next_step: int) -> None:
        """Nothing to do: what comes again is shown at its step again."""

    def log(self, step: int, scalars: dict[str, float]) -> None:
        self._run.log_metrics(scalars, step=step)

    def log_texts(self, step: int, texts: dict[str, str]) -> None:
        for name, text in texts.items():
            self._run.log_text(text, step=step, metadata={"name": name})

    def close(self) -> None:
        self._run.end()


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The config's values by dotted path."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
