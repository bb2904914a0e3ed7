"""Batch jobs for SLURM: the script from its template, and its submission. Imports no torch.

The template is shell with `{{name}}` where a value goes in; values are quoted here, so it names
them without quotes. What isn't one line of printable text is refused, since sbatch reads options
line by line.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from triax.common.errors import UserError

TEMPLATE = Path(__file__).with_name("job.sh")
_START_SECONDS = 120
"""SLURM may signal a minute early, and ranks take up to a minute until they can answer."""
_PLACEHOLDER = re.compile(r"\{\{(\w*)\}\}")


@dataclass(frozen=True)
class BatchJob:
    """What a batch script is made of."""

    config: str
    overrides: tuple[str, ...]
    run_name: str
    run_dir: Path
    """Absolute."""
    folder: Path
    """Where the script starts, so that relative paths mean what they meant at submission."""
    num_nodes: int
    gpus_per_node: str
    """As sbatch takes it: `8` or `h100:8`; empty for none."""
    processes_per_node: int
    grace_seconds: int
    max_restarts: int
    num_links: int = 1
    job_name: str | None = None
    partition: str | None = None
    time: str | None = None
    account: str | None = None
    qos: str | None = None
    cpus_per_task: int | None = None
    container: str | None = None
    container_mounts: str | None = None
    setup: tuple[str, ...] = ()
    extra_sbatch: tuple[str, ...] = ()
    extra_srun: tuple[str, ...] = ()

    def render(self, template: str, link: int = 1) -> str:
        """The script of one job of the chain.

        Raises:
            UserError: a value can't stand in a script, or the template names an unknown one.
        """
        values = {
            "directives": "\n".join(f"#SBATCH {option}" for option in self._directives()),
            "python": _quoted(sys.executable),
            "rank_command": f"{_quoted(self._rank_python)} -m triax.launcher.train",
            "config": _quoted(self.config),
            "overrides": " ".join(_quoted(f"--{override}") for override in self.overrides),
            "run_dir": _quoted(str(self.run_dir)),
            "num_nodes": str(self.num_nodes),
            "per_node": str(self.processes_per_node),
            "srun_options": " ".join(map(_quoted, self._srun_options())),
            "max_restarts": str(self.max_restarts),
            "link": str(link),
            "num_links": str(self.num_links),
            "setup": "\n".join(self.setup) or "# (none)",
        }

        def value(match: re.Match[str]) -> str:
            if match[1] not in values:
                raise UserError(
                    f"the template has {match[0]}, which is nothing that is filled in; there are "
                    f"{', '.join(values)}"
                )
            return values[match[1]]

        return _PLACEHOLDER.sub(value, template)

    @property
    def _rank_python(self) -> str:
        return sys.executable if self.container is None else "python3"

    def _directives(self) -> list[str]:
        """Options of sbatch, each quoted as sbatch reads it."""
        options = {
            "job-name": self.job_name or self.run_name,
            "chdir": str(self.folder),
            # SLURM replaces %-patterns in the name of the log.
            "output": f"{str(self.run_dir).replace('%', '%%')}/logs/slurm-%j.log",
            "open-mode": "append",
            "nodes": str(self.num_nodes),
            # Cores, not tasks: SLURM would ask for all of the tasks after a node has left the job.
            "mincpus": str(self.processes_per_node * (self.cpus_per_task or 1)),
            "gpus-per-node": self.gpus_per_node or None,
            "partition": self.partition,
            "time": self.time,
            "account": self.account,
            "qos": self.qos,
            "signal": f"B:USR1@{self.grace_seconds}",
        }
        given = [f"--{name}={value}" for name, value in options.items() if value is not None]
        return [
            _quoted(option) for option in (*given, "--requeue", "--no-kill", *self.extra_sbatch)
        ]

    def _srun_options(self) -> list[str]:
        options = [] if self.cpus_per_task is None else [f"--cpus-per-task={self.cpus_per_task}"]
        if self.container is not None:
            options += [
                f"--container-image={self.container}",
                f"--container-mounts={self.container_mounts}",
                f"--container-workdir={self.folder}",
            ]
        return [*options, *self.extra_srun]


def refuse_hopeless_times(
    time: str | None, extra_sbatch: Sequence[str], grace_seconds: int
) -> None:
    """As `refuse_hopeless_time`, for the limit given and those in sbatch's own options."""
    passed_on = [option.removeprefix("-t") for option in extra_sbatch if option[:2] == "-t"]
    passed_on += [
        option.removeprefix("--time=") for option in extra_sbatch if option[:7] == "--time="
    ]
    for limit in (time, *passed_on):
        if limit is not None:
            refuse_hopeless_time(limit.strip(), grace_seconds)


