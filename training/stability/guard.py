"""Judges a step by its loss and gradient norm, before the update, without waiting for the device.

Shape letters: W window, 2 = (loss, log of the gradient norm), 4 = those and their changes.
"""

from __future__ import annotations

import math
from enum import IntFlag
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triax.training.stability.config import StabilityConfig

_CHANGE_TO_SIGMA = 1.4826 / math.sqrt(2)
"""Makes the median absolute change between neighbours an estimate of a normal's deviation."""
_SMALLEST_SIGMA = (0.02, 0.25)
"""Of the loss in nats, and of the log gradient norm: below, a calm run would shy at trifles."""


class Reason(IntFlag):
    """Why a step was refused."""

    NON_FINITE = 1
    LOSS = 2
    """The loss is far above the recent ones."""
    NORM = 4
    """The gradient norm is."""
    DRIFT = 8
    """The recent losses together have risen far above the lowest that they were at."""

    def describe(self) -> str:
        """In words, for events and reports."""
        words = {
            Reason.NON_FINITE: "non-finite",
            Reason.LOSS: "loss spike",
            Reason.NORM: "gradient norm spike",
            Reason.DRIFT: "loss has drifted up",
        }
        return ", ".join(word for reason, word in words.items() if reason in self)


class Verdict(NamedTuple):
    """About one step; fp32 scalars on the device."""

    skip: Tensor
    """1 to skip the update, 0 to take it."""
    overflowed: Tensor
    """1 if loss or gradient norm is not finite."""
    reasons: Tensor
    """The sum of `Reason`s; 0 if accepted."""
    loss_score: Tensor
    """Robust standard deviations above the recent median; 0 while the guard warms up."""
    norm_score: Tensor
    drift_score: Tensor
    """The recent median above the lowest one, in the standard deviations of that time."""
    clip_limit: Tensor
    """The norm to clip to by the window's percentile; infinity where that is off."""


