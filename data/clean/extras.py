"""The packages of the extra `triax[clean]`, asked for where a step needs one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from triax.common.errors import UserError


@contextmanager
def needs(package: str, step: str) -> Iterator[None]:
    """Around the import of a package.

    Raises:
        UserError: it isn't installed.
    """
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"the step {step} needs {package}, which can't be imported: {error}; "
            "install it: pip install 'triax[clean]'"
        ) from None
