"""What a job's container mounts, for the pyxis plugin. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from triax.common.errors import UserError
from triax.common.paths import url_of
from triax.launcher.config.run_config import RunConfig


def mounts_for(config_path: str, config: RunConfig) -> str:
    """What the ranks read and write, where it is outside: folders, each mounted at its own place.

    Raises:
        UserError: a path can't stand in pyxis's list.
    """
    data, prepare = config.data, config.data.prepare
    paths = [config_path, *(source.path for source in data.sources), data.validation]
    paths += [data.tokenizer, config.checkpoint.init_from, config.parallel.offload_path]
    if prepare is not None:
        paths += [prepare.output, *(item for item in prepare.inputs if "/" in item)]
    wanted = {
        _folder_of(Path(path).expanduser().absolute())
        for path in paths
        if path and not url_of(path)
    }
    # Submitting makes the run's folder.
    wanted |= {Path.cwd(), config.run_dir.absolute()}
    roots = [path for path in sorted(wanted) if not wanted.intersection(path.parents)]
    for root in roots:
        if {":", ","} & set(str(root)) or root == Path("/"):
            raise UserError(f"{root} can't be mounted into the container: give --container-mounts")
    return ",".join(f"{root}:{root}" for root in roots)


def _folder_of(path: Path) -> Path:
    """The folder itself or the nearest above that exists: shards have a prefix, globs stars."""
    return next(each for each in (path, *path.parents) if each.is_dir())
