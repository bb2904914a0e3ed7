"""What a run reads: prepared, opened, compared between the ranks, verified, read in batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from triax.common.paths import url_of
from triax.data.config import DataConfig
from triax.data.prepare.ensure import ensure_prepared
from triax.data.prepare.tokenizer import tokenizer_file
from triax.data.read.conversations import Conversations
from triax.data.read.identity import Identity, identify, identify_sources
from triax.data.read.integrity import Verification, files_of, verify
from triax.data.read.loader import Loader
from triax.data.read.opening import open_set, open_sources
from triax.data.read.plan import PlannedPhase, planned_phases
from triax.data.read.sampler import Sampler
from triax.data.read.source import Source
from triax.data.remote.patience import PATIENCE_SECONDS
from triax.launcher.cluster.preflight import data_facts, refuse_differences
from triax.launcher.cluster.process_group import Processes
from triax.launcher.job.evaluation import make_evaluator
from triax.launcher.job.job import Job
from triax.launcher.job.resume import ResumePoint
from triax.parallel.agreement import agreed_however_long, on_first_however_long, reported
from triax.training.loop.loop import RunData

_GRACE_SECONDS = 120.0
"""For a store's answer after the last try."""


@dataclass(frozen=True)
class Sources:
    """Training data, in the config's order, and validation data, alike on every rank."""

    sources: list[Source]
    identities: list[Identity]
    plan: tuple[PlannedPhase, ...]
    validation: Source | None = None
    validation_identity: Identity | None = None
    others: Mapping[str, Source] = field(default_factory=dict)
    """More validation data, by name."""
    other_identities: Sequence[Identity] = ()

    @property
    def known_by(self) -> tuple[list[Identity], tuple[PlannedPhase, ...], Identity | None]:
        """What a resume point compares them by."""
        return self.identities, self.plan, self.validation_identity

    @property
    def all_identities(self) -> list[Identity]:
        """Of all that is read."""
        validation = self.validation_identity
        own = [] if validation is None else [validation]
        return [*self.identities, *own, *self.other_identities]


def find_sources(job: Job) -> Sources:
    """Prepare the training data if need be, and open it. Collective.

    Raises:
        UserError: as `ensure_prepared`; a shard is missing or damaged on a rank, or ranks have
            other data.
    """
    job.watchdog.beat("preparing the data", 0)
    _prepare(job)
    return _open(job)


def verified(job: Job, resume_point: ResumePoint) -> Verification:
    """Tell what is read from a resume point on, and verify it, or return what does so beside the
    steps while it is entered. Collective.

    Raises:
        UserError: a file is damaged.
    """
    for note in resume_point.notes:
        job.say(f"data     {note}")
    job.watchdog.beat("verifying the data", resume_point.state.step)
    return _verify(job)


def make_data(
    job: Job, sources: Sources, resume_point: ResumePoint, verification: Verification
) -> RunData:
    """This process's part of all that is read from a resume point on. Collective.

    Raises:
        UserError: a task can't be asked, or the validation data can't be read.
    """
    for source, config in zip(sources.sources, job.config.data.sources, strict=True):
        if source.packed is not None:
            job.say(f"data     {config.path}: packed, {source.packed.describe()}")
        if isinstance(source, Conversations) and source.news is not None:
            job.say(f"data     {config.path}: {source.news}")
    evaluator = make_evaluator(job, sources.validation, sources.others)
    return RunData(_loader(job, sources, resume_point, verification), evaluator)


def patience_with(data: DataConfig) -> dict[str, float]:
    """Seconds that the watchdog's activities may take in a run that waits for stores."""
    paths = [data.validation, *(source.path for source in data.sources)]
    if not any(path is not None and url_of(path) for path in paths):
        return {}
    return dict.fromkeys(("reading data", "evaluating"), PATIENCE_SECONDS + _GRACE_SECONDS)


def tokenizer_here(data: DataConfig) -> Path | None:
    """The run's `tokenizer.json`, brought here where it is in a store.

    Raises:
        UserError: it isn't there.
    """
    return None if data.tokenizer is None else tokenizer_file(data.tokenizer)


def _prepare(job: Job) -> None:
    """Make on rank 0 what `data.prepare` makes and isn't there."""
    data = job.config.data
    if data.prepare is not None:
        make = partial(
            ensure_prepared,
            data.prepare,
            end_of_text=data.end_of_text,
            begin_of_text=data.begin_of_text,
            report=job.say,
        )
        on_first_however_long(make, job.processes.control_group)


def _open(job: Job) -> Sources:
    """Open all data, and compare between the ranks what it and the tokenizer are."""
    config, data = job.config, job.config.data

    def open_here() -> Sources:
        sources = open_sources(data, config.model.vocab_size)
        plan = planned_phases(data, config.batch.global_batch_size)
        read = Sources(sources, identify_sources(data.sources, sources), plan)
        size = config.model.vocab_size
        others = {one.name: open_set(data, one.path, size) for one in config.eval.sets}
        known = [identify(one.path, others[one.name]) for one in config.eval.sets]
        read = replace(read, others=others, other_identities=known)
        if data.validation is None:
            return read
        validation = open_set(data, data.validation, size)
        identity = identify(data.validation, validation)
        return replace(read, validation=validation, validation_identity=identity)

    opened = job.together(open_here)
    refuse_differences(data_facts(opened.all_identities, data.tokenizer), job.processes, config)
    return opened


def _verify(job: Job) -> Verification:
    """Compare the shards with their checksums now, or return what does it beside the steps.

    Each process reads its share of the files.
    """
    data, processes, environment = job.config.data, job.processes, job.processes.environment
    if data.verify == "never":
        return Verification(())
    prefixes = [source.path for source in data.sources]
    if data.validation is not None:
        prefixes.append(data.validation)
    prefixes += [one.path for one in job.config.eval.sets]
    # Each rank keeps its list to itself: at thousands of ranks all lists would fill the memory.
    # What is in a store would be read whole: not beside the steps, which read it too.
    with_remote = data.verify == "start"
    found = job.together(partial(files_of, prefixes, with_remote=with_remote))
    for prefix in found.without:
        job.say(f"data     {prefix} can't be verified: no data.json has its checksums")
    # The large .bin first, so that each process gets as many of these.
    by_kind = sorted(found.files, key=lambda file: file.path.suffix)
    share = by_kind[environment.rank :: environment.world_size]
    if data.verify == "background":
        return Verification(share)
    agreed_however_long(partial(verify, share), processes.control_group)
    return Verification(())


def _loader(
    job: Job, sources: Sources, resume_point: ResumePoint, verification: Verification
) -> Loader:
    """Reads this process's part of every global batch."""
    config, blend = job.config, resume_point.blend
    return Loader(
        dict(zip(blend.keys, sources.sources, strict=True)),
        Sampler(config.run.seed, blend.phases, blend.num_windows()),
        global_batch_size=config.batch.global_batch_size,
        micro_batch_size=config.batch.micro_batch_size,
        dp_rank=job.layout.data_rank(job.processes.environment.rank),
        dp_size=job.layout.data_parallel,
        mask_documents=config.data.mask_documents,
        prefetch=config.data.prefetch,
        pin_memory=job.processes.device.type == "cuda",
        before_batch=verification.check,
    )


def late_damage(verification: Verification, processes: Processes) -> list[str]:
    """What any rank has found damaged by now, for the run's end: after the last batch is read
    nothing else asks. Collective.
    """
    return sorted(set(reported(lambda: verification.damage, processes.control_group).values()))
