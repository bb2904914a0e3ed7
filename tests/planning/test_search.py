"""The search: what it ranks, why the others lose, and how it scales."""

from __future__ import annotations

import time

import pytest

from triax.models.families import model_config
from triax.parallel.config import ParallelConfig, PrecisionConfig
from triax.planning.devices import find_device
from triax.planning.search import (
    Found,
    candidates,
    default_space,
    no_judge,
    ruled_out_by,
    search,
)
from triax.planning.setup import Setup
from triax.training.config import BatchConfig, OptimizerConfig

H100 = find_device("h100")


def make_setup(preset: str, world_size: int, global_batch_size: int) -> Setup:
    return Setup(
        model_config(preset=preset),
        ParallelConfig(compile=True),
        PrecisionConfig(compute="bf16"),
        BatchConfig(global_batch_size=global_batch_size),
        OptimizerConfig(),
        8192,
        world_size,
    )


@pytest.fixture(scope="module")
def found() -> Found:
    setup = make_setup("llama3-8b", 8, 64)
    return search(setup, H100, default_space(setup, H100), no_judge)


def test_ranked_layouts_fit_and_the_fastest_is_first(found: Found) -> None:
    speeds = [each.tokens_per_second for each in found.ranked]
    assert speeds == sorted(speeds, reverse=True)
    assert all(each.memory.total <= H100.usable_bytes for each in found.ranked)


def test_every_loser_has_a_reason_of_one_line(found: Found) -> None:
    assert not found.ranked[0].why
    losers = [*found.ranked[1:], *(each for each in found.families if each.why)]
    assert len(losers) > 8
    assert all("slower" in each.why or "needs" in each.why for each in losers)
    assert all(len(each.why) < 70 and "\n" not in each.why for each in losers)


def test_what_the_judge_refuses_is_not_ranked() -> None:
    setup = make_setup("llama3-8b", 8, 64)

    def judge(candidate: Setup) -> str | None:
        return "no pipelines here" if candidate.parallel.pipeline > 1 else None

    found = search(setup, H100, default_space(setup, H100), judge)
    assert all(each.setup.parallel.pipeline == 1 for each in found.ranked)
    assert found.ruled_out["no pipelines here"] > 0


def test_candidates_use_every_process_and_come_once() -> None:
    setup = make_setup("llama3-8b", 24, 48)
    every = list(candidates(setup, H100, default_space(setup, H100)))
    layouts = [(each.parallel, each.batch.micro_batch_size) for each in every]
    assert len(set(layouts)) == len(layouts)
    for each in every:
        sizes = each.layout.sizes
        assert sizes[0] * sizes[1] * sizes[2] * sizes[3] * sizes[4] == 24


def test_rules_of_a_run_rule_out() -> None:
    setup = make_setup("llama3-8b", 8, 12)
    assert "batch" in (ruled_out_by(setup) or "")


@pytest.mark.parametrize(("preset", "world_size"), [("llama3-70b", 1024), ("llama3-405b", 16384)])
def test_large_machines_have_a_layout(preset: str, world_size: int) -> None:
    setup = make_setup(preset, world_size, 2048)
    space = default_space(setup, H100)
    begin = time.process_time()
    found = search(setup, H100, space, no_judge, num_ranked=2)
    seconds = time.process_time() - begin
    assert found.ranked[0].mfu > 0.3
    print(f"{found.num_tried:,} layouts in {seconds:.1f} s")
