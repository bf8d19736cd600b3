"""Who may ask for what, decided at the edge: the master key, and keys for applications that see only their groups.

LiteLLM keeps virtual keys in a database that a sealed room does not have, and without it answers an unknown key with a
500. So keys are checked before LiteLLM sees the request: looked up by digest in one table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from appliance.settings import Key

CARRIERS = (
    b"authorization",
    b"x-api-key",
    b"api-key",
    b"x-litellm-api-key",
    b"x-goog-api-key",
    b"ocp-apim-subscription-key",
)
MASTER = "master"
Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Principal:
    """Whose key it was.

    Attributes:
        name: of the key, for records and limits.
        groups: model groups it may ask for; None for all.
        reports: whether it may read what the gateway tells of itself.
    """

    name: str
    groups: frozenset[str] | None = None
    reports: bool = False

    @property
    def is_master(self) -> bool:
        """Whether it may change things."""
        return self.name == MASTER

    def may_use(self, group: str) -> bool:
        """Whether the key reaches a model group."""
        return self.groups is None or group in self.groups


class KeyRing:
    """Digest -> principal.

    Args:
        master_key: reaches everything.
        keys: of applications, by SHA-256.
    """

    def __init__(self, master_key: str, keys: Sequence[Key] = ()) -> None:
        self._master = master_key.encode()
        self.exchange(keys)

    def exchange(self, keys: Sequence[Key]) -> None:
        """Take other keys for the applications from the next request on."""
        known = {bytes.fromhex(key.sha256): Principal(key.name, frozenset(key.groups), key.reports) for key in keys}
        known[hashlib.sha256(self._master).digest()] = Principal(MASTER, None, reports=True)
        self._by_digest = known

    def authenticate(self, headers: Headers) -> Principal | None:
        """Whose key the headers carry; None where none, several different or an unknown one is there."""
        given = {_token(name, value) for name, value in headers if name in CARRIERS} - {b""}
        if len(given) != 1:
            return None
        # looked up by digest: what time tells about a digest tells nothing about the key
        return self._by_digest.get(hashlib.sha256(given.pop()).digest())

    def as_master(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """The headers as LiteLLM gets them: its one key, whoever asked."""
        return [*((n, v) for n, v in headers if n not in CARRIERS), (b"authorization", b"Bearer " + self._master)]


def _token(name: bytes, value: bytes) -> bytes:
    if name == b"authorization" or value[:7].lower() == b"bearer ":
        return value[7:].strip() if value[:7].lower() == b"bearer " else b""
    return value.strip()
