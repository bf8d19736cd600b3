"""The air-gapped LLM routing appliance."""

import os

__version__ = "0.1.0"

# onnxruntime 1.32 reports usage to its vendor from native threads, below every guard in Python, unless this is set
# before its first import; its own `disable_telemetry_events()` is too late (docs/decisions/0001-no-packet-leaves.md).
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
