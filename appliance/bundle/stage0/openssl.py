"""A release's signature checked with the `openssl` command alone, before anything of the release runs.

This is the first of two verdicts. It checks the anchor's fingerprint, the RFC 3161 time, the certificate chain at that
time, the signer's identity and the signature over the manifest. The second, by the appliance's own verifier in the new
environment, adds what openssl cannot: the transparency log, the trust repository, deny-lists and epochs.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .refusal import Refused
from .workspace import workspace

ANCHOR_TYPE = "https://appliance.internal/anchor/v1"
MAX_ANCHOR_BYTES = 1024 * 1024
_CODE_SIGNING = "Code Signing"


@dataclass(frozen=True)
class Anchor:
    """What reached the zone by the second channel.

    Attributes:
        fingerprint: SHA-256 of the file.
        identity: the release signer's SAN.
        release_chain: PEM, intermediates first, root last.
        timestamp_chain: PEM, the time-stamping authority's, root last.
    """

    fingerprint: str
    identity: str
    release_chain: tuple[str, ...]
    timestamp_chain: tuple[str, ...]


@dataclass(frozen=True)
class FirstVerdict:
    """What openssl could establish: who signed, and when at the latest."""

    identity: str
    signed_at: dt.datetime
    digest: str


def read_anchor(data: bytes) -> Anchor:
    """Parse `anchor.json`.

    Raises:
        Refused: BUNDLE_ANCHOR.
    """
    try:
        document = json.loads(data[: MAX_ANCHOR_BYTES + 1].decode("utf-8"))
        if document["_type"] != ANCHOR_TYPE:
            raise ValueError(document["_type"])
        release = document["release"]
        anchor = Anchor(
            hashlib.sha256(data).hexdigest(),
            str(release["identity"]),
            tuple(map(str, release["certificate_chain"])),
            tuple(map(str, document["timestamp_chain"])),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Refused("BUNDLE_ANCHOR", f"the anchor is not an anchor document: {error!r}") from None
    if not anchor.identity or not anchor.release_chain or not anchor.timestamp_chain:
        raise Refused("BUNDLE_ANCHOR", "the anchor names no identity or no certificates")
    return anchor


def verify_with_openssl(manifest: bytes, signature: bytes, anchor: Anchor) -> FirstVerdict:
    """Check the signature over the manifest, in numbered steps.

    Args:
        manifest: the signed bytes.
        signature: Sigstore bundle v0.3 with a message signature and an RFC 3161 time-stamp.
        anchor: whom to trust.

    Raises:
        Refused: BUNDLE_SIGNATURE_FORM, BUNDLE_TIMESTAMP, BUNDLE_CERTIFICATE, BUNDLE_IDENTITY, BUNDLE_SIGNATURE,
            INSTALL_OPENSSL where there is no usable openssl.
    """
    leaf, value, answer, claimed_digest = _signature_parts(signature)
    digest = hashlib.sha256(manifest).digest()
    with workspace("stage0") as work:
        files = _PrivateFiles(work)
        # (1) the time-stamp: a signed statement of when this signature existed, checked at the time it names. It comes
        # in an answer whose other part nobody has signed, and openssl prints that part's words, too: they are cut off
        answer_file, value_file = files.add("answer.tsr", answer), files.add("signature", value)
        token_file = str(work / "token.der")
        _openssl("ts", "-reply", "-in", answer_file, "-token_out", "-out", token_file, code="BUNDLE_TIMESTAMP")
        stated = _openssl("ts", "-reply", "-in", token_file, "-token_in", "-text", code="BUNDLE_TIMESTAMP")
        signed_at = _token_time(stated)
        at = str(int(signed_at.timestamp()))
        _openssl(
            "ts", "-verify", "-data", value_file, "-in", token_file, "-token_in", "-attime", at,
            *files.chain("tsa", anchor.timestamp_chain),
            code="BUNDLE_TIMESTAMP",
        )  # fmt: skip
        # (2) the certificate's chain at that time
        leaf_file = files.add("leaf.pem", _pem(leaf))
        _openssl(
            "verify", "-x509_strict", "-attime", at, "-no-CApath", "-no-CAstore",
            *files.chain("release", anchor.release_chain),
            leaf_file,
            code="BUNDLE_CERTIFICATE",
        )  # fmt: skip
        # (3) it is for code signing, and (4) it names the release signer and nobody else
        names = _openssl(
            "x509", "-in", leaf_file, "-noout", "-ext", "extendedKeyUsage,subjectAltName", code="BUNDLE_CERTIFICATE"
        )
        usages = _extension(names, "X509v3 Extended Key Usage")
        if usages != [_CODE_SIGNING]:
            raise Refused("BUNDLE_CERTIFICATE", "the certificate is not for code signing alone", usages=usages)
        identities = [name.partition(":")[2] for name in _extension(names, "X509v3 Subject Alternative Name")]
        if identities != [anchor.identity]:
            raise Refused(
                "BUNDLE_IDENTITY",
                "the release was signed by somebody else than the anchor names",
                signer=", ".join(identities) or "nobody",
                expected=anchor.identity,
            )
        # (5) the signature over the manifest, by the certificate's key
        key = _openssl("x509", "-in", leaf_file, "-noout", "-pubkey", code="BUNDLE_CERTIFICATE")
        _openssl(
            "dgst", "-sha256", "-verify", files.add("key.pem", key.encode()), "-signature", value_file,
            files.add("manifest", manifest),
            code="BUNDLE_SIGNATURE",
        )  # fmt: skip
        # (6) the digest that the bundle states is the digest that was signed
        if claimed_digest != digest:
            raise Refused("BUNDLE_SIGNATURE", "the signature file states another digest than the manifest has")
    return FirstVerdict(anchor.identity, signed_at, digest.hex())


def check_openssl() -> str:
    """The version line of a usable openssl (3.0 or newer).

    Raises:
        Refused: INSTALL_OPENSSL.
    """
    version = _openssl("version", code="INSTALL_OPENSSL").strip()
    match = re.match(r"OpenSSL ([0-9]+)\.", version)
    if not match or int(match[1]) < 3:
        raise Refused("INSTALL_OPENSSL", "openssl is older than 3.0", version=version)
    return version


def _signature_parts(signature: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Certificate, signature, time-stamp token and stated digest out of a Sigstore bundle."""
    try:
        document: Any = json.loads(signature.decode("utf-8"))
        material, message = document["verificationMaterial"], document["messageSignature"]
        (token,) = material["timestampVerificationData"]["rfc3161Timestamps"]
        if message["messageDigest"]["algorithm"] != "SHA2_256":
            raise ValueError(message["messageDigest"]["algorithm"])
        leaf, value, stamp, digest = (
            base64.b64decode(text, validate=True)
            for text in (
                material["certificate"]["rawBytes"],
                message["signature"],
                token["signedTimestamp"],
                message["messageDigest"]["digest"],
            )
        )
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise Refused("BUNDLE_SIGNATURE_FORM", f"not a Sigstore bundle with one time-stamp: {error!r}") from None
    return leaf, value, stamp, digest


