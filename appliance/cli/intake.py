"""`appliance artifact admit | approve | journal`: the import officer's desk."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, cast

import typer

from appliance.cli.keyring import DEFAULT_AUTHORITY, AuthorityFolder, KeyPlaces, PassphraseFile, open_role
from appliance.cli.output import Json, Steps, printable, refusals, show

if TYPE_CHECKING:
    from appliance.intake.admission import Border
    from appliance.intake.behaviour import Probe
    from appliance.intake.examination import EncoderTrial, RouterTrial
    from appliance.routers.loading import LoadedRouter

MAX_PROMPTS = 500  # embedding one takes some ten milliseconds

BorderAt = Annotated[
    Path, typer.Option("--border", envvar="APPLIANCE_BORDER", help="The border's folder: cases, journal.")
]
TrustAt = Annotated[Path, typer.Option("--trust", envvar="APPLIANCE_TRUST", help="The host's trust state.")]


def _border(folder: Path, trust: Path) -> Border:
    from appliance.intake.admission import Border
    from appliance.registry.trust_source import TrustSource

    source = TrustSource(trust)
    return Border(folder, material=source.material, clock=source.now)


def admit(
    source: Annotated[Path, typer.Argument(help="The producer's artifact folder, as it came.")],
    *,
    trust: TrustAt,
    prompts: Annotated[Path, typer.Option(help="Recorded prompts: JSONL with `query`; .gz is read too.")],
    encoder: Annotated[
        Path | None, typer.Option(help="The zone's encoder artifact; a new encoder is compared with it.")
    ] = None,
    border: BorderAt = Path("border"),
    registry: Annotated[
        str | None, typer.Option(envvar="APPLIANCE_REGISTRY", help="To compare with what a channel serves today.")
    ] = None,
    channel: Annotated[str | None, typer.Option(help="That channel; by default the router's name.")] = None,
    as_json: Json = False,
) -> None:
    """Examine a handed-in router or encoder: signature, formats, scanners, conversion, behaviour."""
    with refusals(as_json):
        from appliance.intake.case import describe

        say = Steps(as_json)
        desk = _border(border, trust)
        trial = _trial(source, encoder, prompts, trust, registry, channel, say)
        say("examining (signature, formats, scanners, confined conversion, behaviour)")
        case = desk.examine(source, trial)
        said = [printable(line, one_line=True) for line in describe(case)]  # a prompt may hold lines of its own
        lines = [*said, f"next: appliance artifact approve {case.identity} --identity YOURS (two officers)"]
        show({"case": case.identity, **case.report}, as_json, lambda out: out.print("\n".join(lines), markup=False))


def approve(
    case: Annotated[str, typer.Argument(help="The case, as `admit` printed it.")],
    *,
    registry: Annotated[str, typer.Option(envvar="APPLIANCE_REGISTRY", help="Where it is published in the end.")],
    trust: TrustAt,
    border: BorderAt = Path("border"),
    authority: AuthorityFolder = DEFAULT_AUTHORITY,
    identity: Annotated[str | None, typer.Option(help="Which officer signs.")] = None,
    passphrase_file: PassphraseFile = None,
    key: KeyPlaces = None,
    as_json: Json = False,
) -> None:
    """Sign a case as one officer; the second officer's signature has the zone sign and publish the router."""
    with refusals(as_json):
        from appliance.cli.serving import open_registry

        signer = open_role(authority, "import-officer", passphrase_file, key, identity=identity)
        officers, published = _border(border, trust).approve(case, signer, open_registry(registry, trust))
        report = {"case": case, "officers": list(officers), "published": published}
        state = "signed for the zone and published" if published else "another officer must approve"
        show(report, as_json, lambda out: out.print(f"approved by {', '.join(officers)}; {state}", markup=False))


