"""The shared modules' refusals as the appliance's errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from appliance.bundle.stage0.refusal import Refused
from appliance.errors import BundleError, InstallError


@contextlib.contextmanager
def appliance_errors() -> Iterator[None]:
    """Raise a `Refused` as `BundleError` or `InstallError`, told by its code."""
    try:
        yield
    except Refused as refused:
        kind = BundleError if refused.code.startswith("BUNDLE_") else InstallError
        raise kind(refused.code, refused.cause, remedy=refused.remedy or None, **refused.evidence) from refused
