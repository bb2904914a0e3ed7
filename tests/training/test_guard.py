"""The guard: what it refuses, what it never refuses, and that nobody waits for it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from triax.training.stability_config import StabilityConfig
from triax.training.step.guard import Guard, Reason

WINDOW = 32


def judged(guard: Guard, loss: float, norm: float = 1.0) -> Reason:
    verdict = guard.judge(torch.tensor(loss), torch.tensor(norm))
    reasons = Reason(int(verdict.reasons))
    assert bool(verdict.skip) == bool(reasons)
    return reasons


def warm(num_steps: int = WINDOW, seed: int = 0, **config: Any) -> Guard:
    """A guard that has seen a calm run around a loss of 3."""
    guard = Guard(StabilityConfig(window=WINDOW, **config))
    generator = torch.Generator().manual_seed(seed)
    for noise in torch.randn(num_steps, generator=generator).tolist():
        assert judged(guard, 3.0 + 0.05 * noise, math.exp(0.2 * noise)) == Reason(0)
    return guard


@pytest.mark.parametrize(
    ("loss", "norm", "reason"),
    [
        (4.0, 1.0, Reason.LOSS),
        (3.0, 300.0, Reason.NORM),
        (9.0, 1e4, Reason.LOSS | Reason.NORM),
        (math.nan, 1.0, Reason.NON_FINITE),
        (3.0, math.inf, Reason.NON_FINITE),
        (math.nan, math.nan, Reason.NON_FINITE),
        (3.1, 1.5, Reason(0)),
        (0.1, 0.0, Reason(0)),
    ],
)
def test_what_is_refused(loss: float, norm: float, reason: Reason) -> None:
    assert judged(warm(), loss, norm) == reason


def test_refused_values_never_enter_the_window() -> None:
    guard = warm(2 * WINDOW)
    before = guard.state()
    for _ in range(3 * WINDOW):
        assert judged(guard, 8.0) == Reason.LOSS
        assert judged(guard, 8.0, 1e3) == Reason.LOSS | Reason.NORM
        assert judged(guard, math.nan) == Reason.NON_FINITE
    assert guard.state() == before
    assert judged(guard, 3.0, 300.0) == Reason.NORM
    del before["seen_log_norms"]
    assert {name: guard.state()[name] for name in before} == before
    assert judged(guard, 3.0) == Reason(0)


def test_a_norm_that_stays_high_is_a_level_and_not_a_spike() -> None:
    """Clipping does its work on it; refused for ever, the run would be frozen."""
    guard = warm(2 * WINDOW)
    reasons = [judged(guard, 3.0, 400.0) for _ in range(2 * WINDOW)]
    first = reasons.index(Reason(0))
    assert first == 4
    assert set(reasons[:first]) == {Reason.NORM} and not any(reasons[first:])
    assert judged(guard, 3.0, 1e6) == Reason.NORM
    assert judged(guard, 3.0, 1.0) == Reason(0)


def test_a_norm_that_explodes_is_no_level() -> None:
    guard = warm(2 * WINDOW)
    assert all(judged(guard, 3.0, 1e3 * 10.0**step) == Reason.NORM for step in range(20))


def test_a_limit_from_few_values_is_wider_but_finds_what_stands_out() -> None:
    """Both know the same deviation, one of them from four times as many values."""
    few, many = Guard(), Guard()
    for step in range(128):
        loss = torch.tensor(3.0 + 0.05 * (step % 2))
        many.judge(loss, torch.ones(()))
        if step < 32:
            few.judge(loss, torch.ones(()))
    scores = [guard.judge(torch.tensor(4.0), torch.ones(())).loss_score for guard in (few, many)]
    assert scores[1] / scores[0] == pytest.approx(math.exp(11.3 / 32 - 11.3 / 128), rel=0.05)
    assert scores[0] > 8


def reasons(losses_T: Tensor, norms_T: Tensor) -> Tensor:
    """What a fresh guard with its default settings finds at each step of a run."""
    guard = Guard()
    return torch.stack(
        [guard.judge(loss, norm).reasons for loss, norm in zip(losses_T, norms_T, strict=True)]
    )


reasons_of_all = torch.func.vmap(reasons)


def noise(num_steps: int, tail: str = "normal") -> tuple[Tensor, Tensor]:
    """Losses and norms of 200 runs that vary as much as those of a sequence a batch do."""
    torch.manual_seed(0)
    one = torch.ones(())
    kind = {
        "normal": torch.distributions.Normal(0 * one, one),
        "exponential": torch.distributions.Laplace(0 * one, one / 2**0.5),
    }[tail]
    losses_RT = 3.0 + 0.45 * kind.sample((200, num_steps))
    return losses_RT, (0.27 * kind.sample((200, num_steps))).exp()


@pytest.mark.parametrize("tail", ["normal", "exponential"])
def test_healthy_noise_is_taken_from_the_first_word_on(tail: str) -> None:
    assert reasons_of_all(*noise(160, tail)).count_nonzero() == 0


@pytest.mark.parametrize(("step", "extra"), [(40, 6.0), (140, 5.0)])
def test_what_stands_out_of_the_noise_is_found(step: int, extra: float) -> None:
    """Early limits are wider by a third: 10.6 deviations of 0.45 nats at step 40, later 8.7."""
    losses_RT, norms_RT = noise(step + 1)
    losses_RT[:, -1] += extra
    norms_RT[:, -1] *= 100
    found_R = reasons_of_all(losses_RT, norms_RT)[:, -1].long()
    assert ((found_R & Reason.LOSS) > 0).float().mean() > 0.9
    assert ((found_R & Reason.NORM) > 0).float().mean() > 0.9


def test_no_word_on_spikes_before_a_quarter_of_the_window() -> None:
    guard = warm(WINDOW // 4 - 1)
    assert judged(guard, 50.0) == Reason(0)
    assert judged(warm(WINDOW // 4), 50.0) == Reason.LOSS
    assert judged(Guard(), math.nan) == Reason.NON_FINITE


def test_a_falling_loss_is_never_refused() -> None:
    guard = Guard(StabilityConfig(window=WINDOW))
    for step in range(500):
        assert judged(guard, 2.0 + 9.0 * math.exp(-step / 20), 5.0 * math.exp(-step / 50)) == 0


def test_a_slow_divergence_is_told_by_its_drift() -> None:
    guard = warm(4 * WINDOW)
    reasons = [judged(guard, 3.0 + 0.01 * step) for step in range(300)]
    first = next(step for step, reason in enumerate(reasons) if reason)
    assert reasons[first] == Reason.DRIFT
    assert first < 100
    assert all(reasons[first:])


def test_the_guard_can_be_switched_off_but_for_finiteness() -> None:
    guard = warm(spike_guard=False)
    assert judged(guard, 1e6, 1e6) == Reason(0)
    assert judged(guard, math.nan) == Reason.NON_FINITE


def test_a_slow_divergence_is_found_though_steps_are_noisy() -> None:
    """A rise of a nat and a half stays below eight deviations of single steps at 0.3 nats."""
    guard, generator = Guard(), torch.Generator().manual_seed(0)
    losses = [0.0] * 400 + [0.0025 * step for step in range(600)]
    noise = 0.3 * torch.randn(len(losses), generator=generator)
    reasons = [judged(guard, 2.2 + rise + float(n)) for rise, n in zip(losses, noise, strict=True)]
    refused = [step for step, reason in enumerate(reasons) if reason]
    assert reasons[refused[0]] == Reason.DRIFT
    assert 400 < refused[0] < 750
    assert refused[19] - refused[0] < 40, "so many that the run is rolled back"


def test_a_guard_that_drifted_takes_what_is_back_at_the_old_level() -> None:
    guard = warm(4 * WINDOW)
    reasons = [judged(guard, 3.0 + 0.01 * step) for step in range(100)]
    assert Reason.DRIFT in reasons[-1]
    assert judged(guard, 2.5) == Reason(0)


def test_a_state_from_before_norms_had_levels_loads() -> None:
    guard = warm(2 * WINDOW)
    state = guard.state()
    del state["seen_log_norms"]
    state["lowest"], state["lowest_sigma"] = state["lowest"][0], state["lowest_sigma"][0]
    older = Guard(StabilityConfig(window=WINDOW))
    older.load(state)
    assert older.state()["seen_log_norms"] == guard.state()["seen_log_norms"]
    assert older.state()["lowest"] == [guard.state()["lowest"][0], None]


@pytest.mark.parametrize("num_steps", [0, 5, WINDOW, 3 * WINDOW + 7])
def test_a_restored_guard_decides_as_the_one_that_went_on(num_steps: int) -> None:
    guard, restored = warm(num_steps), Guard(StabilityConfig(window=WINDOW))
    restored.load(json.loads(json.dumps(guard.state())))
    generator = torch.Generator().manual_seed(1)
    for noise in torch.randn(200, generator=generator):
        value, norm = 3.0 + 0.2 * noise, noise.exp() * (1 + 40 * (noise > 1.5))
        left, right = guard.judge(value, norm), restored.judge(value, norm)
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))
    assert guard.state() == restored.state()


@pytest.mark.parametrize("window", [WINDOW // 2, WINDOW * 2])
def test_a_window_of_another_length_has_lowest_medians_of_its_own(window: int) -> None:
    state = warm(2 * WINDOW).state()
    assert None not in state["lowest"]
    other = Guard(StabilityConfig(window=window))
    other.load(state)
    assert other.state()["lowest"] == [None, None]


def test_a_shorter_window_takes_the_newest_values() -> None:
    guard = warm(3 * WINDOW + 7)
    shorter = Guard(StabilityConfig(window=16))
    shorter.load(guard.state())
    assert shorter.state()["losses"] == guard.state()["losses"][-16:]


@pytest.mark.parametrize("percentile", [10.0, 50.0, 90.0])
def test_adaptive_clipping_takes_a_percentile_of_accepted_norms(percentile: float) -> None:
    guard = Guard(StabilityConfig(window=WINDOW, adaptive_clip_percentile=percentile))
    norms = [1.0 + 0.01 * number for number in range(WINDOW)]
    limits = [guard.judge(torch.tensor(3.0), torch.tensor(norm)).clip_limit for norm in norms]
    assert limits[WINDOW // 4 - 1].item() == math.inf
    guard.judge(torch.tensor(3.0), torch.tensor(math.nan))
    limit = guard.judge(torch.tensor(3.0), torch.tensor(1.0)).clip_limit.item()
    assert limit == pytest.approx(norms[int((WINDOW - 1) * percentile / 100)], rel=1e-5)


class NoWaiting(TorchDispatchMode):
    """Refuses every operation that needs a value on the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        refused = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero")
        assert name not in refused, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


