"""The last gate: no secret of this host, in any form we can think of, stands in the finished bundle."""

from __future__ import annotations

import base64
import re
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from appliance.errors import ApplianceError, OperationError
from appliance.files import read_regular
from appliance.operations.support.shape import looks_secret

MIN_SECRET_BYTES = 6  # shorter values stand in any text by chance
PIECE_BYTES = 16  # so much of a secret in a row is a leak
_MAX_FILE = 1024 * 1024
_SECRET_VARIABLE = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|DSN|DATABASE_URL", re.IGNORECASE)


def known_secrets(files: Iterable[Path], environment: Mapping[str, str]) -> list[bytes]:
    """The secrets of this host: contents of the files named, line by line, and suspicious variables.

    Files that cannot be read by this user cannot have been copied by it either.
    """
    found: set[bytes] = set()
    for path in files:
        try:
            content = read_regular(path, max_bytes=_MAX_FILE)
        except ApplianceError:
            continue
        found.update(_values(content))
    found.update(value.encode() for name, value in environment.items() if _SECRET_VARIABLE.search(name))
    return sorted(value for value in found if len(value) >= MIN_SECRET_BYTES)


def check(files: Mapping[str, bytes], secrets: Iterable[bytes]) -> None:
    """Refuse a bundle in which a secret is found.

    Args:
        files: name -> content, as they would be written.
        secrets: of this host.

    Raises:
        OperationError: OPERATION_SUPPORT_LEAK, naming file and form and not the secret.
    """
    forms = [(form, piece) for secret in secrets for form, piece in _forms(secret)]
    for name, content in files.items():
        joined = _without_breaks(content)
        for form, piece in forms:
            if piece in content or piece in joined:
                raise OperationError("OPERATION_SUPPORT_LEAK", f"{name} would hold a secret", file=name, form=form)
        for line in content.decode("utf-8", "replace").splitlines():
            if looks_secret(re.sub(r"\b[0-9a-f]{8,64}\b", "", line)):
                raise OperationError("OPERATION_SUPPORT_LEAK", f"{name} would hold a key", file=name, form="its look")


def _values(content: bytes) -> Iterator[bytes]:
    yield content.strip()
    for line in map(bytes.strip, content.splitlines()):
        if not line.startswith((b"-----", b"#")):
            yield line
            _, colon, value = line.partition(b":")
            if colon:
                yield value.strip().strip(b"\"'")


def _forms(secret: bytes) -> Iterator[tuple[str, bytes]]:
    yield "plain", secret
    if len(secret) > PIECE_BYTES:  # also a part of it, wherever it was cut
        for start in range(0, len(secret) - PIECE_BYTES + 1, 4):
            yield "in part", secret[start : start + PIECE_BYTES]
    yield "reversed", secret[::-1]
    yield "hexadecimal", secret.hex().encode()
    yield "hexadecimal", secret.hex().upper().encode()
    yield "percent-encoded", urllib.parse.quote(secret, safe="").encode()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for shift in range(3):  # whatever stood before it, the middle of its encoding is one of three
            encoded = encode(b"\0" * shift + secret).rstrip(b"=")
            yield "base64", encoded[4 if shift else 0 : len(encoded) - 2]
    yield "UTF-16", secret.decode("latin-1").encode("utf-16-le")


def _without_breaks(content: bytes) -> bytes:
    """The content without what a line-wrapper, an escaper or a quoting puts in between."""
    return re.sub(rb'\\n|\\r|[\s"\\,]', b"", content)
