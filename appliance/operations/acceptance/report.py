"""The acceptance's report: a statement that can be signed and verified, a page for people, and one for paper."""

from __future__ import annotations

import html
import importlib.metadata
import json
import platform
import socket
import ssl
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from appliance import __version__, documents
from appliance.files import sha256_hex
from appliance.operations.acceptance import pdf
from appliance.operations.acceptance.checks import Result
from appliance.operations.acceptance.pdf import Paragraph

_TOLD = ("litellm", "onnxruntime", "cryptography", "sigstore", "tuf")  # distributions whose version the report names
STATEMENT_TYPE = "https://appliance.internal/validation/v1"


def statement(results: Sequence[Result], *, at: datetime, release: str | None) -> bytes:
    """Canonical JSON of what was seen, by whom and on what."""
    document = {
        "_type": STATEMENT_TYPE,
        "schema_version": 1,
        "at": f"{at:%Y-%m-%dT%H:%M:%SZ}",
        "host": socket.gethostname(),
        "release": release,
        "versions": versions(),
        "passed": all(result.passed for result in results),
        "results": [json.loads(json.dumps(result.as_dict(), default=str)) for result in results],
    }
    return documents.write_json(document)


def versions() -> dict[str, str]:
    """What ran: the appliance, what it stands on, and the libraries that matter to an accreditor."""
    found = {
        "appliance": __version__,
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "kernel": platform.release(),
    }
    for name in _TOLD:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def paper(data: bytes, *, signer: str | None) -> bytes:
    """The statement as PDF, with the digest of the signed file: so one sees which file a paper belongs to."""
    document = json.loads(data)
    lines = [
        Paragraph("title", f"Acceptance: {'accepted' if document['passed'] else 'NOT accepted'}"),
        Paragraph("text", f"Host {document['host']}, release {document['release']}, {document['at']}"),
        Paragraph("text", f"Signed by {signer} (validation.sigstore.json)" if signer else "Not signed"),
        Paragraph("evidence", f"SHA-256 of validation.json: {sha256_hex(data)}"),
        Paragraph("heading", "Versions"),
        *(Paragraph("evidence", f"{name}: {value}") for name, value in document["versions"].items()),
    ]
    for result in document["results"]:
        lines += [
            Paragraph("heading", f"{'holds' if result['passed'] else 'DOES NOT HOLD'}: {result['name']}"),
            Paragraph("text", result["requirement"]),
            *(Paragraph("evidence", f"{name}: {json.dumps(value)}") for name, value in result["evidence"].items()),
        ]
    return pdf.document(lines, footer=f"{document['release']} {document['at']}")


def page(data: bytes, *, signer: str | None) -> str:
    """The statement as one HTML file without script or anything outside."""
    document = json.loads(data)
    rows = "\n".join(_row(result) for result in document["results"])
    passed = sum(result["passed"] for result in document["results"])
    state = "accepted" if document["passed"] else "not accepted"
    signed = f"Signed by {html.escape(signer)}" if signer else "Not signed"
    versions = ", ".join(f"{name} {value}" for name, value in document["versions"].items())
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="content-security-policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Acceptance report</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, "DejaVu Sans", sans-serif; }}
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1.5rem; }}
h1 {{ margin-bottom: .2rem; }} table {{ border-collapse: collapse; width: 100%; margin-top: 1.5rem; }}
th, td {{ text-align: left; vertical-align: top; padding: .6rem .8rem .6rem 0; border-top: 1px solid #8886; }}
.yes, .no {{ color: light-dark(#1c6b3c, #6fcf97); font-weight: 600; }}
.no {{ color: light-dark(#a8201a, #ff8a80); }}
dl {{ display: grid; grid-template-columns: auto 1fr; gap: 0 1rem; margin: .3rem 0 0; font-size: .88rem; }}
dd {{ margin: 0; overflow-wrap: anywhere; font-family: ui-monospace, monospace; }}
.quiet {{ opacity: .75; font-size: .9rem; }}
@media print {{ body {{ margin: 0; max-width: none; }} tr {{ break-inside: avoid; }} }}
</style>
<h1>Acceptance: <span class="{"yes" if document["passed"] else "no"}">{state}</span></h1>
<p class="quiet">{passed} of {len(document["results"])} requirements hold · host {html.escape(document["host"])} ·
release {html.escape(str(document["release"]))} · {document["at"]} · {html.escape(versions)}<br>{signed}</p>
<table><thead><tr><th scope="col">Requirement</th><th scope="col">Holds</th><th scope="col">Evidence</th></tr></thead>
<tbody>
{rows}
</tbody></table></html>
"""


def _row(result: dict[str, Any]) -> str:
    evidence = "".join(
        f"<dt>{html.escape(str(name))}</dt><dd>{html.escape(json.dumps(value))}</dd>"
        for name, value in result["evidence"].items()
    )
    word = '<span class="yes">yes</span>' if result["passed"] else '<span class="no">no</span>'
    return (
        f"<tr><td><strong>{html.escape(result['name'])}</strong><br>{html.escape(result['requirement'])}</td>"
        f"<td>{word}</td><td><dl>{evidence}</dl></td></tr>"
    )
