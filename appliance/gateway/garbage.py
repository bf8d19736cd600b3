"""Collecting garbage by hand, between two events and never in the midst of one.

CPython 3.11 collects wherever an object is allocated, inside `ContextVar.set` too, which walks the context's table by a
borrowed reference. A finaliser that sets a variable of the same context then frees the table under its feet, and the
process ends by SIGSEGV (python/cpython#148891). LiteLLM 1.106.2 has such a finaliser: `CustomStreamWrapper.__del__`
sets `trace_id` and `session_id`, and a stream whose client went away is left to the collector. Mixed traffic ended a
gateway after 5 minutes and another after 29. Called from Python code, the collector stands inside `ContextVar.set` of
no thread.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

# LiteLLM makes and drops some ten thousand objects for a request, nearly all without the collector's help: at Python's
# 700, 10, 10 it looked for garbage a dozen times a request, a tenth of the processor time. By hand the counts are those
# of what is left: a hundred objects a request, so that at 30 requests a second all is looked through in two minutes.
COLLECT_AFTER = (10_000, 5, 5)  # objects that are left, collections of the youngest, collections of the middle


@contextlib.contextmanager
def by_hand() -> Iterator[None]:
    """While the block runs, nothing is collected but by `collect_if_due` and whoever calls `gc.collect`."""
    enabled, thresholds = gc.isenabled(), gc.get_threshold()
    gc.disable()
    gc.set_threshold(*COLLECT_AFTER)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        if enabled:
            gc.enable()


def collect_if_due() -> int | None:
    """Collect as the interpreter would, by its own counts.

    Returns:
        The generation that was collected; None where it is not time.
    """
    counts, limits = gc.get_count(), gc.get_threshold()
    if counts[0] <= limits[0]:
        return None
    generation = max(number for number in range(3) if counts[number] > limits[number])
    gc.collect(generation)
    return generation
