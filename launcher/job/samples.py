"""A run's samples by number, as text: what the steps in `events.jsonl` were made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from triax.checkpoint.folders import list_checkpoints
from triax.checkpoint.run_folder import kept_tokenizer
from triax.common.errors import UserError
from triax.common.showing import printable
from triax.data.prepare.tokenizer import decode, load_tokenizer
from triax.data.read.blend import Blend
from triax.data.read.identity import Identity, identify_sources
from triax.data.read.opening import open_sources
from triax.data.read.plan import planned_phases
from triax.data.read.sampler import Sampler
from triax.data.read.source import Source
from triax.launcher.config.loading import load_config
from triax.launcher.config.run_config import RunConfig
from triax.training.records.run_directory import RunDirectory


@dataclass(frozen=True)
class Sample:
    """One sample's place and text."""

    source: str
    """Its path."""
    epoch: int
    window: int
    num_documents: int
    text: str

    def describe(self) -> str:
        """Its place, in words."""
        return (
            f"{printable(self.source)}, window {self.window:,}, epoch {self.epoch}, "
            f"{self.num_documents} documents"
        )


class RunSamples:
    """Finds any sample of a run by the arithmetic that training uses."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        blend: Blend,
        sampler: Sampler,
        tokenizer: Tokenizer | None,
    ) -> None:
        self._sources = sources
        self._blend = blend
        self._sampler = sampler
        self._tokenizer = tokenizer

    @staticmethod
    def open(path: Path, tokenizer: Path | None) -> RunSamples:
        """The samples of a run.

        Args:
            path: the run's folder, or its config.
            tokenizer: its folder; the config's by default. Without any, token ids are shown.

        Raises:
            UserError: the config or the data can't be read.
        """
        if not path.exists():
            raise UserError(
                f"{path}: --sample shows what a run read, so a run's folder or its "
                "config is expected here, and this is neither"
            )
        near = RunDirectory(path if path.is_dir() else path.parent)
        config = load_config(near.config if path.is_dir() else path)
        # A run may have been moved from where its config says; a config may lie outside its run.
        is_run = path.is_dir() or near.checkpoints.is_dir()
        directory = near if is_run else RunDirectory(config.run_dir)
        opened = open_sources(config.data, config.model.vocab_size)
        blend = _blend(config, directory, identify_sources(config.data.sources, opened))
        sources = dict(zip(blend.keys, opened, strict=True))
        sampler = Sampler(config.run.seed, blend.phases, blend.num_windows())
        named = None if config.data.tokenizer is None else Path(config.data.tokenizer)
        folder = tokenizer or kept_tokenizer(directory.path) or named
        loaded = None if folder is None else load_tokenizer(folder)
        return RunSamples(sources, blend, sampler, loaded)

    def read(self, number: int) -> Sample:
        """One sample.

        Raises:
            UserError: the number is negative, or its source is no longer given.
        """
        if number < 0:
            raise UserError(f"--sample: {number}, expected 0 or more")
        at = self._sampler.locate(number)
        path = self._blend.sources[at.source].path
        if at.source not in self._sources:
            raise UserError(
                f"data.sources: sample {number:,} was read from {path}, which is no longer given"
            )
        window = self._sources[at.source].window(at.window)
        tokens = window.tokens.tolist()
        text = (
            " ".join(map(str, tokens))
            if self._tokenizer is None
            else decode(self._tokenizer, tokens, skip_special_tokens=False)
        )
        num_documents = int(window.document_ids[-1] - window.document_ids[0]) + 1
        return Sample(path, at.epoch, at.window, num_documents, text)


def _blend(config: RunConfig, directory: RunDirectory, sources: list[Identity]) -> Blend:
    """The phases so far, by the newest checkpoint; else the config's from the beginning."""
    plan = planned_phases(config.data, config.batch.global_batch_size)
    records = [
        info.manifest.record
        for info in list_checkpoints(directory.checkpoints)
        if info.manifest is not None
    ]
    if not records:
        return Blend.begin(sources, plan)
    return Blend.resume(records[-1], records[-1]["cursor"], sources, plan)
