"""`appliance ca root`: a root that its key holders sign one after the other, each on a machine of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.cli.ca_report import handed_out, now, rows
from appliance.cli.keyring import (
    DEFAULT_AUTHORITY,
    AuthorityFolder,
    KeyPlaces,
    PassphraseFile,
    Passphrases,
    key_places,
    open_authority,
)
from appliance.cli.output import Json, refusals, show
from appliance.errors import FileError, TrustError
from appliance.files import read_regular, write_atomic

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="The root, signed by its key holders one after the other."
)
_MAX_BYTES = 4 * 1024 * 1024
Place = Annotated[str, typer.Option("--key", help="Your key: NAME=FILE or NAME=pkcs11:URI.")]


@app.command("key")
def key_(
    key: Place,
    out: Annotated[Path, typer.Option("--out", help="File for the public key, which goes to the authority.")],
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Make a root key in its holder's hands (an encrypted file, or inside a token) and write its public half."""
    with refusals(as_json):
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        from appliance.trust.keys import KeyRing, key_id

        if not out.parent.is_dir():  # before a key is made that nobody learns the public half of
            raise FileError("FILE_MISSING", f"there is no folder {out.parent}", path=str(out.parent))
        name, places = _place(key, make=True)
        if places[name] == out:
            raise typer.BadParameter("the public key would replace the key", param_hint="--out")
        ring = KeyRing(Path(), Passphrases(passphrase_file, new=True), places)
        public = (places[name] if not isinstance(places[name], Path) else ring.make(name)).public_key()
        write_atomic(out, public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        report = {"key": name, "public_key": str(out), "fingerprint": key_id(public).hex()}
        show(report, as_json, lambda console: rows(console, report))


@app.command()
def propose(
    out: Annotated[Path, typer.Option("--out", help="File for the draft.")],
    replace: Annotated[
        list[str] | None,
        typer.Option("--replace", help="NAME=PUB.pem for a holder's new root key, NAME for any other; repeatable."),
    ] = None,
    authority: AuthorityFolder = DEFAULT_AUTHORITY,
    passphrase_file: PassphraseFile = None,
    key: KeyPlaces = None,
    as_json: Json = False,
) -> None:
    """Draft the next root, unsigned; without --replace it only lives longer. No private root key is needed."""
    with refusals(as_json):
        from appliance.trust import ceremony, proposal

        opened = open_authority(authority, passphrase_file, key, make=True)
        draft = ceremony.propose_root(opened, dict(map(_replacement, replace or [])), now=now())
        write_atomic(out, proposal.write(draft))
        report = {"draft": str(out), **proposal.describe(draft)}
        show(report, as_json, lambda console: rows(console, report))


@app.command("show")
def show_(file: Annotated[Path, typer.Argument(help="The draft.")], as_json: Json = False) -> None:
    """What a draft changes, who has signed it, and the digest that holders read out to each other."""
    with refusals(as_json):
        from appliance.trust import proposal

        report = proposal.describe(proposal.read(read_regular(file, max_bytes=_MAX_BYTES)))
        show(report, as_json, lambda console: rows(console, report))


@app.command()
def sign(
    file: Annotated[Path, typer.Argument(help="The draft, or what `ca authorise --partial` wrote.")],
    key: Place,
    digest: Annotated[
        str | None, typer.Option("--digest", help="The draft's digest as told to you: sign this and nothing else.")
    ] = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Add your signature to the file. Needs your key alone: no authority, no other holder."""
    with refusals(as_json):
        from appliance.trust import authorisation, proposal
        from appliance.trust.keys import KeyRing

        data = read_regular(file, max_bytes=_MAX_BYTES)
        name, places = _place(key)
        ring = KeyRing(Path(), Passphrases(passphrase_file), places)
        if authorisation.is_token(data):
            if digest is not None:
                raise TrustError("TRUST_PROPOSAL", "this is an authorisation, not the draft you were told of")
            signed, statement = authorisation.add_signature(data, ring.load(name))
            report: dict[str, Any] = {"signed": str(file), **statement.model_dump(exclude={"type", "schema_version"})}
        else:
            draft = proposal.read(data)
            if digest is not None and digest.lower() != draft.digest:
                raise TrustError("TRUST_PROPOSAL", "this is not the draft you were told of", found=draft.digest)
            draft = proposal.sign(draft, ring.load(name))
            signed, report = proposal.write(draft), {"signed": str(file), **proposal.describe(draft)}
        write_atomic(file, signed)
        show(report, as_json, lambda console: rows(console, report))


@app.command()
def accept(
    files: Annotated[list[Path], typer.Argument(help="The draft, signed by all; or a copy from each holder.")],
    authority: AuthorityFolder = DEFAULT_AUTHORITY,
    passphrase_file: PassphraseFile = None,
    key: KeyPlaces = None,
    as_json: Json = False,
) -> None:
    """Put the holders' signatures together, enforce both thresholds, and make the draft the root in force."""
    with refusals(as_json):
        from appliance.trust import ceremony, proposal

        drafts = [proposal.read(read_regular(file, max_bytes=_MAX_BYTES)) for file in files]
        accepted = ceremony.accept_root(open_authority(authority, passphrase_file, key), drafts, now=now())
        report = {**proposal.describe(accepted), **handed_out(authority)}
        show(report, as_json, lambda console: rows(console, report))


def _place(option: str, *, make: bool = False) -> tuple[str, Any]:
    places = key_places([option], make=make)
    return next(iter(places)), places


def _replacement(option: str) -> tuple[str, Any]:
    """`NAME=PUB.pem`, or `NAME` alone."""
    from appliance.trust.keys import read_public_key

    name, equals, path = option.partition("=")
    return name, read_public_key(Path(path)) if equals else None
