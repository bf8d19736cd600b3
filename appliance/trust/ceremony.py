"""The acts of the authority: its creation, and later issuing, renewal, revocation and rotation.

Each act is one function that either is carried out whole or says why not; `docs/key-ceremony.md` puts them in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from appliance.files import write_atomic
from appliance.trust.anchor import write_anchor
from appliance.trust.authority import Authority
from appliance.trust.keys import Passphrase, PrivateKey, no_passphrase
from appliance.trust.profiles import Recipes
from appliance.trust.repository import Repository


def create_authority(
    path: Path,
    recipes: Recipes,
    *,
    development: bool,
    now: datetime,
    passphrase: Passphrase = no_passphrase,
    elsewhere: Mapping[str, Path | PrivateKey] | None = None,
) -> Authority:
    """Make an authority with its trust repository and anchor.

    Raises:
        TrustError: TRUST_AUTHORITY_EXISTS.
    """
    authority = Authority.create(
        path, recipes, development=development, now=now, passphrase=passphrase, elsewhere=elsewhere
    )
    Repository(authority).create(recipes.policy, now=now)
    write_atomic(path / "anchor.json", write_anchor(authority, now=now))
    return authority