def _token_time(text: str) -> dt.datetime:
    match = re.search(r"^Time stamp: (.+)$", text, re.MULTILINE)
    try:
        stated = (match[1] if match else "").replace(" GMT", "")
        stated = re.sub(r"(:\d\d)\.\d+", r"\1", stated)  # a fraction of a second, where the authority gives one
        return dt.datetime.strptime(stated, "%b %d %H:%M:%S %Y").replace(tzinfo=dt.UTC)
    except ValueError:
        raise Refused("BUNDLE_TIMESTAMP", "the time-stamp states no time", text=text[:200]) from None


def _extension(text: str, name: str) -> list[str]:
    lines = text.splitlines()
    for number, line in enumerate(lines[:-1]):
        if line.strip().startswith(name):
            return [item.strip() for item in lines[number + 1].split(",")]
    return []


def _pem(der: bytes) -> bytes:
    text = base64.encodebytes(der).decode("ascii")
    return f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----\n".encode("ascii")


class _PrivateFiles:
    """The private folder whose files openssl reads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, name: str, data: bytes) -> str:
        path = self._folder / name
        with path.open("xb") as stream:
            stream.write(data)
        return str(path)

    def chain(self, name: str, chain: tuple[str, ...]) -> list[str]:
        """Options for a chain: its last certificate is the root, the others help to reach it."""
        options = ["-CAfile", self.add(f"{name}-root.pem", chain[-1].encode())]
        if chain[:-1]:
            options += ["-untrusted", self.add(f"{name}-chain.pem", "\n".join(chain[:-1]).encode())]
        return options


def _openssl(*arguments: str, code: str) -> str:
    # `.` or an empty entry would be the folder one stands in, which may be the medium
    path = [folder for folder in os.environ.get("PATH", os.defpath).split(":") if folder.startswith("/")]
    environment = {"PATH": ":".join(path), "LC_ALL": "C", "OPENSSL_CONF": os.devnull}
    try:
        done = subprocess.run(
            ["openssl", *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Refused("INSTALL_OPENSSL", f"openssl cannot be run: {error}") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise Refused(code, f"openssl {arguments[0]} refused", openssl=said[:400])
    return done.stdout
