"""Progress of bytes with rate and time left: a live line on a terminal, a line every quarter elsewhere."""

from __future__ import annotations

import sys
import time

from appliance.bundle.stage0.main import rate_text


class Rate:
    """Called with bytes done and in all."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._begun = time.monotonic()
        self._shown = 0.0
        self._quarter = 0

    def __call__(self, done: int, total: int) -> None:
        """Show it if it is time to."""
        now, live, quarter = time.monotonic(), sys.stderr.isatty(), done * 4 // max(total, 1)
        too_soon = now - self._shown < 0.2 and done < total if live else quarter == self._quarter
        if self._quiet or too_soon:
            return
        self._shown, self._quarter = now, quarter
        end = "" if live and done < total else "\n"
        print(
            ("\r\033[K" if live else "") + rate_text(done, total, now - self._begun),
            end=end,
            file=sys.stderr,
            flush=True,
        )
