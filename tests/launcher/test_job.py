"""A whole job as its user sees it: what it says, what it leaves, what can be done with that."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from jobs import (
    NUM_STEPS,
    Ended,
    curve,
    finish,
    make_job,
    read_events,
    read_rows,
    start,
    train,
    triax,
)
from ports import free_port

from triax.data.read.blend import Blend
from triax.data.read.identity import identify_sources
from triax.data.read.loader import Loader
from triax.data.read.plan import whole_run
from triax.data.read.sampler import Sampler
from triax.data.read.source import Source
from triax.inference.load import find_model
from triax.launcher.cli import main
from triax.launcher.config.loading import load_config
from triax.launcher.config.resolved import diff_with_record
from triax.models.init import initialise_model
from triax.models.layers.transformer import Transformer


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A folder in which `triax train run.toml` has run, and what it said."""
    folder = make_job(corpus, tmp_path_factory.mktemp("finished"))
    return folder, triax(folder, "train", "run.toml")


@pytest.fixture
def copied(finished: tuple[Path, Ended], tmp_path: Path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


def test_a_run_says_what_it_reached_and_how_to_go_on(finished: tuple[Path, Ended]) -> None:
    _, ended = finished
    assert (ended.code, ended.error) == (0, "")
    for line in (
        r"run      runs/job",
        r"budget   6,144 tokens in 24 steps of 256",
        r"compute  1 process on .*",
        r"step 24/24  loss [\d.]+  .*tok/s  .* left",
        r"ended after step 24: the token budget is used up",
        r"validation loss [\d.]+, perplexity [\d.]+, [\d.]+ bits per byte",
        r"the model writes:",
        r"chinchilla   \d+K tokens would be compute-optimal .*",
        r"             .* here at [\d.]+K? tokens/s",
        r"loss plot    runs/job/loss.png",
        r"checkpoint   runs/job/checkpoints/step-00000024",
        r"to resume    triax train runs/job/config.toml --budget.tokens=12288",
    ):
        assert re.search(f"^{line}$", ended.out, re.MULTILINE), line
    assert "\x1b" not in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80


def test_the_forecast_stands_beside_what_was_measured(finished: tuple[Path, Ended]) -> None:
    folder, ended = finished
    line = r"forecast: memory [\d.]+ GiB, measured [\d.]+ with Python and libraries"
    assert len(re.findall(f"^{line}$", ended.out, re.MULTILINE)) == 1
    (event,) = read_events(folder / "runs/job", "forecast")
    assert event["step"] == 8
    assert 0 < event["memory_gib"] < event["measured_memory_gib"]
    assert event["tokens_per_second"] is None  # nobody knows the peak of a CPU
    assert event["measured_tokens_per_second"] > 0


def test_a_run_leaves_its_figures_its_config_and_its_checkpoints(
    finished: tuple[Path, Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    run = folder / "runs/job"
    rows = read_rows(run)
    assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
    assert [row["tokens"] for row in rows] == [256 * row["step"] for row in rows]
    assert [row["cursor"] for row in rows] == [8 * row["step"] for row in rows]
    # Full precision: fp32 figures as the shortest text that gives back their bits would have up
    # to nine digits; rounded ones would be equal to themselves in four.
    assert all(row["loss"] == float(torch.tensor(row["loss"])) for row in rows)
    assert any(round(row["loss"], 6) != row["loss"] for row in rows)
    assert {"grad_norm", "lr", "tokens_per_second", "mfu", "memory_gib"} <= rows[0].keys()
    evaluations = read_events(run, "evaluation")
    assert [event["step"] for event in evaluations] == [0, 10, 20, 24]
    assert evaluations[-1]["loss"] < evaluations[0]["loss"] - 2
    assert [event["step"] for event in read_events(run, "checkpoint")] == [4, 8, 12, 16, 20, 24]
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == [
        "step-00000016", "step-00000020", "step-00000024",
    ]  # fmt: skip
    ending = json.loads((run / "exit.json").read_text())
    assert (ending["code"], ending["step"]) == (0, NUM_STEPS)
    written = load_config(run / "config.toml").model_dump(mode="json")
    assert diff_with_record(written, load_config("run.toml")) == []
    assert (run / "tokenizer/tokenizer.json").read_bytes() == (
        folder / "tokenizer/tokenizer.json"
    ).read_bytes()
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    assert "ended" in (run / "logs/node-0.log").read_text()


def test_a_finished_run_says_so_and_goes_on_with_a_larger_budget(copied: Path) -> None:
    before = curve(copied / "runs/job")
    again = train(copied)
    assert again.code == 0, again.text
    assert "this run is finished: 24 steps, 6,144 tokens" in again.out
    assert curve(copied / "runs/job") == before
    more = train(copied, "--budget.tokens=7680", config="runs/job/config.toml")
    assert more.code == 0, more.text
    assert "changed since the last checkpoint: budget.tokens: 6144 -> 7680" in more.out
    assert "going on after step 24" in more.out
    assert curve(copied / "runs/job")[:24] == before
    assert [step for step, *_ in curve(copied / "runs/job")] == list(range(1, 31))


def test_the_same_job_started_in_any_way_gives_the_same_losses(
    finished: tuple[Path, Ended], job: Path
) -> None:
    two, port = ("--nproc-per-node", "2"), ("--master-port", str(free_port()))
    commands = {
        "agent": ("triax", "train", "run.toml", *two),
        "torchrun": ("torchrun", *two, *port, "-m", "triax.launcher.train", "run.toml"),
        "module": ("python", "-m", "triax.launcher.train", "run.toml"),
    }
    for name, command in commands.items():
        ended = finish(start(job, *command, f"--run.name={name}"))
        assert ended.code == 0, ended.text
        assert ended.out.count("ended after step 24") == 1
        assert "Traceback" not in ended.error
    assert curve(job / "runs/module") == curve(finished[0] / "runs/job")
    assert curve(job / "runs/torchrun") == curve(job / "runs/agent")
    # One process adds up in another order than two, which a large learning rate magnifies.
    for one, two_ in zip(curve(job / "runs/module"), curve(job / "runs/agent"), strict=True):
        assert one == pytest.approx(two_, rel=2e-4)
    assert [path.name for path in (job / "runs/agent/logs").glob("*.log")] == ["node-0.log"]


def test_what_can_be_done_with_a_run(copied: Path) -> None:
    listed = triax(copied, "checkpoint", "list", "runs/job")
    assert listed.code == 0, listed.text
    assert re.findall(r"^ +(\d+) ", listed.out, re.MULTILINE) == ["16", "20", "24"]
    verified = triax(copied, "checkpoint", "verify", "runs/job")
    assert (verified.code, verified.out.count(": good")) == (0, 3), verified.text
    command = ("generate", "runs/job", "--prompt", "the cat", "--max-tokens", "20", "--seed", "3")
    written = triax(copied, *command)
    assert written.code == 0, written.text
    assert written.out.startswith("the cat") and len(written.out) > len("the cat\n")
    assert triax(copied, *command).out == written.out
    evaluated = triax(copied, "eval", "runs/job", "--data", "data/validation", "--sequences", "16")
    assert evaluated.code == 0, evaluated.text
    loss = re.search(r"^loss +([\d.]+) nats", evaluated.out, re.MULTILINE)
    last = read_events(copied / "runs/job", "evaluation")[-1]
    assert loss is not None and float(loss[1]) == pytest.approx(last["loss"], rel=1e-6)
    assert "run's own    the same sequences\n" in evaluated.out
    bits = re.search(r"^bits/byte +([\d.]+) over", evaluated.out, re.MULTILINE)
    assert bits is not None and float(bits[1]) == pytest.approx(last["bits_per_byte"], rel=1e-6)


def test_eval_is_like_the_run_and_says_what_the_run_s_own_figure_is(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(copied)
    overrides = ("--run.name=seen", "--data.mask_documents=false", "--budget.tokens=512")
    trained = train(copied, *overrides)
    assert trained.code == 0, trained.text
    Path("data").rename("moved")  # known by its contents
    for name, mask in (("job", "masked"), ("seen", "not masked")):
        last = read_events(copied / "runs" / name, "evaluation")[-1]["loss"]
        assert main(["eval", f"runs/{name}", "--data", "moved/validation"]) == 0
        shown = capsys.readouterr().out
        assert f"sequences of 32 tokens, documents {mask}\n" in shown
        own = re.search(
            r"^run's own    the first 16 sequences: loss ([\d.]+)$", shown, re.MULTILINE
        )
        assert own is not None and float(own[1]) == pytest.approx(last, rel=1e-6)
    both = ["eval", "runs/job", "runs/seen", "--data", "moved/validation", "--document-mask"]
    assert main(both) == 0
    compared = capsys.readouterr().out
    assert main(both) == 0 and capsys.readouterr().out == compared
    assert main(["eval", "runs/job", "--data", "moved/validation"]) == 0
    alone = re.search(r"^loss +([\d.]+) ", capsys.readouterr().out, re.MULTILINE)
    first, second = re.findall(r"^  loss +([\d.]+),", compared, re.MULTILINE)
    assert alone is not None and float(first) == pytest.approx(float(alone[1]), abs=2e-6)
    apart = re.search(r"to first +(\S+) nats .* within (\S+) and (\S+)$", compared, re.MULTILINE)
    assert apart is not None
    mean, low, high = map(float, apart.groups())
    assert mean == pytest.approx(float(second) - float(first), abs=2e-6) and low < mean < high
    assert main(both[:-1]) == 2 and "give --seq-len and --document-mask" in capsys.readouterr().err
    assert main(["eval", "runs/seen", "--data", "moved/validation", "--document-mask"]) == 0
    shown = capsys.readouterr().out
    assert "documents masked" in shown and "run's own" not in shown
    assert main(["eval", "runs/seen", "--data", "moved/train", "--sequences", "8"]) == 0
    assert "run's own" not in capsys.readouterr().out


def test_a_model_goes_to_transformers_and_back_into_a_run(copied: Path) -> None:
    transformers = pytest.importorskip("transformers")
    exported = triax(copied, "checkpoint", "export", "runs/job", "--output", "hf")
    assert exported.code == 0, exported.text
    imported = triax(copied, "checkpoint", "import", "hf", "--output", "imported")
    assert imported.code == 0, imported.text
    started = train(copied, "--run.name=from", "--checkpoint.init_from=imported")
    assert started.code == 0, started.text
    first = read_events(copied / "runs/from", "evaluation")[0]["loss"]
    last = read_events(copied / "runs/job", "evaluation")[-1]["loss"]
    assert first == last

    ours = find_model(str(copied / "runs/job")).load()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(copied / "hf")
    tokenizer = transformers.AutoTokenizer.from_pretrained(copied / "hf")
    tokens = torch.tensor([tokenizer("the cat sat on the mat")["input_ids"]])
    with torch.no_grad():
        logits = ours.logits(tokens, None)
        torch.testing.assert_close(theirs(tokens).logits, logits, atol=1e-5, rtol=1e-5)
    assert not math.isnan(float(logits.sum()))


def test_a_run_is_a_plain_pytorch_loop(
    finished: tuple[Path, Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses of the real run are those of a loop that knows nothing of the framework."""
    monkeypatch.chdir(finished[0])
    config = load_config("run.toml")
    source = Source.open("data/train", 32, config.model.vocab_size)
    blend = Blend.begin(identify_sources(config.data.sources, [source]), whole_run(1.0))
    loader = Loader(
        {blend.keys[0]: source},
        Sampler(config.run.seed, blend.phases, blend.num_windows()),
        global_batch_size=8, micro_batch_size=8, dp_rank=0, dp_size=1, mask_documents=True,
    )  # fmt: skip
    model = Transformer(config.model)
    initialise_model(model, model.description, 0)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
    )
    for row in read_rows(finished[0] / "runs/job"):
        [batch] = loader.batch_at(row["cursor"] - 8)
        logits = model.logits(batch.tokens_BT, batch.document_ids_BT)
        targets = batch.targets_BT.flatten()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets, ignore_index=-100)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = row["lr"]
        optimizer.step()
        optimizer.zero_grad()
        assert row["loss"] == pytest.approx(loss.item(), rel=1e-4)
        assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