def decline(
    case: Annotated[str, typer.Argument(help="The case, as `admit` printed it.")],
    *,
    reason: Annotated[str, typer.Option(help="Why, for the journal.")],
    trust: TrustAt,
    border: BorderAt = Path("border"),
    as_json: Json = False,
) -> None:
    """End a case that waits for approvals: it is not admitted, and nothing but its journal lines stays."""
    with refusals(as_json):
        _border(border, trust).decline(case, reason)
        said = f"declined {case}; its files are gone"
        show({"case": case, "declined": reason}, as_json, lambda out: out.print(said, markup=False))


journal = typer.Typer(no_args_is_help=True, help="The admission journal.")


@journal.command("verify")
def journal_verify(
    trust: TrustAt,
    border: BorderAt = Path("border"),
    head: Annotated[str | None, typer.Option(help="A head noted before; it must still be in the chain.")] = None,
    registry: Annotated[
        str | None, typer.Option(help="Hold every version in it that an import officer signed against the approvals.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check every link, every approval's signature, and that nothing an officer saw is gone."""
    with refusals(as_json):
        from appliance.cli.serving import open_registry
        from appliance.errors import IntakeError
        from appliance.intake import approval
        from appliance.registry.trust_source import TrustSource

        source = TrustSource(trust)
        book = _border(border, trust).journal
        checked, heads = book.verify(), book.heads()
        approvals = approval.signed(checked, material=source.material(), at=source.now())
        for one in approvals:
            if one.journal_head not in heads:
                cause = f"{one.officer} signed over lines that are gone"
                raise IntakeError("INTAKE_JOURNAL_BROKEN", cause, line=one.line)
        if head is not None and head not in heads:
            raise IntakeError("INTAKE_JOURNAL_BROKEN", "the head noted before is not in the journal", head=head[:64])
        if registry is not None:
            home = open_registry(registry, trust)
            around = approval.carried_around(home, approvals, material=source.material(), at=source.now())
            if around:
                raise IntakeError(
                    "INTAKE_APPROVAL",
                    f"{len(around)} versions of the registry were signed and never approved by two: {around[0]}",
                    versions=around,
                    remedy="Ask its signer; else `appliance artifact revoke NAME VERSION` and `appliance ca revoke`.",
                )
        report = {"lines": len(checked.lines), "approvals": len(approvals), "head": checked.head}
        said = f"{report['lines']} lines, {report['approvals']} signed approvals, unbroken; head {checked.head}"
        show(report, as_json, lambda out: out.print(said, markup=False))


@journal.command("show")
def journal_show(trust: TrustAt, border: BorderAt = Path("border"), as_json: Json = False) -> None:
    """Every step of every case, and the cases that wait."""
    with refusals(as_json):
        from appliance.intake import approval
        from appliance.registry.trust_source import TrustSource

        source, desk = TrustSource(trust), _border(border, trust)
        checked, waiting = desk.journal.verify(), desk.cases()
        approvals = approval.signed(checked, material=source.material(), at=source.now())
        officers = {one.line: one.officer for one in approvals}
        lines = [{**line.model_dump(mode="json"), "officer": officers.get(line.number)} for line in checked.lines]
        report = {"lines": lines, "waiting": waiting}

        def text(out: Any) -> None:
            for line in checked.lines:
                what = {
                    key: value for key, value in line.details.items() if key not in {"statement", "bundle", "remedy"}
                }
                said = officers.get(line.number) or json.dumps(what)[:160]
                out.print(f"{line.at} {line.case} {line.event:9} {said}", markup=False)
            out.print(f"waiting for approval: {', '.join(waiting) or 'none'}", markup=False)

        show(report, as_json, text)


def _trial(
    source: Path,
    encoder: Path | None,
    prompts: Path,
    trust: Path,
    registry: str | None,
    channel: str | None,
    say: Steps,
) -> RouterTrial | EncoderTrial:
    """What an artifact of this kind is tried on; the examination judges the kind itself."""
    from appliance.artifact import METADATA_NAMES
    from appliance.errors import IntakeError
    from appliance.intake.examination import EncoderTrial, RouterTrial

    is_router = not (source / METADATA_NAMES["encoder"]).is_file()
    if is_router and encoder is None:
        raise IntakeError(
            "INTAKE_SOURCE",
            "a router is tried on vectors of the zone's encoder",
            remedy="Name the encoder's folder with --encoder.",
        )
    probe = None
    if encoder is not None:
        say("embedding the recorded prompts")
        probe = _probe(encoder, prompts, trust)
    if is_router and probe is not None:
        return RouterTrial(probe, _current(source, registry, trust, channel))
    return EncoderTrial(probe.prompts.texts if probe is not None else _texts(prompts), probe)


def _probe(encoder: Path, prompts: Path, trust: Path) -> Probe:
    from appliance.artifact import read
    from appliance.intake.behaviour import make_probe
    from appliance.registry.admitted import verify_admitted
    from appliance.registry.trust_source import TrustSource
    from appliance.routers.encoder import load_encoder

    source = TrustSource(trust)
    artifact = read(encoder)
    verify_admitted(artifact, material=source.material(), at=source.now())
    loaded = load_encoder(artifact)
    return make_probe(_texts(prompts), loaded.encode, artifact.digest)


def _texts(prompts: Path) -> list[str]:
    """The first distinct queries of a JSONL file."""
    from appliance import documents
    from appliance.errors import DocumentError

    texts: dict[str, None] = {}
    with _unpacked(prompts) as stream:
        for number, line in enumerate(iter(lambda: stream.readline(documents.MAX_BYTES + 1), b""), start=1):
            row = documents.read_json(line, what=f"{prompts.name} line {number}")
            query = row.get("query") if isinstance(row, dict) else None
            if not isinstance(query, str):
                raise DocumentError("DOCUMENT_SCHEMA", f"{prompts.name} line {number} has no `query`", line=number)
            texts[query] = None
            if len(texts) >= MAX_PROMPTS:
                break
    return list(texts)


@contextlib.contextmanager
def _unpacked(path: Path) -> Iterator[IO[bytes]]:
    """A file, or what a `.gz` holds."""
    import gzip
    import zlib

    from appliance.errors import DocumentError
    from appliance.files import translated

    try:
        with translated(path), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
            yield cast("IO[bytes]", stream)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DocumentError("DOCUMENT_MALFORMED", f"{path.name} cannot be unpacked: {error}", path=str(path)) from None


def _current(source: Path, registry: str | None, trust: Path, channel: str | None) -> LoadedRouter | None:
    """What the channel serves today, verified; None where there is none yet."""
    if registry is None:
        return None
    from appliance.artifact import read
    from appliance.cli.serving import open_registry
    from appliance.errors import RegistryError
    from appliance.registry.admitted import verify_admitted
    from appliance.registry.trust_source import TrustSource
    from appliance.routers.loading import load_router

    home = open_registry(registry, trust)
    state = home.current(channel or _name(read(source).files))
    target = state.pointer.target if state is not None else None
    if target is None:
        return None
    artifact = home.fetch(target.name, target.version)
    trusted = TrustSource(trust)
    verify_admitted(artifact, material=trusted.material(), at=trusted.now())  # before it is loaded into this process
    if artifact.digest != target.digest:
        cause = f"{target.name} {target.version} is not what its channel names"
        raise RegistryError("REGISTRY_DIGEST", cause, expected=target.digest, actual=artifact.digest)
    return load_router(artifact)


def _name(files: Any) -> str:
    """The channel to compare with, read leniently: the examination judges the document itself."""
    from appliance import documents
    from appliance.errors import ApplianceError

    try:
        value = documents.read_yaml(files.get("router.yaml", b"{}"), what="router.yaml")
        return str(value.get("name", "default")) if isinstance(value, dict) else "default"
    except ApplianceError:
        return "default"
