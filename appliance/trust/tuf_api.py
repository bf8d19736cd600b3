"""All that we use of python-tuf and securesystemslib, imported without the SDKs of clouds that they would bring along.

securesystemslib offers signers for AWS, Azure, Google Cloud and Vault, and imports the SDKs of all that are installed;
where one is absent it goes on without. LiteLLM has some of them installed: a second of start-up for every command, and
code of clouds in a process that reads trust metadata. So they are absent here, for the time of that one import.
sigstore imports the same modules: whoever imports sigstore imports this first.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Final

_CLOUDS: Final = ("boto3", "azure.core", "google.cloud", "hvac")


@contextlib.contextmanager
def _absent(names: tuple[str, ...]) -> Iterator[None]:
    """Let imports of these modules fail as if they were not installed (`sys.modules[name] = None`)."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: the import system documents it so
    try:
        yield
    finally:
        for name in hidden:
            if sys.modules.get(name, sys) is None:
                del sys.modules[name]


with _absent(_CLOUDS):
    from securesystemslib.signer import CryptoSigner, Signature, SSlibKey

from tuf.api import exceptions as refusal  # noqa: E402 (it imports securesystemslib.signer)
from tuf.api.metadata import (  # noqa: E402
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer  # noqa: E402
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig  # noqa: E402

__all__ = [
    "CryptoSigner",
    "FetcherInterface",
    "JSONSerializer",
    "MetaFile",
    "Metadata",
    "Root",
    "SSlibKey",
    "Signature",
    "Signed",
    "Snapshot",
    "TargetFile",
    "Targets",
    "Timestamp",
    "Updater",
    "UpdaterConfig",
    "refusal",
]
