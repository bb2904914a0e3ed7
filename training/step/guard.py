"""Judges a step by its loss and gradient norm, before the update, without waiting for the device.

Shape letters: W window, S norms last seen, 2 = (loss, log of the gradient norm), 4 = those and
their changes, h = spans whose medians are compared for drift (the last quarter, the window).
"""

from __future__ import annotations

import math
from enum import IntFlag
from statistics import NormalDist
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triax.training.stability_config import StabilityConfig

_QUANTILE = 0.8
_CHANGE_TO_SIGMA = 1 / (math.sqrt(2) * NormalDist().inv_cdf((1 + _QUANTILE) / 2))
"""Makes that quantile of the absolute changes between neighbours a normal's deviation."""
_DOUBT = NormalDist().inv_cdf(1 - 1e-6) ** 2 / 2
"""With the relative error 1 / sqrt(n) that it has, by simulation, a deviation taken from n changes
is as good as one with n / 2 degrees of freedom. What a value exceeds once in a million times is
Student's quantile then, `exp(z ** 2 / (4 * n / 2))` times the normal's z (Wallace 1959, to second
order)."""
_TAIL = (1.0, 1.6)
"""Of loss and log norm: how much further than a normal's the tail of healthy values reaches."""
_SMALLEST_SIGMA = (0.02, 0.25)
"""Of the loss in nats, and of the log gradient norm: below, a calm run would shy at trifles."""
_NUM_SEEN = 8
"""Norms that tell a level from a spike: a level is what half of them have."""
_MEDIAN_ERROR = 1.2533
"""A normal sample's median has this standard error, times the deviation over sqrt(n)."""


class Reason(IntFlag):
    """Why a step was refused."""

    NON_FINITE = 1
    LOSS = 2
    """The loss is far above the recent ones."""
    NORM = 4
    """The gradient norm is."""
    DRIFT = 8
    """The losses of late together have risen far above the lowest that they were at."""

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
    """Robust standard deviations above the recent median, each widened by what so few values
    leave in doubt; 0 while the guard warms up."""
    norm_score: Tensor
    drift_score: Tensor
    """A median above the lowest of its kind, in the standard errors of such a difference."""
    clip_limit: Tensor
    """The norm to clip to by the window's percentile; infinity where that is off."""


