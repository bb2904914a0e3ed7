"""A run whose shards and tokenizer are in a store that is throttled, killed and started again."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from jobs import curve, train
from object_store import object_store


def test_a_run_waits_for_its_store_and_gives_the_local_losses(job: Path) -> None:
    careful = ("--eval.batches=1", "--checkpoint.every=none", "--stability.hang_after=2 s")
    straight = train(job, "--run.name=straight", *careful)
    assert straight.code == 0, straight.text
    with object_store() as store:
        data = store.put_folder(job / "data", "d")
        tokenizer = store.put_folder(job / "tokenizer", "t")
        metrics = job / "runs/job/metrics.jsonl"

        def strike() -> None:
            while not metrics.exists() or metrics.read_text().count("\n") < 3:
                time.sleep(0.01)
            store.kill()
            time.sleep(5.0)
            store.bytes_per_second = 1e6
            store.start()

        striking = threading.Thread(target=strike, daemon=True)
        striking.start()
        remote = (
            f'--data.sources=[{{"path": "{data}/train"}}]', f"--data.validation={data}/validation",
            f"--data.tokenizer={tokenizer}", "--data.cache_size=1", "--data.prefetch=0",
        )  # fmt: skip
        ended = train(
            job, *careful, *remote, timeout=300,
            environment={**store.environment, "XDG_CACHE_HOME": str(job / "home")},
        )  # fmt: skip
        striking.join(10)
    assert ended.code == 0, ended.text
    assert curve(job / "runs/job") == curve(job / "runs/straight")
    log = (job / "runs/job/logs/node-0.log").read_text()
    assert f"waiting for {data}/train" in log and "answers again" in log
    assert (job / "runs/job/tokenizer/tokenizer.json").exists()
