"""Waits for stores that are slow, busy or down, and says what it waits for."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from triax.common.errors import UserError

T = TypeVar("T")
_log = logging.getLogger(__name__)

PATIENCE_SECONDS = 3600.0
"""For a store that doesn't answer."""
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 30.0
_SECONDS_BETWEEN_WORDS = 30.0
"""Between messages; the first comes with the second failure."""


def patiently(url: str, call: Callable[[], T], patience: float = PATIENCE_SECONDS) -> T:
    """What `call` returns, which is tried again after each ConnectionError, ever more rarely.

    Delays differ by chance, so that thousands of processes don't ask at the same moment.

    Args:
        url: for messages.
        patience: seconds after which it gives up.

    Raises:
        UserError: it is out of patience; or nothing is there, or it may not be read.
    """
    began, told, num_failures, delay = time.monotonic(), float("-inf"), 0, _FIRST_DELAY
    while True:
        try:
            value = call()
            break
        except FileNotFoundError:
            raise UserError(f"{url}: there is no such file in the store; check the path") from None
        except PermissionError as error:
            raise UserError(f"{url}: the store refuses it: {error}; check credentials") from None
        except ConnectionError as error:
            num_failures += 1
            now = time.monotonic()
            if now - began >= patience:
                raise UserError(
                    f"{url}: not read in {now - began:,.0f} s and {num_failures} tries: {error}; "
                    "run the same command again when the store answers"
                ) from None
            if num_failures > 1 and now - told >= _SECONDS_BETWEEN_WORDS:
                told = now
                _log.warning("waiting for %s: %s (%d tries)", url, error, num_failures)
        time.sleep(delay * random.uniform(0.5, 1.0))
        delay = min(2 * delay, _LONGEST_DELAY)
    if told > float("-inf"):
        _log.warning("%s answers again, after %.0f s", url, time.monotonic() - began)
    return value
