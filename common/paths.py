"""How a path that a person writes is read: one rule for the config, options and inputs."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Annotated, get_args

from pydantic import AfterValidator
from pydantic.fields import FieldInfo

from triax.common.errors import UserError

_URL = re.compile(r"(?P<scheme>s3|gs|hf|https?):/{1,2}(?P<rest>[^/].*)", re.ASCII)
_VARIABLE = re.compile(r"\$(?:(?P<plain>[A-Za-z_]\w*)|\{(?P<braced>[A-Za-z_]\w*)\})", re.ASCII)


def url_of(path: str | os.PathLike[str]) -> str | None:
    """The address that a path stands for; None for a place on this machine.

    A Path of an address has lost one of its slashes, and is known even so.
    """
    match = _URL.fullmatch(os.fspath(path))
    return None if match is None else f"{match['scheme']}://{match['rest'].rstrip('/')}"


def scheme_of(url: str) -> str:
    """What stands before the colon of an address."""
    return url.partition(":")[0]


def absolute(path: str) -> str:
    """A path that means the same in every working folder, without `..`; an address is one."""
    return url_of(path) or os.path.abspath(path)  # noqa: PTH100, it takes ".." out


def expand(text: str) -> Path:
    """The path that `~`, `~USER`, `$NAME` and `${NAME}` in a text stand for.

    An address (`s3://`, `gs://`, `hf://`, `https://`) is a Path that `url_of` knows again.
    A config file isn't read by a shell, so the path would otherwise be a folder of that very
    name. A relative path stays relative. Any other `$` stands for itself.

    Raises:
        UserError: a variable isn't set, or is empty: `$SCRATCH/runs` would be `/runs`; or there
            is no such user.
    """
    replaced = _VARIABLE.sub(lambda match: _value(match, text), text)
    if not text.startswith("~"):
        return Path(replaced)
    path = os.path.expanduser(replaced)  # noqa: PTH111, Path's raises for an unknown user
    if path.startswith("~"):
        raise UserError(
            f"{text}: there is no home of {Path(path).parts[0]} on this machine; "
            f"write ./{text} if that is the name of a file or folder"
        )
    return Path(path)


def _value(match: re.Match[str], written: str) -> str:
    name = match["plain"] or match["braced"]
    value = os.environ.get(name)
    if not value:
        raise UserError(
            f"{written}: the variable {name} isn't set here; set it, or write the path out"
        )
    return value


def same_path(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> bool:
    """Whether two paths are one as they are written; the disk isn't asked for links."""
    return absolute(os.fspath(one)) == absolute(os.fspath(other))


def short_path(text: str, most: int) -> str:
    """A path for people to know it by: relative where it lies in the working folder, and only its
    end, after an ellipsis, where it has more than `most` characters."""
    path = Path(text)
    with contextlib.suppress(OSError, ValueError):  # no working folder; or elsewhere
        path = path.relative_to(Path.cwd())
    shown = str(path)
    return (
        shown if len(shown) <= most else f"\N{HORIZONTAL ELLIPSIS}{shown[len(shown) - most + 1 :]}"
    )


class _Path:
    """Marks the config fields that hold a path."""


def _expanded(text: str) -> str:
    """A path without `~` or `$NAME` as it is written: `./none` is a path, and `none` is none."""
    path = expand(text)
    return url_of(path) or (text if path == Path(text) else str(path))


PathField = Annotated[str, AfterValidator(_expanded), _Path()]
"""A config field that holds a path, read by the rule of `expand`."""


def is_path(field: FieldInfo) -> bool:
    """Whether a config field holds a path; a missing one is none."""
    arms = get_args(field.annotation)
    metadata = [*field.metadata, *(m for arm in arms for m in getattr(arm, "__metadata__", ()))]
    return any(isinstance(entry, _Path) for entry in metadata)
