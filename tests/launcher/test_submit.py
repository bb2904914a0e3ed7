"""`triax submit`: the script that a config and options become, and what it refuses."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from triax.checkpoint.staging import whole
from triax.checkpoint.writing import write_checkpoint
from triax.launcher.cli import main
from triax.launcher.slurm.batch_job import _time_limit

CONFIG = """
[run]
name = "test"
[model]
preset = "mini-10m"
[data]
sources = [{ path = "out/train" }]
seq_len = 64
prepare = { inputs = ["python-stdlib"], output = "out", vocab_size = 4096 }
[batch]
global_batch_size = 8
"""
SIZE = ("--nodes", "2", "--gpus-per-node", "4")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "run.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def render(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["submit", "run.toml", *SIZE, *argv, "--dry-run"]) == 0
    return capsys.readouterr().out


def directives(script: str) -> list[str]:
    """The options as sbatch takes them: words with a shell's quotes."""
    lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if "#SBATCH" in line]
    return [word for line in lines for word in shlex.split(line)]


def test_the_options_become_directives(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    script = render(
        capsys, "--partition", "gpu", "--time", "1-00:00:00", "--account", "a b", "--qos", "high",
        "--cpus-per-task", "6", "--grace", "90", "--extra-sbatch=--mem=0",
    )  # fmt: skip
    assert directives(script) == [
        "--job-name=test", f"--chdir={folder}", f"--output={folder}/runs/test/logs/slurm-%j.log",
        "--open-mode=append", "--nodes=2", "--mincpus=24", "--gpus-per-node=4",
        "--partition=gpu", "--time=1-00:00:00", "--account=a b", "--qos=high",
        "--signal=B:USR1@90", "--requeue", "--no-kill", "--mem=0",
    ]  # fmt: skip
    assert not (folder / "runs").exists(), "a dry run leaves nothing behind"


def test_no_text_leaves_its_quotes(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    evil = "'; touch pwned; $(touch pwned) `touch pwned` \"#%j"
    script = render(
        capsys, "--job-name", evil, "--container", evil, f"--run.name={evil}",
        f"--extra-srun={evil}", f"--extra-sbatch=--comment={evil}", "--optimizer.lr=1e-3",
    )  # fmt: skip
    # All of the script up to its first command, then what the shell has made of the values.
    head = script[: script.index("# The rest is the same")]
    shown = subprocess.run(
        ["bash", "-c", head + 'printf "%s\\n" "${overrides[@]}" "$run_dir" "${srun_options[@]}"'],
        cwd=folder, capture_output=True, text=True, check=True, timeout=20,
    )  # fmt: skip
    assert shown.stdout.splitlines() == [
        f"--run.name={evil}", "--optimizer.lr=1e-3", f"{folder}/runs/{evil}",
        "--cpus-per-task=4", f"--container-image={evil}", f"--container-mounts={folder}:{folder}",
        f"--container-workdir={folder}", evil,
    ]  # fmt: skip
    assert not (folder / "pwned").exists()
    assert f"--job-name={evil}" in directives(script)
    assert f"--comment={evil}" in directives(script)
    assert f"--output={folder}/runs/{evil.replace('%', '%%')}/logs/slurm-%j.log" in directives(
        script
    )


def test_the_script_is_bash(capsys: pytest.CaptureFixture[str]) -> None:
    script = render(capsys, "--setup", "source env.sh", "--setup", "export A=1")
    assert "\nsource env.sh\nexport A=1\n" in script
    assert "{{" not in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=20)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--job-name", "a\nb"), "one line of printable text"),
        (("--batch.global_batch_size=12",), "not a multiple of micro_batch_size 1 x 8"),
        (("--processes-per-node", "5"), "--processes-per-node 5 is more than --gpus-per-node 4"),
        (("--container-mounts", "/a:/b"), "--container-mounts is of use with --container"),
        (("--template", "none.sh"), "the template none.sh can't be read"),
        (("--template", "own.sh"), "the template has {{nodes}}, which is nothing that is filled"),
    ],
)
def test_what_can_not_work_is_said(
    capsys: pytest.CaptureFixture[str], folder: Path, argv: tuple[str, ...], words: str
) -> None:
    (folder / "own.sh").write_text("#!/bin/bash\n{{directives}}\n{{nodes}}\n")
    assert main(["submit", "run.toml", *SIZE, *argv, "--dry-run"]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_gpus_have_cores_and_a_type(capsys: pytest.CaptureFixture[str]) -> None:
    script = render(capsys, "--gpus-per-node", "h100:4")
    assert {"--gpus-per-node=h100:4", "--mincpus=16"} <= set(directives(script))
    assert "srun_options=(--cpus-per-task=4)" in script
    for wrong in ("h100:", ":4", "h100:x", "h 100:4", "-1"):
        argv = ["submit", "run.toml", "--nodes", "2", f"--gpus-per-node={wrong}", "--dry-run"]
        assert main(argv) == 2
        assert "expected a number, as 8 or h100:8" in capsys.readouterr().err


def test_a_container_gets_all_that_the_run_reads_and_writes(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "texts").mkdir()
    write_checkpoint(elsewhere / "weights", {"model.a": whole(torch.zeros(1))}, {}, step=0)
    prepare = {"inputs": [f"{elsewhere}/texts/*.txt"], "output": "out", "vocab_size": 4096}
    script = render(
        capsys, "--container", "image", f"--run.dir={elsewhere}/runs",
        f"--data.prepare={json.dumps(prepare)}", f"--checkpoint.init_from={elsewhere}/weights",
    )  # fmt: skip
    [mounts] = re.findall(r"--container-mounts=(\S+)", script)
    places = (folder, elsewhere / "runs/test", elsewhere / "texts", elsewhere / "weights")
    assert mounts.rstrip(")").split(",") == sorted(f"{place}:{place}" for place in places)
    given = render(capsys, "--container", "image", "--container-mounts", "/a:/b")
    assert "--container-mounts=/a:/b" in given
    comma = folder / "a,b"
    comma.mkdir()
    argv = ["submit", "run.toml", *SIZE, "--container", "i", f"--run.dir={comma}", "--dry-run"]
    assert main(argv) == 0, "this folder holds it"
    argv[-2] = f"--run.dir={elsewhere}/a,b"
    assert main(argv) == 2
    assert "give --container-mounts" in capsys.readouterr().err
    assert main([*argv[:-4], *argv[-2:]]) == 0, "nothing is mounted where there is no container"


def test_a_cpu_cluster_needs_a_number_of_processes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    size = ["submit", "run.toml", "--nodes", "2", "--gpus-per-node", "0", "--dry-run"]
    assert main(size) == 2
    assert "--processes-per-node" in capsys.readouterr().err
    assert main([*size, "--processes-per-node", "2"]) == 0
    assert "--gpus-per-node" not in capsys.readouterr().out


FAKE_SBATCH = """#!/bin/sh
echo "$@" >> submitted
[ "$(wc -l < submitted)" -lt 3 ] || { echo "no more of your jobs" >&2; exit 1; }
echo "$(wc -l < submitted);cluster"
"""


def test_a_chain_is_submitted_one_after_the_other(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    assert main(["submit", "run.toml", *SIZE]) == 2
    assert "there is no sbatch here" in capsys.readouterr().err or Path("/usr/bin/sbatch").exists()
    (folder / "sbatch").write_text(FAKE_SBATCH)
    (folder / "sbatch").chmod(0o755)
    assert main(["submit", "run.toml", *SIZE, "--chain", "2"]) == 0
    logs = folder / "runs" / "test" / "logs"
    assert capsys.readouterr().out == f"submitted jobs 1, 2; logs: {logs}/slurm-1.log\n"
    assert (folder / "submitted").read_text().splitlines() == [
        f"--parsable {logs}/job-1.sh", f"--parsable --dependency=afterany:1 {logs}/job-2.sh",
    ]  # fmt: skip
    assert "\nlink=2\nnum_links=2\n" in (logs / "job-2.sh").read_text()
    assert main(["submit", "run.toml", *SIZE]) == 2
    assert "sbatch refused the job: no more of your jobs" in capsys.readouterr().err


ROOT = Path(__file__).parents[2]


EXAMPLES = {
    "single-node": "examples/quickstart.toml --nodes 1 --gpus-per-node 4 "
    "--batch.micro_batch_size=1",
    "multi-node": "examples/llama3-70b-16x8.toml --nodes 16 --gpus-per-node 8",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_are_what_is_rendered(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    options = "--time 24:00:00 --dry-run"
    assert main(["submit", *EXAMPLES[name].split(), *options.split()]) == 0
    rendered = capsys.readouterr().out
    for here, there in ((sys.executable, "/home/you/venv/bin/python"), (ROOT, "/home/you/triax")):
        rendered = rendered.replace(str(here), there)
    example = ROOT / "examples" / "slurm" / f"{name}.sh"
    assert rendered == example.read_text(), f"{example} is out of date"


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("7", 420), ("7:30", 450), ("1:0:1", 3601), ("1-0", 86400), ("1-1:30", 91800),
        ("2-0:0:5", 172805), ("0", None), ("UNLIMITED", None),
    ],
)  # fmt: skip
def test_time_limits_are_read_as_sbatch_reads_them(time: str, seconds: int | None) -> None:
    assert _time_limit(time) == seconds


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--time", "5"), "--time 5 is 300 s, but with --grace 300"),
        (("--time", "6:59"), "Ask for more than 420 s"),
        (("--extra-sbatch=--time=5",), "--time 5 is 300 s"),
        (("--extra-sbatch=-t5",), "--time 5 is 300 s"),
        (("--time", "soon"), "--time is 'soon', expected minutes, minutes:seconds"),
    ],
)
def test_a_time_limit_within_the_grace_is_refused(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], words: str
) -> None:
    assert main(["submit", "run.toml", *SIZE, *argv, "--dry-run"]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


FAKE_SLURM = {
    "squeue": "case $* in *%T*) echo RUNNING;; *) echo node1;; esac",
    "scontrol": '[ "$1" = requeue ] && kill -KILL "$PPID" || echo node1',
    "srun": "echo >>starts; [ -e saves ] && mkdir -p runs/test/checkpoints/step-$(wc -l <starts); "
    "case $* in *triax.launcher.train*) exit 75;; esac",
}


def test_a_job_that_never_saves_is_not_requeued_for_ever(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when each start's time is over before anything could be saved."""
    (folder / "job.sh").write_text(render(capsys, "--max-restarts", "1", "--time", "8"))
    (folder / "runs/test/logs").mkdir(parents=True)
    for name, lines in FAKE_SLURM.items():
        (folder / name).write_text(f"#!/bin/sh\n{lines}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURMD_NODENAME", "node1")

    def run() -> tuple[int, str]:
        done = subprocess.run(
            ["bash", "job.sh"], cwd=folder, capture_output=True, text=True, timeout=60, check=False
        )
        return done.returncode, done.stdout

    assert run()[0] == -signal.SIGKILL, "requeued"
    code, said = run()
    assert code == 75
    assert "1 restarts without a new checkpoint are enough" in said
    (folder / "saves").touch()
    assert [run()[0] for _ in range(2)] == [-signal.SIGKILL] * 2, "both have saved"
