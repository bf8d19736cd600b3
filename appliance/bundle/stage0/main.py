"""Stage 0's command: the anchor, openssl's verdict, staging, and the hand-over to the full verifier."""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from .environment import starts
from .extract import check_members
from .journal import Prefix
from .manifest import read_delta, read_manifest, region_bytes
from .media import DELTA, DELTA_SIGNATURE, MANIFEST, SIGNATURE, Head, choose, open_sources
from .openssl import MAX_ANCHOR_BYTES, Anchor, FirstVerdict, check_openssl, read_anchor, verify_with_openssl
from .preflight import preflight_findings, read_host, refuse_unfit
from .preparing import Authenticated, Conduct, begin_anew, is_settled, prepare
from .refusal import Refused
from .region import Region, open_region

LOCK_VARIABLE = "APPLIANCE_INSTALL_LOCK"


def main(arguments: list[str] | None = None) -> int:
    """Run stage 0. Exit status: 0 done, 1 refused, 2 usage."""
    parser = argparse.ArgumentParser(
        prog="stage0.py", description="Check a release with openssl and install it below a prefix."
    )
    parser.add_argument("media", nargs="+", help="the archive, its volumes, or folders that hold them")
    parser.add_argument("--prefix", required=True, type=Path, help="where the appliance lives, e.g. /opt/appliance")
    trust = parser.add_mutually_exclusive_group(required=True)
    trust.add_argument("--trust", type=Path, help="anchor.json as it reached you by the second channel")
    trust.add_argument("--trust-sha256", metavar="HEX", help="its SHA-256; the copy on the media is then taken")
    parser.add_argument("--dry-run", action="store_true", help="check everything, write nothing")
    options = parser.parse_args(arguments)
    try:
        return _stage0(options)
    except Refused as refused:
        _print_refused(refused)
        return 1


def authenticate_with_openssl(head: Head, anchor_bytes: bytes) -> tuple[Authenticated, Anchor, FirstVerdict]:
    """Stage 0's verdict on a head: the signature, then the manifest's own text, then the trust metadata's digests.

    Raises:
        Refused: what `verify_with_openssl`, `read_manifest` and `check_head` refuse.
    """
    anchor = read_anchor(anchor_bytes)
    try:
        verdict = verify_with_openssl(head.files[MANIFEST], head.files[SIGNATURE], anchor)
    except Refused as refusal:
        carried = head.files.get("trust/anchor.json", b"")
        if refusal.code not in {"BUNDLE_TIMESTAMP", "BUNDLE_CERTIFICATE"} or carried == anchor_bytes:
            raise
        raise Refused(
            "BUNDLE_ANCHOR", "the release was made for another anchor than the one given",
            given=anchor.fingerprint, carried=hashlib.sha256(carried).hexdigest(), because=refusal.code,
        ) from None  # fmt: skip
    manifest = read_manifest(head.files[MANIFEST])
    delta = None
    if DELTA in head.files:
        verify_with_openssl(head.files[DELTA], head.files[DELTA_SIGNATURE], anchor)
        delta = read_delta(head.files[DELTA], manifest)
    release = Authenticated(manifest, head.files[MANIFEST], head.files[SIGNATURE], delta)
    check_head(head, release)
    return release, anchor, verdict


