"""Run directories as long runs leave them, made without training."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

HOSTILE = "<img src=x onerror=alert(1)>&'\"`${1}"
"""A folder's name that is markup, and script, where it isn't escaped."""
SPIKE_STEP = 777
CONFIG = """\
[run]
name = "recorded"
[model]
preset = "mini-10m"
[data]
sources = [{ path = "corpora/<b>bold</b>" }]
seq_len = 512
[precision]
compute = "fp32"
[batch]
global_batch_size = 8
[optimizer]
lr = LR
"""


def record_run(folder: Path, num_steps: int, *, lr: float = 1e-3, seed: int = 0) -> Path:
    """Write a run of so many steps: a loss spike, refusals, a restart, experts, evaluations."""
    chance = random.Random(seed)
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(CONFIG.replace("LR", str(lr)))
    rows = []
    for step in range(1, num_steps + 1):
        loss = 3 + 7 * math.exp(-step / (num_steps / 6)) + chance.gauss(0, 0.05)
        row = {
            "step": step, "tokens": 4096 * step, "cursor": 8 * step,
            "loss": 99.0 if step == SPIKE_STEP else loss,
            "grad_norm": math.exp(chance.gauss(-0.5, 0.3)), "lr": lr * (1 - step / num_steps),
            "tokens_per_second": chance.gauss(5000, 200), "mfu": 0.41, "memory_gib": 1.5,
            "num_targets": 4096, "skipped": int(step == SPIKE_STEP),
            "loss_score": 80.0 if step == SPIKE_STEP else chance.gauss(0, 1),
            "norm_score": chance.gauss(0, 1), "expert_load_max": chance.uniform(1, 2),
            "expert_load/0": chance.uniform(1, 2), "expert_load/1": chance.uniform(1, 2),
            "my_new_figure": chance.random(),
        }  # fmt: skip
        rows.append(json.dumps(row))
    (folder / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    layout = {"pipeline": 1, "replicate": 1, "shard": 2, "context": 1, "tensor": 1}
    environment = {"host": "<script>alert(2)</script>", "python": "3.11", "processes_per_node": 2}
    start: dict[str, Any] = {"event": "start", "layout": layout, "environment": environment}
    events: list[dict[str, Any]] = [start | {"time": 1.7e9, "step": 0, "num_steps_lost": 0}]
    for number in range(21):
        step = number * num_steps // 20
        at = {"time": 1.7e9 + step, "step": step}
        evaluation = {"loss": 9.5 - 0.3 * number, "perplexity": 20.0, "num_targets": 512}
        events.append({"event": "evaluation"} | at | evaluation | {"tasks": {"piqa": {"acc": 0.5}}})
        events.append({"event": "checkpoint", "seconds": 0.2, "bytes": 10**7} | at)
    refused = {"reason": "loss spike", "loss": "99.0", "samples": [0, 8]}
    events.append({"event": "skipped_update", "time": 1.7e9, "step": SPIKE_STEP} | refused)
    events.append(start | {"time": 1.7e9 + 9, "step": num_steps // 2, "num_steps_lost": 3})
    forecast = {"memory_gib": 1.4, "measured_memory_gib": 1.5}
    rates = {"tokens_per_second": 5200.0, "measured_tokens_per_second": 5000.0}
    events.append({"event": "forecast", "time": 1.7e9, "step": 8} | forecast | rates)
    events.append({"event": "sample", "time": 1.7e9, "step": num_steps, "text": "<i>it</i> was"})
    text = "".join(json.dumps(event) + "\n" for event in sorted(events, key=lambda e: e["step"]))
    (folder / "events.jsonl").write_text(text)
    return folder
