"""A gateway's part that follows a shared volume, as a process of its own: a JSON line whenever something changes.

python -m tests.support.follow VOLUME TRUST CACHE CHANNEL
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from appliance.errors import ApplianceError
from appliance.registry.cache import Cache
from appliance.registry.directory import DirectoryStore
from appliance.registry.follower import Follower
from appliance.registry.registry import Registry
from appliance.registry.trust_source import TrustSource


def main() -> None:
    """Follow until killed."""
    volume, trust, cache, channel = sys.argv[1:]
    source = TrustSource(Path(trust))
    home = Registry(DirectoryStore(Path(volume)), material=source.material, clock=source.now)
    follower = Follower(home, Cache(Path(cache)), channel, material=source.material, clock=source.now)
    follower.boot()
    said = None
    while True:
        problem = None
        try:
            follower.poll()
        except ApplianceError as error:
            problem = error.code
        now = [follower.health().version, problem]
        if now != said:
            print(json.dumps({"version": now[0], "problem": now[1]}), flush=True)
            said = now
        time.sleep(0.1)


if __name__ == "__main__":
    main()
