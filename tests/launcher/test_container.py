"""The CPU image, built for real, runs the quickstart's first steps."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASE, IMAGE = "localhost/triax-test-base", "localhost/triax-test"
SUITE = "bookworm"
PACKAGES = "python3,python3-pip,ca-certificates"
pytestmark = pytest.mark.container


def buildah(storage: Mapping[str, str], *arguments: str, timeout: float = 900) -> str:
    """Run a command of buildah; returns what it printed."""
    done = subprocess.run(
        ["buildah", *arguments], env={**os.environ, **storage}, check=False, timeout=timeout,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"buildah {arguments[0]}: {done.stdout[-3000:]}"
    return done.stdout.strip()


def volumes() -> list[str]:
    """Folders that a build needs beside the package index, such as a mirror's, read only."""
    named = os.environ.get("TRIAX_IMAGE_VOLUMES", "")
    return [f"--volume={path}:{path}:ro" for path in named.split(":") if path]


def pip_settings() -> list[str]:
    """This machine's settings of pip, for an image that sees the same index."""
    given = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    given["PIP_BREAK_SYSTEM_PACKAGES"] = "1"  # Debian's Python asks for a virtual environment
    return [word for name, value in given.items() for word in ("--env", f"{name}={value}")]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Variables that keep buildah's images in a folder of our own."""
    missing = [tool for tool in ("buildah", "mmdebstrap") if shutil.which(tool) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip("an image needs root, and Debian's packages buildah and mmdebstrap")
    folder = tmp_path_factory.mktemp("storage")
    config = folder / "storage.conf"
    # vfs, which every file system has, copies all files for each layer.
    known = Path("/proc/filesystems").read_text()
    driver = "overlay" if "\toverlay\n" in known else "vfs"
    config.write_text(
        f'[storage]\ndriver = "{driver}"\nrunroot = "{folder}/run"\ngraphroot = "{folder}/graph"\n'
    )
    yield {"CONTAINERS_STORAGE_CONF": str(config), "BUILDAH_ISOLATION": "chroot"}
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def base(storage: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with Debian's Python, as the Dockerfile's argument BASE takes it."""
    tar = tmp_path_factory.mktemp("base") / "root.tar"
    made = subprocess.run(
        ["mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(tar)],
        check=False, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    if made.returncode != 0:
        pytest.skip(f"no Debian mirror to make a base image from: {made.stderr[-500:]}")
    container = buildah(storage, "from", "scratch")
    buildah(storage, "add", "--quiet", container, str(tar), "/")
    tar.unlink()
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    buildah(storage, "config", "--env", path, *pip_settings(), container)
    buildah(storage, "run", container, "--", "ln", "-s", "python3", "/usr/bin/python")
    buildah(storage, "commit", "--quiet", "--rm", container, BASE)
    return BASE


@pytest.fixture(scope="module")
def image(storage: dict[str, str], base: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image of docker/Dockerfile.cpu, from what git knows."""
    source = tmp_path_factory.mktemp("source")
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", "HEAD"], check=True, capture_output=True
    )
    subprocess.run(["tar", "-x", "-C", str(source)], input=archive.stdout, check=True)
    index = os.environ.get("TRIAX_TORCH_INDEX", "https://download.pytorch.org/whl/cpu")
    arguments = (f"--build-arg=BASE={base}", f"--build-arg=TORCH_INDEX={index}", *volumes())
    file = source / "docker" / "Dockerfile.cpu"
    buildah(storage, "build", *arguments, "-f", str(file), "-t", IMAGE, str(source), timeout=1500)
    return IMAGE


@pytest.fixture(scope="module")
def container(storage: dict[str, str], image: str) -> str:
    return buildah(storage, "from", image)


def in_container(
    storage: dict[str, str], container: str, folder: Path, command: Sequence[str]
) -> str:
    """Run a command in the image, with a folder of this machine as /work."""
    mount = ("--volume", f"{folder}:/work", "--workingdir", "/work")
    return buildah(storage, "run", *mount, container, "--", *command)


def test_the_quickstart_begins_in_the_image(
    storage: dict[str, str], container: str, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    quickstart = ("triax", "train", "examples/quickstart.toml", "--run.name=image")
    said = in_container(storage, container, tmp_path, (*quickstart, "--budget.tokens=24K"))
    run = tmp_path / "runs" / "image"
    assert (run / "loss.png").stat().st_size > 0, said[-2000:]
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) >= 8
    generate = ("triax", "generate", "runs/image", "--prompt", "import os")
    assert "import os" in in_container(storage, container, tmp_path, generate)
