"""Options that every command with private keys shares: where keys lie, and their passphrases."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.errors import TrustError
from appliance.files import read_regular

if TYPE_CHECKING:
    from appliance.trust.signing import Signer

DEFAULT_AUTHORITY = Path("ca/authority")

AuthorityFolder = Annotated[Path, typer.Option("--authority", help="The authority's folder.")]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        envvar="APPLIANCE_CA_PASSPHRASE_FILE",
        help="One passphrase for every key of the authority, or lines NAME=PASSPHRASE; else asked on a terminal.",
    ),
]
KEYS = "APPLIANCE_CA_KEYS"


def _and_those_of_the_host(given: list[str] | None) -> list[str]:
    """What the command line names, and what the environment names beside it.

    The holder of a root key comes to a host whose online keys lie in tokens, and says where the root key is.
    """
    named = {option.partition("=")[0] for option in given or []}
    host = [option for option in os.environ.get(KEYS, "").split() if option.partition("=")[0] not in named]
    return [*host, *(given or [])]


KeyPlaces = Annotated[
    list[str] | None,
    typer.Option(
        "--key",
        envvar=KEYS,
        callback=_and_those_of_the_host,
        help="NAME=FILE or NAME=pkcs11:URI for a key kept elsewhere; repeat for more. Those of the environment are "
        "known as well.",
    ),
]


class Passphrases:
    """Answers for the key ring: from a file, or from a person who is asked once.

    Args:
        file: see `PassphraseFile`.
        new: the keys are being made, so ask twice.
    """

    def __init__(self, file: Path | None, *, new: bool = False) -> None:
        self._new = new
        self._one: bytes | None = None
        self._named: dict[str, bytes] = {}
        if file is not None:
            self._read(file)

    def __call__(self, name: str) -> bytes:
        """The passphrase of a key.

        Raises:
            TrustError: TRUST_PASSPHRASE.
        """
        if name in self._named:
            return self._named[name]
        if self._one is None:
            self._one = self._ask(name)
        return self._one

    def _read(self, file: Path) -> None:
        try:
            text = read_regular(file, max_bytes=64 * 1024).decode("utf-8")
        except UnicodeDecodeError:
            raise TrustError("TRUST_PASSPHRASE", f"{file} is not UTF-8", path=str(file)) from None
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) == 1 and "=" not in lines[0]:
            self._one = lines[0].strip().encode()
        elif lines and all("=" in line for line in lines):
            self._named = {name.strip(): value.strip().encode() for name, _, value in (x.partition("=") for x in lines)}
            self._one = self._named.get("default")
        if not (self._one or self._named) or not all(self._named.values()):
            raise TrustError(
                "TRUST_PASSPHRASE", f"{file} holds neither one passphrase nor lines NAME=PASSPHRASE, or an empty one"
            )

    def _ask(self, name: str) -> bytes:
        if not sys.stdin.isatty():
            raise TrustError("TRUST_PASSPHRASE", f"key {name} needs a passphrase, and nobody is there to ask", key=name)
        try:
            first = getpass.getpass(f"passphrase for the authority's keys ({name}): ").encode()
            same = first and (not self._new or getpass.getpass("once more: ").encode() == first)
        except EOFError:
            raise TrustError("TRUST_PASSPHRASE", f"no passphrase was given for key {name}", key=name) from None
        except UnicodeError:
            raise TrustError("TRUST_PASSPHRASE", "what was typed is not UTF-8", key=name) from None
        if not same:
            raise TrustError("TRUST_PASSPHRASE", "the passphrase is empty, or the two differ")
        return first


def key_places(given: list[str] | None, *, make: bool = False) -> Mapping[str, Any]:
    """Resolve `--key NAME=PLACE` options.

    Args:
        given: the options.
        make: make keys in tokens that lack them (at creation).
    """
    from appliance.trust.tokens import is_token_uri, open_token_key

    places: dict[str, Any] = {}
    for option in given or []:
        name, equals, place = option.partition("=")
        if not equals or not name or not place:
            raise typer.BadParameter(f"{option!r} is not NAME=PLACE", param_hint="--key")
        places[name] = open_token_key(place, make=make) if is_token_uri(place) else Path(place)
    return places


def open_authority(path: Path, passphrase_file: Path | None, keys: list[str] | None, *, make: bool = False) -> Any:
    """Open an authority with these options."""
    from dataclasses import replace

    from appliance.trust.authority import Authority
    from appliance.trust.keys import no_passphrase

    opened = Authority.open(path, passphrase=Passphrases(passphrase_file), elsewhere=key_places(keys, make=make))
    if opened.state.development:  # its keys are in the clear, and new ones are made so too
        opened.keys = replace(opened.keys, passphrase=no_passphrase)
    return opened


def open_role(
    authority: Path,
    role: str,
    passphrase_file: Path | None,
    keys: list[str] | None,
    *,
    identity: str | None = None,
) -> Signer:
    """Open an authority to sign in a role; the keys that a signature takes are opened at once.

    Raises:
        TrustError: see `signing.open_signer` and `Signer.check_keys`.
    """
    from appliance.trust.signing import open_signer

    signer = open_signer(
        authority, role, identity=identity, passphrase=Passphrases(passphrase_file), elsewhere=key_places(keys)
    )
    signer.check_keys()
    return signer
