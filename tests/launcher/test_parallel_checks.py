"""What `triax check` says of layouts."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from parity import CAN_SPLIT_BACKWARD

from triax.launcher.checks.sections import find_problems, find_warnings
from triax.launcher.config.run_config import RunConfig

BASE = """
[run]
name = "x"
[model]
num_layers = 8
hidden_size = 64
num_heads = 8
num_kv_heads = 4
ffn_hidden_size = 128
vocab_size = 1000
[data]
sources = [{ path = "nowhere" }]
seq_len = 64
[data.prepare]
inputs = ["nothing"]
output = "nowhere"
vocab_size = 1000
[batch]
global_batch_size = 16
[budget]
tokens = "1M"
[parallel]
"""


def problems(
    tmp_path: Path, parallel: str, world_size: int | None = 8, base: str = BASE
) -> list[str]:
    """`path: message` of what is wrong with a layout."""
    table = tomllib.loads(base + parallel)
    table["run"]["dir"] = str(tmp_path)
    config = RunConfig.model_validate_json(json.dumps(table))
    sections = {name: getattr(config, name) for name in RunConfig.model_fields}
    found = find_problems(sections, world_size)
    return [f"{p.path}: {p.message}" for p in found if not p.path.startswith("data.sources")]


def test_learned_positions_bound_sequences_and_megatrons_layers(tmp_path: Path) -> None:
    gpt2 = BASE.replace("num_kv_heads = 4", 'family = "gpt2"')
    layouts = ("tensor = 4", 'engine = "deepspeed"', 'engine = "deepspeed"\ntensor = 2')
    assert [problems(tmp_path, text, base=gpt2) for text in layouts[:2]] == [[], []]
    found = problems(tmp_path, layouts[2], base=gpt2)
    assert [text.partition(":")[0] for text in found] == ["parallel.tensor"] * 2
    assert "without learned positions" in found[0] and "positions.weight" in found[0]
    assert "without biases" in found[1] and 'engine = "native"' in found[1]
    short = gpt2.replace("[data]", "num_positions = 32\n[data]")
    [problem] = problems(tmp_path, "", base=short)
    assert problem.startswith("data.seq_len: 64 is more than the model's 32 learned positions")


@pytest.mark.parametrize(
    "parallel",
    [
        "tensor = 4\npipeline = 2",
        'pipeline = 4\npipeline_schedule = "interleaved-1f1b"',
        pytest.param(
            'pipeline = 2\npipeline_schedule = "zbv-zero-bubble"\nzero_stage = 3',
            marks=pytest.mark.skipif(not CAN_SPLIT_BACKWARD, reason="torch is too old for it"),
        ),
        "pipeline = 2\npipeline_split = [5, 3]",
        'tensor = 2\nactivation_checkpointing = "selective"\ncompile = true',
        "context = 4\ntensor = 2",
        'context = 2\nengine = "deepspeed"\nzero_stage = 3',
        'context = 4\ntensor = 2\ncontext_method = "ring"',
    ],
)
def test_layouts_that_work(tmp_path: Path, parallel: str) -> None:
    assert problems(tmp_path, parallel) == []


@pytest.mark.parametrize(
    ("parallel", "path", "words"),
    [
        ("tensor = 8", "model.num_kv_heads", "4 is not a multiple of parallel.tensor = 8"),
        ("tensor = 16", "model.vocab_size", "1008 is"),
        ("tensor = 3", "data.seq_len", "sequence_parallel = false"),
        ("pipeline = 16", "model.num_layers", "fewer than the pipeline's 16 stages"),
        ("pipeline = 2\npipeline_split = [5, 5]", "parallel.pipeline_split", "sum to the 8"),
        ("pipeline_split = [8]", "parallel.pipeline_split", "pipeline above 1"),
        ("context = 3", "parallel.context", "of pipeline 1 x replicate 1 x context 3"),
        ("context = 64", "data.seq_len", "2 x parallel.context 64, by which"),
        ("context = 4\ntensor = 3", "data.seq_len", "parallel.context x parallel.tensor 3"),
        ("context = 4\n[[data.phases]]\ntokens = 16384\nseq_len = 4\n[[data.phases]]",
         "data.phases.0.seq_len", "4 is not a multiple of 2 x parallel.context 4"),
        ('context = 16\ncontext_method = "ulysses"', "parallel.context_method",
         "model.num_heads 8 is not a multiple of parallel.context 16"),
        ('context_method = "ring"', "parallel.context_method", "above 1"),
        ("tensor = 2\nasync_tensor = true", "parallel.async_tensor", "compile = true"),
        ('pipeline = 4\npipeline_schedule = "dualpipe-v"', "parallel.pipeline_schedule",
         "at least 8 micro-batches a step; there are"),
        ('pipeline = 2\npipeline_schedule = "zbv-zero-bubble"\n'
         'activation_checkpointing = "selective"', "parallel.activation_checkpointing", "two"),
        ('pipeline = 2\npipeline_schedule = "interleaved-zero-bubble"\ncompile = true',
         "parallel.compile", "can't be split"),
    ],
)  # fmt: skip
def test_layouts_that_do_not(tmp_path: Path, parallel: str, path: str, words: str) -> None:
    found = problems(tmp_path, parallel, world_size=16)
    assert any(line.startswith(f"{path}: ") and words in line for line in found), found


FP8 = 'compute = "fp8"\n'


@pytest.mark.parametrize(
    ("tables", "path", "words"),
    [
        ("[precision]\n" + FP8, None, ""),
        ("[model]\nhidden_size = 72\nhead_dim = 8\n[precision]\n" + FP8, "model.hidden_size",
         "= 72 is not a multiple of 16"),
        ("[model]\nhead_dim = 6\n[precision]\n" + FP8, "model.num_kv_heads",
         "model.num_kv_heads x model.head_dim = 24 is"),
        ("[parallel]\ntensor = 4\n[precision]\n" + FP8, "model.num_kv_heads",
         "model.num_kv_heads x model.head_dim / parallel.tensor = 8 is"),
        ("[data]\nseq_len = 40\n[precision]\n" + FP8, "batch.micro_batch_size",
         "x data.seq_len = 40 is"),
        ("[parallel]\ncontext = 8\n[precision]\n" + FP8, "batch.micro_batch_size",
         "x data.seq_len / parallel.context = 8 is"),
        ('[parallel]\nengine = "deepspeed"\n[precision]\n' + FP8, "precision.compute", "use bf16"),
        ('[parallel]\nengine = "deepspeed"\n[precision]\ngradients = "bf16"',
         "precision.gradients", 'engine = "native"'),
        ('[parallel]\nengine = "deepspeed"\n[optimizer]\nstate_dtype = "bf16"',
         "optimizer.state_dtype", 'engine = "native"'),
        ('[parallel]\nengine = "deepspeed"\n[optimizer]\nimplementation = "compiled"',
         "optimizer.implementation", 'use "auto"'),
        ('[precision]\ngradients = "bf16"\n[optimizer]\nimplementation = "torch"',
         "optimizer.implementation", "take no bf16 here, as precision.gradients says"),
        ('[optimizer]\nstate_dtype = "bf16"\nimplementation = "torch"',
         "optimizer.implementation", "as optimizer.state_dtype says"),
        ('[precision]\ngradients = "bf16"\n[optimizer]\nstate_dtype = "bf16"', None, ""),
    ],
)  # fmt: skip
def test_precisions(tmp_path: Path, tables: str, path: str | None, words: str) -> None:
    found = find_problems(sections(tmp_path, tables), 8)
    lines = [f"{p.path}: {p.message}" for p in found if not p.path.startswith("data.sources")]
    if path is None:
        assert lines == []
    else:
        assert any(line.startswith(f"{path}: ") and words in line for line in lines), lines


@pytest.mark.parametrize(
    ("parallel", "num_processes", "is_warned"),
    [
        ("zero_stage = 2", 8, True),
        ("zero_stage = 1", 8, False),
        ("zero_stage = 3", 16, False),
        ("zero_stage = 1", 1, True),
    ],
)
def test_adding_up_in_bf16_is_warned_of(
    tmp_path: Path, parallel: str, num_processes: int, is_warned: bool
) -> None:
    table = f'[parallel]\n{parallel}\n[precision]\ngradients = "bf16"'
    config = RunConfig(**sections(tmp_path, table))
    warnings = [w for w in find_warnings(config, num_processes) if w.path != "budget.tokens"]
    assert [w.path for w in warnings] == ["precision.gradients"] * is_warned


def sections(tmp_path: Path, tables: str) -> dict[str, Any]:
    """The sections of the base config with the tables' values over it."""
    base = tomllib.loads(BASE)
    for name, table in tomllib.loads(tables).items():
        base[name] = base.get(name, {}) | table
    base["run"]["dir"] = str(tmp_path)
    config = RunConfig.model_validate_json(json.dumps(base))
    return {name: getattr(config, name) for name in RunConfig.model_fields}


