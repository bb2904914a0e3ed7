"""`triax data inspect RUN --sample N` shows exactly what training read there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from rehearsal import SEQ_LEN, VOCAB_SIZE, write_config

from triax.checkpoint.staging import whole
from triax.checkpoint.writing import write_checkpoint
from triax.common.errors import UserError
from triax.data.config import SourceConfig
from triax.data.read.blend import Blend
from triax.data.read.identity import identify_sources
from triax.data.read.loader import Loader
from triax.data.read.plan import whole_run
from triax.data.read.sampler import Phase, Sampler
from triax.data.read.source import Source
from triax.launcher.cli import main
from triax.launcher.job.samples import RunSamples


def test_a_sample_is_the_row_that_training_reads(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    source = Source.open(tmp_path / "train", SEQ_LEN, VOCAB_SIZE)
    blend = Blend.begin(
        identify_sources([SourceConfig(path=f"{tmp_path}/train")], [source]), whole_run(1.0)
    )
    [key] = blend.keys
    sampler = Sampler(0, blend.phases, blend.num_windows())
    loader = Loader(
        {key: source}, sampler, global_batch_size=8, micro_batch_size=8, dp_rank=0, dp_size=1,
        mask_documents=True,
    )  # fmt: skip
    samples = RunSamples.open(config, None)
    for cursor in (0, 480, 10_000_000):
        (batch,) = loader.batch_at(cursor)
        for row in range(8):
            shown = [int(token) for token in samples.read(cursor + row).text.split()]
            assert shown[:-1] == batch.tokens_BT[row].tolist()


@pytest.mark.parametrize("given", [".", "config.toml"])
def test_a_moved_run_s_samples_are_its_own(tmp_path: Path, given: str) -> None:
    """Its config says where it was; its checkpoint says that only one of two sources was read."""
    text = write_config(tmp_path).read_text()
    for suffix in (".bin", ".idx"):
        shutil.copy(tmp_path / f"train{suffix}", tmp_path / f"other{suffix}")
    train = f'{{ path = "{tmp_path}/train" }}'
    moved = tmp_path / "moved"
    record = {"cursor": 1000, "phases": [Phase(0, (("train", 1.0),)).to_json()]}
    tensors = {"model.weight": whole(torch.ones(1))}
    write_checkpoint(moved / "checkpoints/step-00000001", tensors, record, step=1)
    (moved / "config.toml").write_text(
        text.replace(train, f'{train}, {{ path = "{tmp_path}/other" }}')
    )
    samples = RunSamples.open(moved / given, None)
    assert {samples.read(number).source for number in range(20)} == {f"{tmp_path}/train"}


def test_the_command_shows_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    assert main(["data", "inspect", str(config), "--sample", "480", "--count", "2"]) == 0
    out = capsys.readouterr().out
    assert f"sample 480: {tmp_path}/train, window" in out and "sample 481: " in out
    with pytest.raises(UserError, match="expected 0 or more"):
        RunSamples.open(config, None).read(-1)
