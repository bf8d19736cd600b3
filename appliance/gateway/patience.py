"""How long a request waits before its model server, which is the only one, is asked again.

LiteLLM waits as long as it is told to, up to a minute before each retry, and once more after the last one: a client
learned after half a minute what was known at once, and what it was told to wait was kept from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Wait = Callable[..., float]
MOST_S = 5.0


def bounded(wait: Wait) -> Wait:
    """LiteLLM's pause before a retry, which ends the retries where it is long or nothing follows it.

    Args:
        wait: a method of LiteLLM's router; `e` and `remaining_retries` among its named arguments.
    """

    def waits(router: Any, *, e: Exception, remaining_retries: int, **others: Any) -> float:
        seconds = wait(router, e=e, remaining_retries=remaining_retries, **others)
        if remaining_retries <= 0 or seconds > MOST_S:
            raise e
        return seconds

    return waits
