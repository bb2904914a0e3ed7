"""The tokens of a sequence over several processes, against a plain loop on one."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from context_worlds import NUM_ROWS, NUM_TOKENS, sent_by_attention, written_next
from documents import PATTERNS
from expert_worlds import EXPERTS, plain_expert_run, sparse_model
from fleet import run_fleet
from parity import CAN_SPLIT_BACKWARD, TOLERANCE
from relay import check_relay
from weighted import exported_weights, validation_rows
from worlds import SMALL, Case, Run, compiled_run, difference, engine_runs, merged, plain_run

from triax.checkpoint.huggingface import export_huggingface
from triax.models.families import model_config
from triax.parallel.context.methods import ContextMethod, method_of, sent_bytes
from triax.parallel.context.sequence import by_process, in_row_order, stretches_of_all

METHODS: tuple[ContextMethod, ...] = ("gather", "ring", "ulysses")
WINDOW = {"sliding_window": 5}
ZBV = "zbv-zero-bubble" if CAN_SPLIT_BACKWARD else "interleaved-1f1b"


@functools.cache
def reference(documents: str, window: int | None, num_steps: int, num_rows: int) -> Run:
    """The plain loop's run."""
    model = SMALL | ({} if window is None else {"sliding_window": window})
    case = Case(model, {}, num_rows, documents=documents, num_steps=num_steps)
    [run] = run_fleet(1, plain_run, case)
    return run


def job(
    parallel: dict[str, Any],
    documents: str = "random",
    num_steps: int = 2,
    num_rows: int = 8,
    **model: Any,
) -> Case:
    """Of micro-batches of two rows."""
    return Case(SMALL | model, parallel, num_rows, 2, documents=documents, num_steps=num_steps)


def check(num_processes: int, cases: list[Case]) -> None:
    """Losses, norms, gradients by parameter and weights."""
    runs = run_fleet(num_processes, engine_runs, cases, timeout=200 + 30 * len(cases))
    for number, case in enumerate(cases):
        window = case.model.get("sliding_window")
        expected = reference(case.documents, window, case.num_steps, case.global_batch_size)
        found = difference(merged([run[number] for run in runs]), expected)
        assert found.worst <= TOLERANCE, (case.parallel, case.documents, found)


TWO: list[tuple[ContextMethod, int, str, dict[str, int]]] = [
    ("gather", 0, "short", {}),
    ("gather", 3, "random", WINDOW),
    ("ring", 2, "one", WINDOW),
    ("ring", 3, "long", {}),
    ("ulysses", 1, "none", {}),
]


def test_two_processes() -> None:
    """A sample; `pytest -m grid` has all."""
    cases = [
        job({"context": 2, "context_method": method, "zero_stage": stage}, documents, **window)
        for method, stage, documents, window in TWO
    ]
    selective = {"context": 2, "context_method": "ring", "activation_checkpointing": "selective"}
    check(2, [*cases, job(selective, "short")])


LAYOUTS: list[dict[str, Any]] = [
    {"context": 4, "context_method": "ring", "zero_stage": 3},
    {"context": 4, "context_method": "ulysses", "zero_stage": 0},
    {"context": 2, "context_method": "ring", "tensor": 2, "zero_stage": 3},
    {"context": 2, "context_method": "ulysses", "tensor": 2, "sequence_parallel": False},
    {"context": 2, "context_method": "gather", "pipeline": 2, "zero_stage": 1},
    {"context": 2, "context_method": "ring", "pipeline": 2, "pipeline_schedule": ZBV,
     "zero_stage": 3},
    {"context": 2, "replicate": 2, "zero_stage": 2, "activation_checkpointing": "full"},
]  # fmt: skip


def test_four_processes() -> None:
    patterns = itertools.cycle(("borders", "mixed", "random"))
    check(4, [job(layout, next(patterns)) for layout in LAYOUTS])


def test_experts_over_shards_and_parts_of_sequences() -> None:
    model = sparse_model(EXPERTS)
    layouts: list[dict[str, Any]] = [
        {"context": 2, "expert": 2, "zero_stage": 1},
        {"context": 2, "expert": 4, "zero_stage": 0, "context_method": "ring"},
        {"context": 2, "tensor": 2, "zero_stage": 3, "activation_checkpointing": "full"},
    ]
    cases = [Case(model=model, parallel=layout, num_steps=2) for layout in layouts]
    runs = run_fleet(4, engine_runs, cases, timeout=400)
    [expected] = run_fleet(1, plain_expert_run, Case(model=model, num_steps=2))
    for number, layout in enumerate(layouts):
        found = difference(merged([run[number] for run in runs]), expected)
        assert found.worst <= TOLERANCE, (layout, found)


def test_checkpoints_do_not_know_of_it(tmp_path: Path) -> None:
    model = SMALL | {"num_layers": 2}
    legs: list[tuple[int, dict[str, Any]]] = [
        (2, {"context": 2, "zero_stage": 3}),
        (1, {}),
        (4, {"context": 2, "tensor": 2, "context_method": "ring"}),
    ]
    check_relay(tmp_path, [(n, Case(model=model, parallel=layout)) for n, layout in legs])


def test_deepspeed_takes_them_for_data_parallel_processes() -> None:
    pytest.importorskip("deepspeed")
    base = {"engine": "deepspeed", "context": 2, "tensor": 2}
    methods = ((1, "ulysses"), (3, "ring"))
    check(4, [job(base | {"context_method": name, "zero_stage": stage}) for stage, name in methods])


