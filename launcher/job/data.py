"""What a run reads: prepared, opened, compared between the ranks and verified."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from triax.data.config import DataConfig
from triax.data.prepare.ensure import ensure_prepared
from triax.data.read.identity import Identity, identify, identify_sources
from triax.data.read.integrity import Verifiable, Verification, files_of, verify
from triax.data.read.source import Source, open_sources
from triax.launcher.cluster.preflight import data_facts, refuse_differences
from triax.launcher.cluster.process_group import Processes
from triax.launcher.config.run_config import RunConfig
from triax.parallel.agreement import agreed, agreed_however_long
from triax.parallel.collectives import gather_objects, on_first_however_long

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunData:
    """Training data, in the config's order, and validation data, alike on every rank."""

    sources: list[Source]
    identities: list[Identity]
    weights: list[float]
    validation: Source | None = None
    validation_identity: Identity | None = None

    @property
    def all_identities(self) -> list[Identity]:
        """Of all that is read."""
        validation = self.validation_identity
        return [*self.identities, *([] if validation is None else [validation])]


def prepare_data(data: DataConfig, processes: Processes, say: Say) -> None:
    """Make on rank 0 what `data.prepare` makes and isn't there. Collective.

    Raises:
        UserError: as `ensure_prepared`.
    """
    if data.prepare is not None:
        make = partial(
            ensure_prepared,
            data.prepare,
            end_of_text=data.end_of_text,
            begin_of_text=data.begin_of_text,
            report=say,
        )
        on_first_however_long(make, processes.control_group)


def open_data(config: RunConfig, processes: Processes) -> RunData:
    """Open all data, and compare between the ranks what it and the tokenizer are. Collective.

    Raises:
        UserError: a shard is missing or damaged on a rank, or ranks have other data.
    """
    data = config.data

    def open_here() -> RunData:
        sources = open_sources(data, config.model.vocab_size)
        weights = [source.weight for source in data.sources]
        read = RunData(sources, identify_sources(data.sources, sources), weights)
        if data.validation is None:
            return read
        validation = Source.open(data.validation, data.seq_len, config.model.vocab_size)
        identity = identify(data.validation, validation)
        return replace(read, validation=validation, validation_identity=identity)

    opened: list[RunData] = []
    agreed(lambda: opened.append(open_here()), processes.control_group)
    refuse_differences(data_facts(opened[0].all_identities, data.tokenizer), processes, config)
    return opened[0]


def verify_data(data: DataConfig, processes: Processes, say: Say) -> Verification:
    """Compare the shards with their checksums now, or return what does it beside the steps.

    Each process reads its share of the files. Collective.

    Raises:
        UserError: a file is damaged; or a `data.json` is.
    """
    if data.verify == "never":
        return Verification(())
    prefixes = [source.path for source in data.sources]
    if data.validation is not None:
        prefixes.append(data.validation)
    group, environment = processes.control_group, processes.environment
    # Each rank keeps its list to itself: at thousands of ranks all lists would fill the memory.
    opened: list[Verifiable] = []
    agreed(lambda: opened.append(files_of(prefixes)), group)
    found = opened[0]
    for prefix in found.without:
        say(f"data     {prefix} can't be verified: no data.json has its checksums")
    # The large .bin first, so that each process gets as many of these.
    by_kind = sorted(found.files, key=lambda file: file.path.suffix)
    share = by_kind[environment.rank :: environment.world_size]
    if data.verify == "background":
        return Verification(share)
    agreed_however_long(partial(verify, share), group)
    return Verification(())


def late_damage(verification: Verification, processes: Processes) -> list[str]:
    """What any rank has found damaged by now, for the run's end: after the last batch is read
    nothing else asks. Collective.
    """
    found = gather_objects(verification.damage, processes.control_group)
    return sorted({damage for damage in found if damage is not None})
