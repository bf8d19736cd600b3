"""The air-gapped LLM routing appliance."""

import os
import sys
from pathlib import Path

__version__ = "0.1.0"
_environment = Path(sys.prefix).resolve()  # PREFIX/releases/ID/env, often reached through PREFIX/current

# The installed release whose environment this process runs in, as the installer names it; None where sources run by
# themselves. Taken at the start: `current` may point to another release while a process runs.
__release__ = _environment.parent.name if _environment.parent.parent.name == "releases" else None

# onnxruntime 1.32 reports usage to its vendor from native threads, below every guard in Python, unless this is set
# before its first import; its own `disable_telemetry_events()` is too late (docs/decisions/0001-no-packet-leaves.md).
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