def test_log_probs_of_a_long_input_are_those_of_transformers(tmp_path: Path) -> None:
    """Positions and their scaling, the loss and the order of tokens, at 64 times the length."""
    transformers = pytest.importorskip("transformers")
    scaling = {"kind": "yarn", "factor": 8.0, "original_seq_len": 128}
    model = SMALL | {"qk_norm": False, "rope_scaling": scaling}
    long = Case(
        model, {"context": 4}, micro_batch_size=8, global_batch_size=8, seq_len=1024,
        documents="none",
    )  # fmt: skip
    weights, [found_BT] = run_fleet(4, exported_weights, long)[3]
    export_huggingface(weights, model_config(**model), tmp_path / "hf", seq_len=1024)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    rows = validation_rows(long)
    with torch.no_grad():
        logits = theirs(rows.tokens_BT).logits
    targets = rows.targets_BT.where(rows.is_target_BT, 0)
    expected = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0] * rows.is_target_BT
    torch.testing.assert_close(found_BT, expected, rtol=0, atol=1e-5)


def test_the_next_token_of_a_divided_prompt() -> None:
    """All processes know it, wherever in the layout the prompt's last token is."""
    layouts: list[dict[str, Any]] = [
        {"context": 4, "context_method": "ring", "zero_stage": 3},
        {"context": 2, "tensor": 2},
        {"context": 2, "pipeline": 2, "context_method": "gather"},
    ]
    cases = [Case(SMALL, layout, micro_batch_size=4) for layout in layouts]
    lengths = (1, 6, 11, 16)
    by_rank = run_fleet(4, written_next, cases, lengths)
    [[expected]] = run_fleet(1, written_next, [Case(SMALL, {}, micro_batch_size=8)], lengths)
    for found in by_rank:
        for layout, by_length in zip(layouts, found, strict=True):
            for length, log_probs_BV in by_length.items():
                torch.testing.assert_close(
                    log_probs_BV, expected[length], rtol=0, atol=TOLERANCE,
                    msg=f"{layout} after {length}",
                )  # fmt: skip


@pytest.mark.parametrize("size", [2, 4])
def test_methods_send_the_bytes_of_their_formulas(size: int) -> None:
    """One message for keys and values, whatever the method; see docs/context.md."""
    by_rank = run_fleet(size, sent_by_attention, SMALL, list(METHODS))
    layer = model_config(**SMALL).architecture().layers[0].attention
    expected_messages: dict[str, dict[str, int]] = {
        "gather": {"all_gather": 2, "reduce_scatter": 1},
        "ring": {"send": 2 * (size - 1) + size},
        "ulysses": {"all_to_all": 4},
    }
    for sent in by_rank:
        for method, found in zip(METHODS, sent, strict=True):
            per_token = sent_bytes(method, layer, size, tensor=1, item_bytes=4)
            num_tokens = NUM_ROWS * NUM_TOKENS
            assert found.forward == per_token.forward * num_tokens
            assert found.backward == per_token.backward * num_tokens
            assert found.messages == expected_messages[method]


@pytest.mark.parametrize(
    ("heads", "groups", "context", "tensor", "method"),
    [
        (32, 8, 2, 1, "ulysses"), (32, 8, 16, 2, "ulysses"), (32, 8, 8, 8, "gather"),
        (12, 2, 8, 1, "gather"), (32, 32, 64, 1, "ring"), (40, 8, 16, 1, "ring"),
    ],
)  # fmt: skip
def test_auto_chooses_by_count(
    heads: int, groups: int, context: int, tensor: int, method: str
) -> None:
    model = SMALL | {"num_heads": heads, "num_kv_heads": groups, "head_dim": 8}
    architecture = model_config(**model).architecture()
    assert method_of("auto", architecture, context, tensor) == method
    assert method_of("ring", architecture, context, tensor) == "ring"


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_stretches_are_put_in_order_and_back(size: int) -> None:
    num_tokens = 48
    places = torch.tensor([p for stretch in stretches_of_all(size, num_tokens) for p in stretch])
    assert places.sort().values.equal(torch.arange(num_tokens))
    parts = places.view(size, 1, -1, 1).expand(size, 2, -1, 3)
    rows = in_row_order(parts, dim=2)
    assert rows.equal(torch.arange(num_tokens).view(1, -1, 1).expand(2, -1, 3))
    assert by_process(rows, size, dim=1).equal(parts)
    # What a token attends to grows with its place: each process has as much of it.
    assert len({int(part.sum()) for part in places.view(size, -1)}) == 1


@pytest.mark.grid
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["none", "selective", "full"])
def test_compiled(method: str, kind: str) -> None:
    """Ring attention with selective checkpointing is in `tests/parallel/test_compile.py`."""
    parallel = {"context": 2, "context_method": method, "activation_checkpointing": kind}
    case = job(parallel | {"compile": True})
    run = merged(run_fleet(2, compiled_run, case, timeout=400))
    found = difference(run, reference(case.documents, None, case.num_steps, case.global_batch_size))
    assert found.worst <= TOLERANCE, found


@pytest.mark.grid
@pytest.mark.parametrize("context", [2, 4])
@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("pipeline", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_grid(context: int, tensor: int, pipeline: int, method: str) -> None:
    if context * tensor * pipeline > 8:
        pytest.skip("more processes than this")
    parallel = {
        "context": context, "tensor": tensor, "pipeline": pipeline, "context_method": method,
    }  # fmt: skip
    heads = SMALL["num_heads"] // tensor
    if method == "ulysses" and heads % context:
        pytest.skip("too few heads")
    check(
        context * tensor * pipeline,
        [
            job(parallel | {"zero_stage": stage}, documents, **window)
            for stage in range(4)
            for documents in PATTERNS
            for window in ({}, WINDOW)
        ],
    )