class Guard:
    """Refuses steps whose loss or gradient norm is not finite, or far above the recent ones.

    Far is `threshold` robust standard deviations above the median: the Hampel identifier (Hampel
    1974), with medians as Leys et al. 2013 recommend over mean and standard deviation, which one
    outlier ruins. The median is that of the last quarter of the window. The deviation is 1.4826 x
    the median absolute change from one accepted step to the next over the whole window, divided
    by sqrt(2): the noise, whatever the trend (von Neumann et al. 1941 estimate it from such
    differences). A median absolute deviation would count the loss's fall as noise and let spikes
    of several nats pass. Norms are compared by their logarithm, being skewed. Falling never
    counts, refused values never enter the window, and there is no verdict but on finiteness
    before a quarter of the window is filled.

    It reads sums over all processes, so every process comes to the same verdict, and it keeps and
    answers with tensors on the device, so the host doesn't wait.

    Args:
        config: the `[stability]` section.
        device: where the loss comes from.
    """

    def __init__(
        self, config: StabilityConfig | None = None, device: torch.device | None = None
    ) -> None:
        self._config = config = config or StabilityConfig()
        self._device = device or torch.device("cpu")
        self._quarter = config.window // 4
        self._slots_W = torch.arange(config.window, device=self._device)
        self._smallest_2 = torch.tensor(_SMALLEST_SIGMA, device=self._device)
        self.forget()

    def forget(self) -> None:
        """Begin with an empty window: the level of the loss is about to change for good."""
        window = self._config.window
        self._values_4W = torch.full((4, window), torch.inf, device=self._device)
        self._count = torch.zeros((), dtype=torch.int64, device=self._device)
        self._lowest = torch.full((), torch.inf, device=self._device)
        self._lowest_sigma = torch.ones((), device=self._device)

    def judge(self, loss: Tensor, grad_norm: Tensor, has_targets: Tensor | None = None) -> Verdict:
        """The verdict on a step, which enters the window if it is accepted.

        Args:
            loss: mean cross entropy, fp32 scalar on the guard's device.
            grad_norm: before clipping, fp32 scalar.
            has_targets: False where the batch has none: its figures are nobody's, and don't enter.
        """
        if has_targets is None:
            has_targets = torch.ones_like(loss, dtype=torch.bool)
        overflowed = ~(torch.isfinite(loss) & torch.isfinite(grad_norm))
        # A gradient of exactly zero must stay comparable.
        values_2 = torch.stack((loss, grad_norm.clamp(min=1e-30).log()))
        sorted_4W = self._values_4W.sort(dim=1).values
        sigma_2 = _CHANGE_TO_SIGMA * _middle(sorted_4W[2:], self._num_valid(self._config.window))
        sigma_2 = sigma_2.maximum(self._smallest_2)
        median_2 = self._recent_median()
        speaks = (self._count >= self._quarter) & ~overflowed & has_targets
        scores_2 = torch.where(speaks, (values_2 - median_2) / sigma_2, 0.0)
        drift_score, drifted = self._drift(loss, median_2[0], sigma_2[0])
        if self._config.spike_guard:
            far_2 = (scores_2 > self._config.threshold).float()
            drifted = (drifted & ~overflowed & has_targets).float()
        else:
            far_2, drifted = torch.zeros_like(scores_2), torch.zeros_like(loss)
        overflow = overflowed.float()
        reasons = (
            overflow * Reason.NON_FINITE + far_2[0] * Reason.LOSS
            + far_2[1] * Reason.NORM + drifted * Reason.DRIFT
        )  # fmt: skip
        accept = reasons == 0
        clip_limit = self._clip_limit(sorted_4W[1])
        self._enter(values_2, accept & has_targets)
        return Verdict(
            1.0 - accept.float(), overflow, reasons, scores_2[0], scores_2[1], drift_score,
            clip_limit,
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """For the checkpoint's record, exact; waits for the device."""
        count, window = int(self._count), self._config.window
        values = self._values_4W[:, :count] if count < window else self._oldest_first(count)
        is_known = bool(torch.isfinite(self._lowest))
        return {
            "losses": values[0].tolist(),
            "log_norms": values[1].tolist(),
            "loss_changes": values[2].tolist(),
            "log_norm_changes": values[3].tolist(),
            "lowest": self._lowest.item() if is_known else None,
            "lowest_sigma": self._lowest_sigma.item(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; of a longer window than now the newest values are taken."""
        self.forget()
        names = ("losses", "log_norms", "loss_changes", "log_norm_changes")
        values = torch.tensor([state[name] for name in names], device=self._device)
        values = values[:, -self._config.window :]
        self._values_4W[:, : values.shape[1]] = values
        self._count += values.shape[1]
        if state["lowest"] is not None:
            self._lowest.fill_(state["lowest"])
            self._lowest_sigma.fill_(state["lowest_sigma"])

    def _num_valid(self, most: int) -> Tensor:
        return self._count.clamp(min=1, max=most)

    def _recent_median(self) -> Tensor:
        """The medians (2,) of the last quarter of a window."""
        age_W = (self._count - 1 - self._slots_W) % self._config.window
        recent_2W = torch.where(age_W < self._quarter, self._values_4W[:2], torch.inf)
        return _middle(recent_2W.sort(dim=1).values, self._num_valid(self._quarter))

    def _drift(self, loss: Tensor, median: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """How far the recent median has risen above its lowest, and whether too far.

        A slow divergence takes the median along and never looks like a spike.
        """
        is_full = self._count >= self._config.window
        is_lowest = is_full & (median <= self._lowest)
        self._lowest = torch.where(is_lowest, median, self._lowest)
        self._lowest_sigma = torch.where(is_lowest, sigma, self._lowest_sigma)
        limit = self._lowest + self._config.threshold * self._lowest_sigma
        score = torch.where(is_full, (median - self._lowest) / self._lowest_sigma, 0.0)
        return score, is_full & (median > limit) & (loss > limit)

    def _enter(self, values_2: Tensor, accept: Tensor) -> None:
        here_W = (self._slots_W == self._count % self._config.window) & accept
        last = (self._count - 1) % self._config.window
        last_2 = self._values_4W[:2].index_select(1, last[None])[:, 0]
        changes_2 = torch.where(self._count > 0, (values_2 - last_2).abs(), 0.0)
        values_4 = torch.cat((values_2, changes_2))
        self._values_4W = torch.where(here_W, values_4[:, None], self._values_4W)
        self._count = self._count + accept

    def _clip_limit(self, sorted_log_norms_W: Tensor) -> Tensor:
        """A percentile of the accepted norms (AutoClip, Seetharaman et al. 2020)."""
        percentile = self._config.adaptive_clip_percentile
        if percentile is None:
            return torch.full((), torch.inf, device=self._device)
        rank = ((self._num_valid(self._config.window) - 1) * (percentile / 100)).long()
        limit = sorted_log_norms_W.index_select(0, rank[None])[0].exp()
        return torch.where(self._count >= self._quarter, limit, torch.inf)

    def _oldest_first(self, count: int) -> Tensor:
        return self._values_4W.roll(-(count % self._config.window), dims=1)


def _middle(sorted_2W: Tensor, num_valid: Tensor) -> Tensor:
    """The medians (2,) of the first so many values of sorted rows."""
    low, high = (num_valid - 1) // 2, num_valid // 2
    return sorted_2W.index_select(1, torch.stack((low, high))).mean(dim=1)