def test_the_mode_would_notice_waiting() -> None:
    with NoWaiting(), pytest.raises(AssertionError, match="waits"):
        bool(torch.ones(()) > 0)


def test_judging_waits_for_nothing() -> None:
    guard = warm(adaptive_clip_percentile=50.0)
    loss, norm = torch.tensor(3.0), torch.tensor(1.0)
    with NoWaiting():
        for _ in range(3):
            guard.judge(loss, norm)


@pytest.mark.gpu
def test_judging_waits_for_nothing_on_a_gpu() -> None:
    device = torch.device("cuda")
    guard = Guard(StabilityConfig(window=WINDOW, adaptive_clip_percentile=50.0), device)
    loss, norm = torch.tensor(3.0, device=device), torch.tensor(1.0, device=device)
    guard.judge(loss, norm)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2 * WINDOW):
            guard.judge(loss, norm)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("is_rising", [False, True])
def test_a_batch_without_targets_is_neither_judged_nor_remembered(is_rising: bool) -> None:
    guard = warm()
    if is_rising:
        for step in range(WINDOW):
            judged(guard, 3.0 + 0.02 * step)
    before = guard.state()
    verdict = guard.judge(torch.zeros(()), torch.zeros(()), has_targets=torch.tensor(False))
    assert not verdict.skip and not verdict.reasons
    assert not verdict.loss_score and not verdict.norm_score
    for name in ("losses", "log_norms", "loss_changes", "log_norm_changes"):
        assert guard.state()[name] == before[name]
