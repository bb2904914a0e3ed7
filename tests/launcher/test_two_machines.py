"""A job on two machines with addresses of their own, which loopback can't join."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from small_run import command, losses, make_run

ROOT = Path(__file__).parents[2]
NUM_STEPS = 12
SUBNET = f"10.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
PORT = 21000 + os.getpid() % 5000
MACHINES = [f"triax{os.getpid()}-{number}" for number in (0, 1)]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


@pytest.fixture(scope="module")
def machines() -> Iterator[list[str]]:
    """Two network namespaces, joined by a cable; no name and no other way leads out of them."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the `ip` command (package iproute2)")
    cable = [f"tx{os.getpid() % 100000}{end}" for end in "ab"]
    try:
        for machine in MACHINES:
            ip("netns", "add", machine)
        ip("link", "add", cable[0], "type", "veth", "peer", "name", cable[1])
        for number, machine in enumerate(MACHINES):
            ip("link", "set", cable[number], "netns", machine)
            ip("-n", machine, "addr", "add", f"{SUBNET}.{number + 1}/24", "dev", cable[number])
            for link in ("lo", cable[number]):
                ip("-n", machine, "link", "set", link, "up")
    except subprocess.CalledProcessError as error:
        _remove(MACHINES)
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    yield MACHINES
    _remove(MACHINES)


def _remove(machines: Sequence[str]) -> None:
    for machine in machines:
        subprocess.run(
            ["ip", "netns", "del", machine], check=False, capture_output=True, timeout=20
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run.toml`, and the run of one process for comparison."""
    folder = tmp_path_factory.mktemp("two_machines")
    make_run(folder, NUM_STEPS)
    subprocess.run(
        [sys.executable, "-m", "triax.launcher.train", "run.toml"],
        cwd=folder, check=True, timeout=120, capture_output=True,
    )  # fmt: skip
    return folder


def run_on_both(
    machines: Sequence[str], folder: Path, commands: Sequence[Sequence[str]], timeout: float = 120
) -> tuple[list[int], str]:
    """Run one command on each machine; returns their exit codes and all that they said."""
    # The deepspeed launcher asks for its accelerator at once.
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    log = folder / "output.log"
    with log.open("w") as file:
        processes = [
            subprocess.Popen(
                ["ip", "netns", "exec", machine, *arguments],
                cwd=folder, env=variables, stdout=file, stderr=file, start_new_session=True,
            )
            for machine, arguments in zip(machines, commands, strict=True)
        ]  # fmt: skip
        try:
            codes = [process.wait(timeout) for process in processes]
        finally:
            for process in processes:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait(10)
    return codes, log.read_text()


def test_torchrun_joins_two_machines(machines: list[str], folder: Path) -> None:
    commands = [
        [
            command("torchrun"), "--nnodes", "2", "--node-rank", str(number), "--nproc-per-node",
            "1", "--master-addr", f"{SUBNET}.1", "--master-port", str(PORT), "-m",
            "triax.launcher.train", "run.toml", "--run.name=torchrun",
        ]
        for number in (0, 1)
    ]  # fmt: skip
    codes, said = run_on_both(machines, folder, commands)
    assert codes == [0, 0], said
    assert f"torchrun: 2 processes on 2 nodes, rank 0 on {os.uname().nodename}" in said
    assert "interface tx" in said
    assert losses(folder, "torchrun") == pytest.approx(losses(folder, "alone"), rel=1e-5)


def test_the_deepspeed_launcher_joins_two_machines(machines: list[str], folder: Path) -> None:
    pytest.importorskip("deepspeed.launcher", reason="the deepspeed package is not installed")
    (folder / "hostfile").write_text("first slots=1\nsecond slots=1\n")
    commands = [
        [
            command("deepspeed"), "--hostfile", "hostfile", "--no_ssh", "--node_rank", str(number),
            "--master_addr", f"{SUBNET}.1", "--master_port", str(PORT + 1), "--module",
            "triax.launcher.train", "run.toml", "--run.name=deepspeed",
            "--parallel.engine=deepspeed", "--parallel.zero_stage=3",
        ]
        for number in (0, 1)
    ]  # fmt: skip
    codes, said = run_on_both(machines, folder, commands)
    assert codes == [0, 0], said
    assert "deepspeed: 2 processes on 2 nodes" in said
    assert losses(folder, "deepspeed") == pytest.approx(losses(folder, "alone"), rel=1e-5)


def test_open_mpi_joins_two_machines(machines: list[str], folder: Path) -> None:
    version = [] if shutil.which("mpirun") is None else ["mpirun", "--version"]
    if not version or b"Open MPI" not in subprocess.check_output(version, timeout=20):
        pytest.skip("there is no Open MPI here (Debian: openmpi-bin)")
    agent = folder / "agent"
    agent.write_text(f'#!/bin/sh\nshift\nexec ip netns exec {machines[1]} sh -c "$*"\n')
    agent.chmod(0o755)
    mpirun = [
        "mpirun", "--allow-run-as-root", "--host", f"{SUBNET}.1:1,{SUBNET}.2:1", "-n", "2",
        # In the place of ssh.
        "--mca", "plm_rsh_agent", str(agent), "--mca", "oob_tcp_if_include", f"{SUBNET}.0/24",
        "-x", "PATH", "-x", "OMP_NUM_THREADS", "-x", f"MASTER_ADDR={SUBNET}.1",
        "-x", f"MASTER_PORT={PORT + 2}", "--wdir", str(folder),
        sys.executable, "-m", "triax.launcher.train", "run.toml", "--run.name=mpirun",
    ]  # fmt: skip
    codes, said = run_on_both(machines[:1], folder, [mpirun])
    assert codes == [0], said
    assert "mpirun: 2 processes on 2 nodes, rank 0 on" in said
    assert losses(folder, "mpirun") == pytest.approx(losses(folder, "alone"), rel=1e-5)


def test_the_pods_of_the_kubernetes_job_join(machines: list[str], folder: Path) -> None:
    """Each pod's own command line, with one process in place of eight GPUs."""
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is missing")
    service, job = yaml.safe_load_all((ROOT / "examples/kubernetes/job.yaml").read_text())
    version = validate.latest_version()
    for each in (service, job):
        validate.validate(each, version, strict=True)
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert (
        service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    )
    name = job["metadata"]["name"]
    [container] = pod["containers"]
    [index] = container["env"]
    commands = []
    for number, machine in enumerate(machines):
        words = [
            word.replace(f"$({index['name']})", str(number)).replace("=8", "=1")
            for word in container["command"]
        ]
        commands.append([command(words[0]), *words[1:], "--run.name=pods"])
        # What the headless service answers; `ip netns exec` lays it over /etc/hosts.
        hosts = Path("/etc/netns") / machine / "hosts"
        hosts.parent.mkdir(parents=True)
        hosts.write_text(f"127.0.0.1 localhost\n{SUBNET}.1 {name}-0.{pod['subdomain']}\n")
    try:
        codes, said = run_on_both(machines, folder, commands)
    finally:
        for machine in machines:
            shutil.rmtree(Path("/etc/netns") / machine)
    assert codes == [0, 0], said
    assert "torchrun: 2 processes on 2 nodes" in said
    assert losses(folder, "pods") == pytest.approx(losses(folder, "alone"), rel=1e-5)
