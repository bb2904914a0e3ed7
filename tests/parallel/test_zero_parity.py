"""Every ZeRO stage on 1, 2 and 4 processes against a plain loop on one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fleet import run_fleet
from parity import TOLERANCE, label, measure, reference
from worlds import SMALL, Case, difference, engine_run, merged, plain_run


def test_the_reference_is_demanding() -> None:
    norms, clip_norm = reference(False).grad_norms, Case().clip_norm
    assert clip_norm is not None and min(norms) < clip_norm < max(norms), norms
    assert min(reference(False).losses) < reference(False).losses[0] - 0.1


LAYOUTS = [
    (1, 1, {"zero_stage": 0}),
    (1, 4, {"zero_stage": 3}),
    *((2, size, {"zero_stage": stage}) for stage in range(4) for size in (1, 4)),
    *((4, size, {"zero_stage": stage}) for stage in range(4) for size in (1, 2)),
    *((4, 1, {"zero_stage": stage, "replicate": 2}) for stage in (1, 2, 3)),
    (2, 1, {"zero_stage": 3, "activation_checkpointing": "full"}),
    (2, 1, {"zero_stage": 2, "activation_checkpointing": "selective"}),
]


@pytest.mark.parametrize(("num_processes", "micro_batch_size", "parallel"), LAYOUTS, ids=label)
def test_same_losses_gradients_and_weights(
    num_processes: int, micro_batch_size: int, parallel: dict[str, object]
) -> None:
    tied = micro_batch_size == 1
    found = measure(num_processes, parallel, tied=tied, micro_batch_size=micro_batch_size)
    assert found.worst <= TOLERANCE, found


def test_the_norm_of_a_large_embedding_is_right_however_it_is_divided() -> None:
    """Two million weights in one tensor: added up in fp32, one after another, two processes' halves
    would give another norm than one process's whole."""
    model = SMALL | {"vocab_size": 65536, "num_layers": 1}
    small = Case(model=model, num_steps=1, global_batch_size=4, seq_len=8)
    [expected] = run_fleet(1, plain_run, small)
    for num_processes, parallel in ((1, {}), (2, {"zero_stage": 2}), (2, {"tensor": 2})):
        runs = run_fleet(num_processes, engine_run, replace(small, parallel=parallel))
        found = difference(merged(runs), expected)
        assert found.grad_norms <= 1e-6 and found.losses <= 1e-6, (parallel, found)