def check_head(head: Head, release: Authenticated) -> None:
    """The trust metadata on the media are those that the manifest signs, in its order.

    Raises:
        Refused: BUNDLE_HEAD.
    """
    found = [(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in head.files.items()]
    found = [entry for entry in found if entry[0].startswith("trust/")]
    signed = [(member.path, member.size_bytes, member.sha256) for member in release.manifest.trust]
    if found != signed:
        names = sorted({name for name, _, _ in set(found) ^ set(signed)}) or ["order"]
        raise Refused(
            "BUNDLE_HEAD", "the trust metadata on the media are not those the manifest signs", files=names[:5]
        )


def release_region(sources: list, release: Authenticated, set_aside: list[str], say) -> Region:  # type: ignore[no-untyped-def,type-arg]
    """The payload region that belongs to an authenticated release."""
    manifest, delta = release.manifest, release.delta
    signed = delta or manifest
    members = tuple(member for member in manifest.members if delta is None or member.path in set(delta.carried))
    return open_region(
        sources, region_bytes(members), signed.segment_bytes, signed.segments, set_aside=set_aside, report=say
    )


def _stage0(options: argparse.Namespace) -> int:
    now = dt.datetime.now(dt.UTC)
    os.umask(0o022)  # what is installed is run by the service's account, whatever mask the operator works under
    _say(f"stage 0 with {check_openssl()}")
    with open_sources(options.media) as (sources, unreadable):
        anchors: dict[str, bytes] = {}

        def authenticate(head: Head) -> Authenticated:
            anchor_bytes = _anchor_bytes(options, head)
            release, anchor, verdict = authenticate_with_openssl(head, anchor_bytes)
            anchors[release.manifest.digest] = anchor_bytes
            _say(f"anchor {anchor.fingerprint}")
            _say(f"signed by {verdict.identity}, {verdict.signed_at:%Y-%m-%d %H:%M:%S} UTC")
            return release

        release, chosen, set_aside = choose(sources, authenticate)
        manifest = release.manifest
        _say(f"release {manifest.name} {manifest.version} ({manifest.profile}), manifest {manifest.digest}")
        region = release_region(chosen, release, set_aside + unreadable, _say)
        host = read_host(options.prefix, now=now, python=sys.version_info[:2])
        findings = preflight_findings(manifest, host, options.prefix)
        for finding in findings:
            if finding.status == "warning":
                _say(f"{finding.check}: {finding.text}. {finding.remedy}")
        prefix = Prefix(options.prefix.absolute())
        if not is_settled(prefix, release):
            refuse_unfit(findings)
        conduct = Conduct(say=_say, progress=_Rate(), python=sys.executable)
        if options.dry_run:
            carried = None if release.delta is None else set(release.delta.carried)
            check_members(
                region, [m for m in manifest.members if carried is None or m.path in carried], progress=_Rate()
            )
            _say("everything on the media is what the manifest signs; nothing was written")
            return 0
        with prefix.locked() as lock:
            program = prefix.environment(manifest.release_id) / "bin" / "appliance"
            if is_settled(prefix, release) and not starts(program):
                _say("it is installed, and its program does not start: making it anew")
                begin_anew(prefix, release)
            if not is_settled(prefix, release):
                prepare(prefix, release, region, conduct)
            anchor_file = prefix.journal / "anchor.json"
            prefix.write(anchor_file, anchors[manifest.digest].decode("utf-8"))
            _say("handing over to the appliance's own verifier")
            command = [
                str(program), "install", *map(os.path.abspath, options.media),
                "--prefix", str(prefix.root), "--trust", str(anchor_file),
            ]  # fmt: skip
            environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
            environment |= {LOCK_VARIABLE: str(lock), "PYTHONDONTWRITEBYTECODE": "1"}
            return subprocess.run(command, env=environment, pass_fds=[lock], check=False).returncode


def _anchor_bytes(options: argparse.Namespace, head: Head) -> bytes:
    """The anchor: the file given, or the media's copy if it has the fingerprint given."""
    copy = head.files.get("trust/anchor.json", b"")
    if options.trust is None:
        expected = options.trust_sha256.lower().replace(":", "")
        found = hashlib.sha256(copy).hexdigest()
        if found != expected:
            raise Refused(
                "BUNDLE_ANCHOR", "the anchor on the media is not the one you expect", expected=expected, found=found
            )
        return copy
    try:
        if options.trust.exists() and not options.trust.is_file():  # a pipe or a device would be waited for
            raise Refused("BUNDLE_ANCHOR", f"{options.trust} is no file")
        with open(options.trust, "rb") as stream:
            return stream.read(MAX_ANCHOR_BYTES + 1)
    except OSError as error:
        raise Refused("BUNDLE_ANCHOR", f"{options.trust} cannot be read: {error.strerror}") from None


class _Rate:
    """Progress with rate and time left: a live line on a terminal, a line for every quarter elsewhere."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._shown = 0.0
        self._quarter = 0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        live = sys.stderr.isatty()
        quarter = done * 4 // max(total, 1)
        if (live and now - self._shown < 0.2 and done < total) or (not live and quarter == self._quarter):
            return
        self._shown, self._quarter = now, quarter
        sys.stderr.write(("\r\033[K" if live else "") + rate_text(done, total, now - self._begun))
        sys.stderr.write("" if live and done < total else "\n")
        sys.stderr.flush()


def rate_text(done: int, total: int, seconds: float) -> str:
    """`  120 of 530 MB, 410 MB/s, 1 s left`."""
    rate = done / seconds if seconds > 0 else 0.0
    left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
    digits = 0 if total >= 10e6 else 1
    return f"  {done / 1e6:.{digits}f} of {total / 1e6:.{digits}f} MB, {rate / 1e6:.{digits}f} MB/s{left}"


def _say(text: str) -> None:
    """One line of ours: names from the medium bring no line, and nothing that a terminal acts upon, of their own."""
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    print(shown, file=sys.stderr, flush=True)


def _print_refused(refused: Refused) -> None:
    remedies: dict[str, str] = globals().get("REMEDIES", {})
    _say(f"refused {refused.code} {refused.cause}")
    for name, value in refused.evidence.items():
        _say(f"  {name}: {value if isinstance(value, str) else json.dumps(value, default=str)}")
    _say(f"next: {refused.remedy or remedies.get(refused.code, f'appliance explain {refused.code}')}")
