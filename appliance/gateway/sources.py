"""Where a router comes from: a folder, or a channel of the registry."""

from __future__ import annotations

from appliance.gateway.active import Slot
from appliance.gateway.loading import LastGood, Loader
from appliance.gateway.watch import DirectoryWatch, Watch
from appliance.settings import Router, Settings


def open_watch(settings: Settings, slot: Slot, router: Router, loader: Loader) -> Watch:
    """The watch that keeps a slot in step with what its settings name."""
    assert settings.trust is not None  # noqa: S101 (settings demand it as soon as there is a router)
    if router.directory is not None:
        return DirectoryWatch(
            slot,
            router,
            loader,
            directory=router.directory,
            trust=settings.trust.store,
            last_good=LastGood(settings.state_dir / "routers" / slot.name),
        )
    from appliance.gateway.follow import ChannelWatch

    return ChannelWatch(slot, router, loader, trust=settings.trust.store, cache=settings.state_dir / "registry-cache")
