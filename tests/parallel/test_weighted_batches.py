"""Weights of targets, sums that layers hand up and their terms of the objective, and the targets'
log-probabilities: layouts of both engines against a plain computation on one process."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from fleet import run_fleet
from parity import TOLERANCE, skip_unless_torch_can
from weighted import (
    Told,
    engines_told,
    exported_weights,
    plain_told,
    validation_rows,
)
from worlds import SMALL, Case, difference, merged

from triax.checkpoint.huggingface import export_huggingface
from triax.models.families import model_config

NATIVE: dict[int, list[dict[str, Any]]] = {
    1: [{"zero_stage": 0}],
    2: [
        {"zero_stage": 1},
        {"zero_stage": 3, "activation_checkpointing": "full"},
        {"tensor": 2},
        {"tensor": 2, "sequence_parallel": False, "activation_checkpointing": "selective"},
        {"pipeline": 2, "activation_checkpointing": "full"},
        {"pipeline": 2, "pipeline_schedule": "interleaved-1f1b", "zero_stage": 2},
        {"context": 2, "context_method": "ring"},
    ],
    4: [
        {"zero_stage": 2, "replicate": 2},
        {"tensor": 2, "pipeline": 2},
        {"context": 2, "pipeline": 2, "context_method": "ulysses"},
        {"pipeline": 2, "pipeline_schedule": "zbv-zero-bubble", "zero_stage": 3},
    ],
}
DEEPSPEED: list[dict[str, Any]] = [
    {"zero_stage": 1, "tensor": 2},
    {"zero_stage": 3},
    {"pipeline": 2, "activation_checkpointing": "full"},
]


def case(parallel: dict[str, Any]) -> Case:
    return Case(parallel=parallel, num_steps=3)


@functools.cache
def reference() -> Told:
    [told] = run_fleet(1, plain_told, case({}))
    return told


def compare(by_rank: list[Told], layout: dict[str, Any]) -> None:
    found = difference(merged([told.run for told in by_rank]), reference().run)
    assert found.worst <= TOLERANCE, (layout, found)
    for told in by_rank:
        assert told.validation == pytest.approx(reference().validation, rel=TOLERANCE)
        for extra, expected in zip(told.extra, reference().extra, strict=True):
            assert extra.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(
                    extra[name], value.float(), rtol=TOLERANCE, atol=0, msg=f"{layout} {name}"
                )
        assert told.log_probs
        for number, values in told.log_probs.items():
            expected_T = reference().log_probs[number]
            torch.testing.assert_close(values, expected_T, rtol=0, atol=TOLERANCE)
        for number, tokens_T in told.likeliest.items():
            assert torch.equal(tokens_T, reference().likeliest[number]), layout
    seen = {number for told in by_rank for number in told.log_probs}
    assert seen == set(reference().log_probs), "sequences that no process told of"


@pytest.mark.parametrize("num_processes", NATIVE)
def test_native_layouts(num_processes: int) -> None:
    layouts = NATIVE[num_processes]
    for parallel in layouts:
        skip_unless_torch_can(parallel.get("pipeline_schedule", "1f1b"))
    by_rank = run_fleet(num_processes, engines_told, [case(x) for x in layouts], timeout=240)
    for number, layout in enumerate(layouts):
        compare([told[number] for told in by_rank], layout)


@pytest.mark.parametrize("number", range(len(DEEPSPEED)))
def test_deepspeed_layouts(number: int) -> None:
    parallel = {"engine": "deepspeed"} | DEEPSPEED[number]
    by_rank = run_fleet(2, engines_told, [case(parallel)], timeout=240)
    compare([told for [told] in by_rank], parallel)


def test_log_probs_are_those_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = SMALL | {"qk_norm": False}
    job = Case(parallel={"tensor": 2}, model=model, micro_batch_size=8)
    weights, [found_BT] = run_fleet(2, exported_weights, job)[1]
    config = model_config(**job.model)
    export_huggingface(weights, config, tmp_path / "hf", seq_len=job.seq_len)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    rows = validation_rows(job)
    assert rows.document_ids_BT is not None
    for row, values in enumerate(found_BT):
        # Their model has no packed documents: only what precedes the second one is compared.
        num_tokens = int((rows.document_ids_BT[row] == rows.document_ids_BT[row, 0]).sum())
        with torch.no_grad():
            logits = theirs(rows.tokens_BT[row : row + 1, :num_tokens]).logits[0]
        targets = rows.targets_BT[row, :num_tokens]
        is_target = rows.is_target_BT[row, :num_tokens]
        chosen = logits.log_softmax(-1).gather(1, targets.where(is_target, 0)[:, None])[:, 0]
        expected = chosen * is_target
        torch.testing.assert_close(values[:num_tokens], expected, rtol=0, atol=1e-5)
