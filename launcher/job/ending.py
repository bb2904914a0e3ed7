"""A run's end: how it is told and written down, and how a later start finds it again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

from triax.common.errors import ExitCode, UserError
from triax.launcher.cluster.exits import INTERRUPTED
from triax.launcher.job.job import Job
from triax.launcher.job.resume import ResumePoint
from triax.launcher.job.summary import closing_summary
from triax.parallel.agreement import on_first
from triax.training.loop.loop import Outcome
from triax.training.step.state import TrainState

log = logging.getLogger("triax.job")

TELLING = "telling how it ended"
_ALREADY_FINISHED = "already finished"


def already_finished(job: Job, resume_point: ResumePoint) -> Outcome | None:
    """The outcome of a run whose budget is used up and whose end was told; None for any other.

    Collective.
    """
    state = resume_point.state
    if state.step < job.budget.num_steps:
        return None
    if not _was_told(job, state):
        job.say("the run was stopped after its last step: what its end owes is done now")
        return None
    code, reason = ExitCode.DONE, _ALREADY_FINISHED
    if (trouble := resume_point.trouble(job.config.stability)) is not None:
        code, reason = ExitCode.STOPPED_BY_GUARD, f"{reason}, but {trouble.reason}"
        job.say(f"this run is {reason}")
    job.say(
        f"this run is finished: {state.step} steps, {state.tokens:,} tokens.\n"
        f"Raise budget.tokens to go on, or choose another run.name."
    )
    return Outcome(code, reason, state, None, 0.0)


def _was_told(job: Job, state: TrainState) -> bool:
    """Whether an earlier start came to the end of its last step, and told so. Collective."""

    def look() -> bool:
        former = job.former or {}
        ends = (ExitCode.DONE, ExitCode.STOPPED_BY_GUARD)
        return former.get("code") in ends and former.get("step") == state.step

    return on_first(look, job.processes.control_group)


def report(job: Job, outcome: Outcome, find_damage: Callable[[], list[str]]) -> None:
    """Tell how the run ended, and write it down. Collective.

    The others wait: whoever ends first with a code other than 0 has the rest stopped.

    Args:
        find_damage: asked for what of the data was found damaged after it was read. Collective.
    """
    job.stop.end()
    job.watchdog.beat(TELLING, outcome.state.step)
    on_first(partial(_tell, job, outcome, find_damage()), job.processes.control_group)


def _tell(job: Job, outcome: Outcome, damage: Sequence[str]) -> None:
    """The summary, then exit.json: if this is cut off, the next start does it again."""
    environment = job.processes.environment
    try:
        for reason in damage:
            job.say(f"warning: the run has read on beside damaged data: {reason}")
            job.directory.append_event("damaged_data", step=outcome.state.step, reason=reason)
        if not outcome.reason.startswith(_ALREADY_FINISHED):
            job.say(closing_summary(job.config, job.directory, outcome, environment))
    except (Exception, KeyboardInterrupt):
        log.exception("the summary is cut short")
    try:
        job.directory.write_exit(outcome.code, outcome.reason, step=outcome.state.step)
    except OSError as error:
        job.say(f"{job.directory.exit} can't be written: {error.strerror}")


def ending_by(error: BaseException) -> tuple[int, str]:
    """The exit code that an error leads to, and the reason to write down."""
    if isinstance(error, UserError):
        return ExitCode.BAD_INPUT, str(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    return ExitCode.FAILED, f"{type(error).__name__}: {error}"
