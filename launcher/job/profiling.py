"""What looks into the steps that `[profile]` names."""

from __future__ import annotations

from pathlib import Path

import torch

from triax.common.paths import short_path
from triax.launcher.job.job import Job
from triax.training.records.metrics_logger import MetricsLogger
from triax.training.records.profiling import Profiling


def make_profiling(job: Job, device: torch.device, metrics_logger: MetricsLogger) -> Profiling:
    """Of this process; a window that was written is told by rank 0, if it has one."""

    def tell(files: list[Path]) -> None:
        names = [path.name for path in files]
        metrics_logger.event("profile", files=names)
        for path in files:
            metrics_logger.say(f"profile   {short_path(str(path), 70)}")

    rank = job.processes.environment.rank
    return Profiling(job.config.profile, rank, job.directory.profile, device, tell)
