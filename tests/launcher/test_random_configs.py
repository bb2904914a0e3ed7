"""What `triax check` accepts, `triax train` runs: 500 configs drawn at random."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path

from random_configs import CONFIG, train_at_random
from warm import fork

_NUM_CONFIGS = int(os.environ.get("TRIAX_RANDOM_CONFIGS", "500"))
_NUM_PROCESSES = 2
_SEED = int(os.environ.get("TRIAX_RANDOM_SEED", "0"))


def test_what_check_accepts_train_runs(corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path, dirs_exist_ok=True)
    (tmp_path / "run.toml").write_text(CONFIG)
    share = _NUM_CONFIGS // _NUM_PROCESSES
    seeds = range(_SEED, _SEED + _NUM_PROCESSES)
    workers = [fork(train_at_random, tmp_path, seed, share) for seed in seeds]
    ends: Counter[str] = Counter()
    for seed, worker in zip(seeds, workers, strict=True):
        worker.join()
        lines = (tmp_path / f"report-{seed}.jsonl").read_text().splitlines()
        report = [json.loads(line) for line in lines]
        assert worker.exitcode == 0, (report[-1], (tmp_path / f"output-{seed}.txt").read_text())
        ends.update(end for end, _ in report if end != "begun")
        wrong = [each for each in report if each[0].startswith("wrong")]
        assert not wrong, "\n".join(f"{overrides}\n{end}" for end, overrides in wrong)
    print(ends)
    # All kinds are among them, or the test would show little.
    assert ends["trained"] >= 0.15 * _NUM_CONFIGS and ends["built"] and ends["refused"]