def refuse_hopeless_time(time: str, grace_seconds: int) -> None:
    """Refuse a time limit that SLURM's signal would come so long before that nothing is trained.

    Raises:
        UserError: it is too short, or none of the forms that sbatch takes.
    """
    seconds = _time_limit(time)
    least = grace_seconds + _START_SECONDS
    if seconds is not None and seconds <= least:
        raise UserError(
            f"--time {time} is {seconds} s, but with --grace {grace_seconds} the job is asked to "
            f"save so long before its end, up to a minute earlier, and takes up to a minute to "
            f"start: it would never train. Ask for more than {least} s, or lower --grace to what "
            "a step and a save take"
        )


def _time_limit(text: str) -> int | None:
    """Seconds of one of sbatch's forms: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S; None is no limit."""
    if text.lower() in ("unlimited", "infinite"):
        return None
    match = re.fullmatch(r"(?:(\d{1,9})-)?(\d{1,9})(?::(\d{1,9}))?(?::(\d{1,9}))?", text, re.ASCII)
    if match is None:
        raise UserError(
            f"--time is {text!r}, expected minutes, minutes:seconds, hours:minutes:seconds, "
            "days-hours, days-hours:minutes or days-hours:minutes:seconds"
        )
    days, *parts = match.groups()
    counts = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, minutes, seconds = (*counts, 0, 0)[:3]
    elif len(counts) == 3:
        hours, minutes, seconds = counts
    else:
        hours, (minutes, seconds) = 0, (*counts, 0)[:2]
    # SLURM takes 0 for no limit.
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds or None


def read_template(path: Path | None) -> str:
    """The template's text; the packaged one if none is given.

    Raises:
        UserError: it can't be read.
    """
    try:
        return (path or TEMPLATE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the template {path} can't be read: {error}") from None


def submit(job: BatchJob, template: str) -> list[str]:
    """Write the scripts into the run directory and hand them to sbatch; returns the jobs' ids.

    Each job of a chain begins when the one before has ended, however that was.

    Raises:
        UserError: sbatch isn't there or refuses; the jobs submitted before it are named.
    """
    logs = job.run_dir / "logs"
    ids: list[str] = []
    try:
        logs.mkdir(parents=True, exist_ok=True)
        for link in range(1, job.num_links + 1):
            script = logs / ("job.sh" if job.num_links == 1 else f"job-{link}.sh")
            script.write_text(job.render(template, link), encoding="utf-8")
            after = [f"--dependency=afterany:{ids[-1]}"] if ids else []
            ids.append(_sbatch([*after, str(script)], ids))
    except OSError as error:
        raise UserError(f"{logs} can't be written: {error.strerror}; set run.dir") from None
    return ids


def _sbatch(arguments: Sequence[str], submitted: Sequence[str]) -> str:
    try:
        result = subprocess.run(
            ["sbatch", "--parsable", *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise UserError(
            "there is no sbatch here: submit from a machine of the cluster, or look at the script "
            "with --dry-run"
        ) from None
    if result.returncode != 0:
        before = f"; submitted before it: {', '.join(submitted)}" if submitted else ""
        raise UserError(f"sbatch refused the job: {result.stderr.strip()}{before}")
    return result.stdout.strip().partition(";")[0]


def _quoted(text: str) -> str:
    if not text.isprintable():
        raise UserError(f"{text!r} can't stand in a batch script: use one line of printable text")
    return shlex.quote(text)