class Guard:
    """Refuses steps whose loss or gradient norm is not finite, or far above the recent ones.

    Far is `threshold` robust standard deviations above the median: the Hampel identifier (Hampel
    1974), with quantiles as Leys et al. 2013 recommend over mean and standard deviation, which one
    outlier ruins. The median is that of the last quarter of the window. The deviation comes from
    the changes from one accepted step to the next over the whole window: the noise, whatever the
    trend (von Neumann et al. 1941). A median absolute deviation would count the loss's fall as
    noise and let spikes of several nats pass. It is the 0.8 quantile of the absolute changes,
    scaled to a normal's deviation: still blind to a fifth of wild values, but less uncertain than
    the median (a relative error of 1.0 / sqrt(n), not 1.27 / sqrt(n), by simulation), and nearer
    the tail. From few values it is a guess, so limits are wider then, as Student's quantiles are
    wider than a normal's: `exp(11.3 / n)` times, which is 1.42 for 32 changes and 1.09 for 128.

    Norms are compared by their logarithm. At few sequences a batch its tail in healthy runs is
    exponential rather than normal, early and late alike, so that 1.6 times as many deviations are
    allowed, which is more than doubt asks for: clipping handles what is below. A norm that stays
    high while the loss is ordinary is a level, not a spike: what half of the last 8 norms
    have, taken or not, counts where it is the higher one, and clipping does its work.

    A slow divergence takes the median along and never looks like a spike. So the medians of the
    last quarter and of the window are held against the lowest that each has been since the guard
    began, in the standard error of such a difference (sqrt(2) x 1.2533 x deviation / sqrt(n)): a
    rise of 2.5 or 1.3 deviations, though no less than `threshold` x 0.02 nats.

    Falling never counts, refused values never enter the window, and there is no verdict but on
    finiteness before a quarter of the window is filled.

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
        self._slots_S = torch.arange(_NUM_SEEN, device=self._device)
        self._smallest_2 = torch.tensor(_SMALLEST_SIGMA, device=self._device)
        self._tail_2 = torch.tensor(_TAIL, device=self._device)
        spans_h = torch.tensor((self._quarter, config.window), device=self._device)
        self._errors_h = math.sqrt(2) * _MEDIAN_ERROR / spans_h.sqrt()
        self.forget()

    def forget(self) -> None:
        """Begin with an empty window: the level of the loss is about to change for good."""
        window = self._config.window
        self._values_4W = torch.full((4, window), torch.inf, device=self._device)
        self._count = torch.zeros((), dtype=torch.int64, device=self._device)
        self._seen_S = torch.full((_NUM_SEEN,), torch.inf, device=self._device)
        self._num_seen = torch.zeros((), dtype=torch.int64, device=self._device)
        self._lowest_h = torch.full((2,), torch.inf, device=self._device)
        self._lowest_sigma_h = torch.ones((2,), device=self._device)

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
        sigma_2 = self._deviations(sorted_4W[2:])
        unit_2 = (sigma_2 * self._doubt().maximum(self._tail_2)).maximum(self._smallest_2)
        median_2 = self._recent_median()
        level_2 = torch.stack((median_2[0], median_2[1].maximum(self._seen_level())))
        speaks = (self._count >= self._quarter) & ~overflowed & has_targets
        scores_2 = torch.where(speaks, (values_2 - level_2) / unit_2, 0.0)
        window_median = _middle(sorted_4W[:1], self._num_valid(self._config.window))
        medians_h = torch.cat((median_2[:1], window_median))
        drift_score, drifted = self._drift(loss, medians_h, sigma_2[0])
        far_2 = scores_2 > self._config.threshold
        self._see(values_2[1], ~(overflowed | far_2[0] | drifted) & has_targets)
        if self._config.spike_guard:
            far_2, drifted = far_2.float(), (drifted & ~overflowed & has_targets).float()
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
        num_seen = int(self._num_seen)
        seen = self._seen_S.roll(-(num_seen % _NUM_SEEN)) if num_seen >= _NUM_SEEN else self._seen_S
        return {
            "losses": values[0].tolist(),
            "log_norms": values[1].tolist(),
            "loss_changes": values[2].tolist(),
            "log_norm_changes": values[3].tolist(),
            "seen_log_norms": seen[:num_seen].tolist(),
            "lowest": [low if math.isfinite(low) else None for low in self._lowest_h.tolist()],
            "lowest_sigma": self._lowest_sigma_h.tolist(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; of a longer window than now the newest values are taken.

        States from before norms had levels hold no seen norms, and one lowest median. The lowest
        medians are of full windows: those of a window of another length begin anew.
        """
        self.forget()
        names = ("losses", "log_norms", "loss_changes", "log_norm_changes")
        values = torch.tensor([state[name] for name in names], device=self._device)
        is_of_this_window = values.shape[1] == self._config.window
        values = values[:, -self._config.window :]
        self._values_4W[:, : values.shape[1]] = values
        self._count += values.shape[1]
        seen = state.get("seen_log_norms", state["log_norms"])[-_NUM_SEEN:]
        self._seen_S[: len(seen)] = torch.tensor(seen, device=self._device)
        self._num_seen += len(seen)
        if not is_of_this_window:
            return
        lowest, sigma = state["lowest"], state["lowest_sigma"]
        if not isinstance(lowest, list):
            lowest, sigma = [lowest, None], [sigma, 1.0]
        known = [math.inf if low is None else low for low in lowest]
        self._lowest_h = torch.tensor(known, device=self._device)
        self._lowest_sigma_h = torch.tensor(sigma, device=self._device)

    def _num_valid(self, most: int) -> Tensor:
        return self._count.clamp(min=1, max=most)

    def _recent_median(self) -> Tensor:
        """The medians (2,) of the last quarter of a window."""
        age_W = (self._count - 1 - self._slots_W) % self._config.window
        recent_2W = torch.where(age_W < self._quarter, self._values_4W[:2], torch.inf)
        return _middle(recent_2W.sort(dim=1).values, self._num_valid(self._quarter))

    def _deviations(self, sorted_changes_2W: Tensor) -> Tensor:
        """Of loss and log norm (2,), by a quantile of their changes."""
        rank = (_QUANTILE * self._num_valid(self._config.window)).long()
        return _CHANGE_TO_SIGMA * sorted_changes_2W.index_select(1, rank[None])[:, 0]

    def _doubt(self) -> Tensor:
        """How much wider limits are for a deviation that is known from few values."""
        return (_DOUBT / self._num_valid(self._config.window)).exp()

    def _seen_level(self) -> Tensor:
        """What half of the last norms have, taken or not; none before there are enough."""
        half = self._seen_S.sort().values[_NUM_SEEN // 2]
        return torch.where(self._num_seen >= _NUM_SEEN, half, -torch.inf)

    def _see(self, log_norm: Tensor, is_ordinary: Tensor) -> None:
        """Note a norm, if the step's loss is ordinary."""
        here_S = (self._slots_S == self._num_seen % _NUM_SEEN) & is_ordinary
        self._seen_S = torch.where(here_S, log_norm, self._seen_S)
        self._num_seen = self._num_seen + is_ordinary

    def _drift(self, loss: Tensor, medians_h: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """How far a median has risen above its lowest, and whether too far.

        Values that are back at the old level are taken, or the median could never follow them.
        """
        is_full = self._count >= self._config.window
        is_lowest_h = is_full & (medians_h <= self._lowest_h)
        self._lowest_h = torch.where(is_lowest_h, medians_h, self._lowest_h)
        self._lowest_sigma_h = torch.where(is_lowest_h, sigma, self._lowest_sigma_h)
        units_h = (self._errors_h * self._lowest_sigma_h).maximum(self._smallest_2[0])
        scores_h = torch.where(is_full, (medians_h - self._lowest_h) / units_h, 0.0)
        drifted_h = (scores_h > self._config.threshold) & (loss > self._lowest_h)
        return scores_h.max(), drifted_h.any()

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