SPARSE = BASE.replace(
    "[data]\n",
    "[model.experts]\nnum_experts = 8\ntop_k = 2\nffn_hidden_size = 32\n[data]\n", 1
)  # fmt: skip


def test_experts_that_work(tmp_path: Path) -> None:
    for parallel in (
        "expert = 4\nzero_stage = 3", "expert = 8\nzero_stage = 0", "tensor = 2\nexpert = 2",
        "replicate = 2\nexpert = 4\npipeline = 1",
    ):  # fmt: skip
        assert problems(tmp_path, parallel, base=SPARSE) == [], parallel


@pytest.mark.parametrize(
    ("parallel", "changes", "path", "words"),
    [
        ("expert = 2", ("[model.experts]", "[nothing]"), "parallel.expert", "a model with experts"),
        ("expert = 3", ("", ""), "parallel.expert", "doesn't divide model.experts.num_experts 8"),
        ("expert = 4\ntensor = 4", ("", ""), "parallel.expert", "doesn't divide the 2 processes"),
        ("expert = 2", ("hidden_size = 64", "hidden_size = 66\nhead_dim = 8"),
         "model.hidden_size", "multiple of 8"),
        ("expert = 2", ("hidden_size = 64", "hidden_size = 66\nhead_dim = 8"),
         "model.hidden_size", "4 processes that share"),
        ("tensor = 8\n", ("", ""), "model.experts.ffn_hidden_size", "/ parallel.tensor = 4"),
        ("", ("[data]", '[precision]\ncompute = "fp8"\n[data]'), "precision.compute", "not in fp8"),
        ('engine = "deepspeed"', ("", ""), "parallel.engine", "experts of their own"),
        ('expert = 2\nzero_stage = 3\nactivation_checkpointing = "selective"', ("", ""),
         "parallel.activation_checkpointing", "use full"),
        ("tensor = 2", ("vocab_size = 1000\n", "vocab_size = 1000\njoint_qk_norm = true\n"),
         "parallel.tensor", "over all of them"),
    ],
)  # fmt: skip
def test_experts_that_do_not(
    tmp_path: Path, parallel: str, changes: tuple[str, str], path: str, words: str
) -> None:
    base = SPARSE.replace(*changes, 1) if changes[0] else SPARSE
    if "[nothing]" in base:
        base = BASE
    found = problems(tmp_path, parallel, base=base)
    assert any(line.startswith(f"{path}: ") and words in line for line in found), found
