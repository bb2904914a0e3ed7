"""The record of a run's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch

from triax.checkpoint.folders import CheckpointInfo
from triax.checkpoint.model import base_record
from triax.common.errors import record_errors
from triax.data.prepare.document_tokens import tokens_of_run
from triax.launcher.config.resolved import absolute_paths
from triax.launcher.config.run_config import RunConfig
from triax.launcher.job.levels import describe_rates, moves_the_level
from triax.launcher.job.resume import ResumePoint, fingerprint_of
from triax.parallel.layout import Layout
from triax.training.stability.escalation import Escalation
from triax.training.step.guard import Guard
from triax.training.step.precision import LossScaler
from triax.training.step.state import TrainState


class RecordKeeper:
    """What a checkpoint's record holds beside the counters, and how it comes back from there.

    Args:
        config: the run's.
        layout: of this session.
        device: where the engine computes.
        resume_point: what the run goes on from; its record is put back at once.
        base: whose weights the run's adapters stand beside.
    """

    def __init__(
        self,
        config: RunConfig,
        layout: Layout,
        device: torch.device,
        resume_point: ResumePoint,
        base: CheckpointInfo | None = None,
    ) -> None:
        self._config = config
        self._layout = layout
        self._base = {} if base is None else {"base": base_record(base)}
        self._resume_point = resume_point
        # A run that is shown without a tokenizer for a while still has the one it began with.
        recorded = (resume_point.record or {}).get("tokenizer")
        self._tokenizer = fingerprint_of(config.data) or recorded
        self._tokens = tokens_of_run(config.data)
        self.scaler = LossScaler(config.precision, device)
        self.guard = Guard(config.stability, device)
        self.escalation = Escalation(config.stability)
        self.guard_news: str | None = None
        """That the guard begins anew, and what the learning rate was and will be."""
        if resume_point.record is not None:
            self.restore(resume_point.record)
            with record_errors():
                if "escalation" in resume_point.record:
                    self.escalation.load(resume_point.record["escalation"])
                if self._is_of_another_level(resume_point.record):
                    self.guard.forget()
                    self.escalation.accepted_new_level()
                    rates = describe_rates(
                        resume_point.record["config"], config, resume_point.state.tokens
                    )
                    self.guard_news = f"the guard begins anew with this config: {rates}"

    def make(self, state: TrainState) -> dict[str, Any]:
        """The record of a checkpoint at a state; waits for the device."""
        return (
            self._resume_point.record_of(state)
            | self._base
            | {
                "config": absolute_paths(self._config.model_dump(mode="json"), RunConfig),
                "tokenizer": self._tokenizer,
                "document_tokens": None if self._tokens is None else self._tokens.to_json(),
                "layout": asdict(self._layout),
                "loss_scaler": self.scaler.state(),
                "guard": self.guard.state(),
                "escalation": self.escalation.state(),
            }
        )

    @record_errors()
    def restore(self, record: Mapping[str, Any]) -> None:
        """Take guard and loss scale back to a record.

        Older ones have no guard, and what it has seen under a config that moved the loss to
        another level says nothing about this one.
        """
        self.scaler.load(record["loss_scaler"])
        if "guard" in record and not self._is_of_another_level(record):
            self.guard.load(record["guard"])
        else:
            self.guard.forget()

    def _is_of_another_level(self, record: Mapping[str, Any]) -> bool:
        """Whether a record's losses were of other data, or of a config that moves them."""
        resumed = self._resume_point
        sample = max(record["cursor"], resumed.state.cursor)
        return resumed.blend.differs_from(record, sample) or moves_the_level(
            record["config"], self._config
        )
