"""Where a router comes from: a folder, or a channel of the registry."""

from __future__ import annotations

from appliance.gateway.active import Slot
from appliance.gateway.loading import LastGood, Loader
from appliance.gateway.watch import DirectoryWatch, Watch
from appliance.registry.directory import DirectoryStore
from appliance.registry.sidecar import Sidecar
from appliance.settings import Router, Settings


def open_watch(settings: Settings, slot: Slot, router: Router, loader: Loader) -> Watch:
    """The watch that keeps a slot in step with what its settings name."""
    assert settings.trust is not None  # noqa: S101 (settings demand it as soon as there is a router)
    last_good = LastGood(settings.state_dir / "routers" / slot.name)
    trust = settings.trust.store
    if router.directory is not None:
        sidecar = Sidecar(DirectoryStore(settings.state_dir.parent / "volume"))  # where the unit writes it
        return DirectoryWatch(
            slot, router, loader, directory=router.directory, trust=trust, last_good=last_good, sidecar=sidecar
        )
    from appliance.gateway.follow import ChannelWatch

    cache = settings.state_dir / "registry-cache"
    return ChannelWatch(slot, router, loader, trust=trust, cache=cache, last_good=last_good)
