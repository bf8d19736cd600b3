"""Each way a server can misbehave, against a real TLS server that does: refused with its code, within its bound."""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from appliance.breaker import Breaker
from appliance.errors import RegistryError
from appliance.files import sha256_hex
from appliance.registry.cache import Cache
from appliance.registry.channel import FileRecord
from appliance.registry.s3 import S3Store
from appliance.registry.settings import Credentials, S3Settings
from appliance.registry.tls import spki_pin
from tests.support.faulty_tls import (
    Answer,
    answer,
    drip,
    drip_handshake,
    faulty_server,
    ranged,
    reset,
    reset_at_once,
    s3_error,
    silence,
)
from tests.support.ports import free_port
from tests.support.small_authority import Identity, SmallAuthority

CONNECT_S, READ_S, DEADLINE_S = 0.5, 0.8, 2.0  # bounds, where a test is about one; the others are never met
PATIENT = {"connect_timeout_s": 40, "read_timeout_s": 40, "deadline_s": 100}
BODY = bytes(range(256)) * 40
MARGIN_S = 20.0  # for a crowded machine; the servers hang for a minute, and no other bound is as near


@pytest.fixture(scope="module")
def authority() -> SmallAuthority:
    return SmallAuthority()


@pytest.fixture(scope="module")
def identity(authority: SmallAuthority) -> Identity:
    return authority.issue("127.0.0.1")


@pytest.fixture
def store(tmp_path: Path, authority: SmallAuthority) -> Callable[..., S3Store]:
    def open_store(endpoint: str, *, revocations: Callable[[], bytes | None] = lambda: None, **more: object) -> S3Store:
        ca = tmp_path / "ca.pem"
        ca.write_bytes(authority.pem)
        fixed = {
            "home": "s3",
            "endpoint": endpoint,
            "bucket": "registry",
            "ca_file": ca,
            "credentials_file": tmp_path / "unused",
            "attempts": 1,
            "breaker_threshold": 100,
            **PATIENT,
        }
        settings = S3Settings.model_validate({**fixed, **more})
        return S3Store(settings, Credentials(access_key="a", secret_key="s"), revocations=revocations)

    return open_store


@contextlib.contextmanager
def refused(code: str, *, within_s: float) -> Iterator[list[RegistryError]]:
    """The block is refused with this code and within this time."""
    caught: list[RegistryError] = []
    start = time.monotonic()
    with pytest.raises(RegistryError) as info:
        yield caught
    elapsed = time.monotonic() - start
    caught.append(info.value)
    assert info.value.code == code, info.value
    assert elapsed < within_s + MARGIN_S, f"took {elapsed:.2f} s, bound {within_s} s"


def test_an_honest_server_is_read(store: Callable[..., S3Store], identity: Identity) -> None:
    with faulty_server(identity, answer(BODY)) as server:
        blob = store(server.endpoint).get("a", max_bytes=len(BODY))
    assert blob is not None
    assert (blob.data, blob.etag) == (BODY, "tag")


def test_an_unchanged_object_is_not_transferred(store: Callable[..., S3Store], identity: Identity) -> None:
    with faulty_server(identity, answer(status="304 Not Modified")) as server:
        assert store(server.endpoint).get("a", max_bytes=100, unless="tag") is None
        assert server.requests[0].headers["if-none-match"] == '"tag"'


def test_a_dead_port_is_refused_at_once(store: Callable[..., S3Store]) -> None:
    with refused("REGISTRY_UNREACHABLE", within_s=CONNECT_S):
        store(f"127.0.0.1:{free_port()}").get("a", max_bytes=100)


def test_a_name_that_does_not_resolve_is_refused(store: Callable[..., S3Store]) -> None:
    with refused("REGISTRY_UNREACHABLE", within_s=CONNECT_S):
        store("registry.invalid:9000").get("a", max_bytes=100)


def test_a_server_that_hangs_before_tls_is_left(store: Callable[..., S3Store], identity: Identity) -> None:
    with (
        faulty_server(identity, before_tls=lambda _plain: None) as server,
        refused("REGISTRY_TIMEOUT", within_s=CONNECT_S),
    ):
        store(server.endpoint, connect_timeout_s=CONNECT_S).get("a", max_bytes=100)


def test_a_server_that_drips_the_handshake_is_left(store: Callable[..., S3Store], identity: Identity) -> None:
    with (
        faulty_server(identity, before_tls=drip_handshake(identity, every_s=0.1)) as server,
        refused("REGISTRY_TIMEOUT", within_s=CONNECT_S),
    ):
        store(server.endpoint, connect_timeout_s=CONNECT_S).get("a", max_bytes=100)


def test_a_server_that_hangs_after_tls_is_left(store: Callable[..., S3Store], identity: Identity) -> None:
    with faulty_server(identity, silence) as server, refused("REGISTRY_TIMEOUT", within_s=READ_S):
        store(server.endpoint, read_timeout_s=READ_S).get("a", max_bytes=100)


def test_a_body_that_drips_meets_the_deadline(store: Callable[..., S3Store], identity: Identity) -> None:
    head = b'HTTP/1.1 200 OK\r\nETag: "tag"\r\nContent-Length: 1000\r\n\r\n'
    with (
        faulty_server(identity, drip(b"x" * 1000, every_s=0.2, first=head)) as server,
        refused("REGISTRY_DEADLINE", within_s=DEADLINE_S),
    ):
        store(server.endpoint, deadline_s=DEADLINE_S).get("a", max_bytes=1000)


def test_headers_that_drip_meet_the_deadline(store: Callable[..., S3Store], identity: Identity) -> None:
    head = b"HTTP/1.1 200 OK\r\n" + b"X-Wait: and wait\r\n" * 100
    with (
        faulty_server(identity, drip(head, every_s=0.2)) as server,
        refused("REGISTRY_DEADLINE", within_s=DEADLINE_S),
    ):
        store(server.endpoint, deadline_s=DEADLINE_S).get("a", max_bytes=1000)


def test_a_dripping_body_is_not_mixed_with_ciphertext(store: Callable[..., S3Store], identity: Identity) -> None:
    """Shutting a TLS connection down under its reader must end the body, never continue it with raw records."""
    into = io.BytesIO()
    head = b'HTTP/1.1 200 OK\r\nETag: "tag"\r\nContent-Length: 1000\r\n\r\n'
    with (
        faulty_server(identity, drip(b"x" * 1000, every_s=0.05, first=head)) as server,
        refused("REGISTRY_DEADLINE", within_s=DEADLINE_S),
    ):
        store(server.endpoint, deadline_s=DEADLINE_S, minimum_rate_bytes_s=10**9).copy("a", into, size_bytes=1000)
    assert into.getvalue() == b"x" * len(into.getvalue())


@pytest.mark.parametrize(
    "issue",
    [
        pytest.param(lambda _own: SmallAuthority().issue("127.0.0.1"), id="another-authority"),
        pytest.param(
            lambda own: own.issue("127.0.0.1", starts=timedelta(days=-9), ends=timedelta(days=-1)), id="expired"
        ),
        pytest.param(lambda own: own.issue("127.0.0.1", starts=timedelta(days=1)), id="not-yet-valid"),
        pytest.param(lambda own: own.issue("registry.example"), id="another-name"),
        pytest.param(lambda own: own.issue("127.0.0.1", client=True), id="a-client-certificate"),
    ],
)
def test_a_certificate_that_is_not_ours_is_refused_before_any_request(
    store: Callable[..., S3Store], authority: SmallAuthority, issue: Callable[[SmallAuthority], Identity]
) -> None:
    with faulty_server(issue(authority), answer(BODY)) as server:
        with refused("REGISTRY_CERTIFICATE", within_s=CONNECT_S):
            store(server.endpoint, attempts=4).get("a", max_bytes=len(BODY))
        assert server.requests == []
        assert server.connections == 1, "a refused certificate is not asked again"


def test_environment_cannot_add_an_authority(
    store: Callable[..., S3Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = SmallAuthority()
    (tmp_path / "foreign.pem").write_bytes(foreign.pem)
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(tmp_path / "foreign.pem"))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with (
        faulty_server(foreign.issue("127.0.0.1"), answer(BODY)) as server,
        refused("REGISTRY_CERTIFICATE", within_s=CONNECT_S),
    ):
        store(server.endpoint).get("a", max_bytes=len(BODY))


def test_environment_cannot_log_the_session_keys(
    store: Callable[..., S3Store], identity: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys.log"))
    with faulty_server(identity, answer(BODY)) as server:
        store(server.endpoint).get("a", max_bytes=len(BODY))
    assert not (tmp_path / "keys.log").exists()


def test_tls_1_2_is_refused(store: Callable[..., S3Store], identity: Identity) -> None:
    with (
        faulty_server(identity, answer(BODY), newest=ssl.TLSVersion.TLSv1_2) as server,
        refused("REGISTRY_TLS", within_s=CONNECT_S),
    ):
        store(server.endpoint).get("a", max_bytes=len(BODY))


def test_a_server_that_speaks_plain_http_is_refused(store: Callable[..., S3Store], identity: Identity) -> None:
    with (
        faulty_server(identity, before_tls=lambda plain: plain.sendall(b"HTTP/1.1 200 OK\r\n\r\n")) as server,
        refused("REGISTRY_TLS", within_s=CONNECT_S),
    ):
        store(server.endpoint).get("a", max_bytes=100)


def _pin(identity: Identity) -> str:
    return spki_pin(ssl.PEM_cert_to_DER_cert(identity.certificate_pem.decode()))


def test_a_pinned_key_is_accepted_and_survives_renewal(
    store: Callable[..., S3Store], authority: SmallAuthority
) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    before, renewed = authority.issue("127.0.0.1", key=key), authority.issue("127.0.0.1", key=key)
    assert before.certificate_pem != renewed.certificate_pem
    for one in (before, renewed):
        with faulty_server(one, answer(BODY)) as server:
            assert store(server.endpoint, spki_pins=[_pin(before)]).get("a", max_bytes=len(BODY)) is not None


def test_two_pins_bridge_a_change_of_key(store: Callable[..., S3Store], authority: SmallAuthority) -> None:
    old, new = authority.issue("127.0.0.1"), authority.issue("127.0.0.1")
    for one in (old, new):
        with faulty_server(one, answer(BODY)) as server:
            opened = store(server.endpoint, spki_pins=[_pin(old), _pin(new)])
            assert opened.get("a", max_bytes=len(BODY)) is not None


def test_another_key_of_our_own_authority_is_refused_before_any_request(
    store: Callable[..., S3Store], authority: SmallAuthority, identity: Identity
) -> None:
    with faulty_server(authority.issue("127.0.0.1"), answer(BODY)) as server:
        with refused("REGISTRY_PIN_MISMATCH", within_s=CONNECT_S):
            store(server.endpoint, spki_pins=[_pin(identity)], attempts=4).get("a", max_bytes=len(BODY))
        assert server.requests == []


def test_a_revoked_certificate_is_refused_before_any_request_and_its_successor_is_not(
    store: Callable[..., S3Store], authority: SmallAuthority
) -> None:
    stolen, successor = authority.issue("127.0.0.1"), authority.issue("127.0.0.1")
    lists = [
        SmallAuthority("Another").revocation_list(stolen),
        authority.revocation_list(stolen, age=timedelta(days=300)),
    ]
    for known, served in ((lists[:1], stolen), (lists, successor)):
        with faulty_server(served, answer(BODY)) as server:
            opened = store(server.endpoint, revocations=lambda known=known: b"".join(known))
            assert opened.get("a", max_bytes=len(BODY)) is not None, "another authority's word, another certificate"
    with faulty_server(stolen, answer(BODY)) as server:
        with refused("REGISTRY_CERTIFICATE_REVOKED", within_s=CONNECT_S):
            store(server.endpoint, revocations=lambda: b"".join(lists), attempts=4).get("a", max_bytes=len(BODY))
        assert server.requests == []


def test_mutual_tls_presents_our_certificate(
    store: Callable[..., S3Store], authority: SmallAuthority, identity: Identity, tmp_path: Path
) -> None:
    certificate, key, _ = authority.issue("gateway-1", client=True).write(tmp_path, "client")
    with faulty_server(identity, answer(BODY), client_ca_pem=authority.pem) as server:
        opened = store(server.endpoint, client_certificate=certificate, client_key=key)
        assert opened.get("a", max_bytes=len(BODY)) is not None
        # TLS 1.3 judges the client's certificate after the handshake: the alert may come before or after the server's
        # closing of the connection, so that the refusal is seen as one or the other
        with pytest.raises(RegistryError) as refusal:
            store(server.endpoint).get("a", max_bytes=len(BODY))
        assert refusal.value.code in {"REGISTRY_TLS", "REGISTRY_INTERRUPTED"}


def test_a_reset_instead_of_an_answer_is_refused(store: Callable[..., S3Store], identity: Identity) -> None:
    with faulty_server(identity, reset_at_once) as server, refused("REGISTRY_INTERRUPTED", within_s=READ_S):
        store(server.endpoint).get("a", max_bytes=100)


def test_a_reset_during_the_handshake_is_refused(store: Callable[..., S3Store], identity: Identity) -> None:
    def reset_midway(plain: socket.socket) -> None:
        plain.recv(1)  # the client has connected and begun; a reset before that may meet the connection itself
        reset(plain)

    with (
        faulty_server(identity, before_tls=reset_midway) as server,
        refused("REGISTRY_INTERRUPTED", within_s=CONNECT_S),
    ):
        store(server.endpoint).get("a", max_bytes=100)


def test_a_short_body_is_refused(store: Callable[..., S3Store], identity: Identity) -> None:
    with (
        faulty_server(identity, answer(b"half", length=8)) as server,
        refused("REGISTRY_INTERRUPTED", within_s=READ_S),
    ):
        store(server.endpoint).get("a", max_bytes=100)


@pytest.mark.parametrize("headers", [{}, {"Transfer-Encoding": "chunked"}])
def test_a_body_without_its_length_is_refused(
    store: Callable[..., S3Store], identity: Identity, headers: dict[str, str]
) -> None:
    body = b"4\r\nhalf\r\n0\r\n\r\n" if headers else b"half"
    with (
        faulty_server(identity, answer(body, length=None, headers=headers)) as server,
        refused("REGISTRY_NO_LENGTH", within_s=READ_S),
    ):
        store(server.endpoint).get("a", max_bytes=100)


@pytest.mark.parametrize(
    "status", ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"]
)
def test_a_redirect_is_not_followed(store: Callable[..., S3Store], identity: Identity, status: str) -> None:
    with faulty_server(identity, answer(BODY)) as elsewhere:
        away = answer(status=status, headers={"Location": f"https://{elsewhere.endpoint}/registry/a"})
        with faulty_server(identity, away) as server, refused("REGISTRY_REDIRECT", within_s=READ_S):
            store(server.endpoint, attempts=4).get("a", max_bytes=len(BODY))
        assert elsewhere.connections == 0


def test_a_compressed_answer_is_refused(store: Callable[..., S3Store], identity: Identity) -> None:
    with (
        faulty_server(identity, answer(b"\x1f\x8b", headers={"Content-Encoding": "gzip"})) as server,
        refused("REGISTRY_ANSWER", within_s=READ_S),
    ):
        store(server.endpoint).get("a", max_bytes=100)


def test_an_endless_listing_is_refused(store: Callable[..., S3Store], identity: Identity) -> None:
    endless = answer(b" " * 9_000_000, headers={"Content-Type": "application/xml"})
    with faulty_server(identity, endless) as server, refused("REGISTRY_ANSWER", within_s=DEADLINE_S):
        store(server.endpoint).list("routers/")


def test_an_object_larger_than_allowed_is_not_read(store: Callable[..., S3Store], identity: Identity) -> None:
    with faulty_server(identity, answer(b"", length=10**12)) as server:
        with refused("REGISTRY_TOO_LARGE", within_s=READ_S):
            store(server.endpoint).get("a", max_bytes=100)
        with refused("REGISTRY_TOO_LARGE", within_s=READ_S):
            store(server.endpoint).copy("a", io.BytesIO(), size_bytes=100)


def test_a_storm_of_503_ends_in_bounded_attempts(store: Callable[..., S3Store], identity: Identity) -> None:
    storm = s3_error("SlowDown", "503 Slow Down", headers={"Retry-After": "3600"})
    with faulty_server(identity, storm) as server:
        with refused("REGISTRY_BUSY", within_s=DEADLINE_S):
            store(server.endpoint, attempts=3).get("a", max_bytes=100)
        assert len(server.requests) == 3, "one retry layer, and no more"


def test_a_passing_503_is_survived(store: Callable[..., S3Store], identity: Identity) -> None:
    storm = s3_error("ServiceUnavailable", "503 Service Unavailable")
    with faulty_server(identity, storm, reset_at_once, answer(BODY)) as server:
        blob = store(server.endpoint, attempts=4).get("a", max_bytes=len(BODY))
    assert blob is not None
    assert blob.data == BODY


def test_the_breaker_opens_and_lets_one_probe_through(store: Callable[..., S3Store], identity: Identity) -> None:
    storm: list[Answer] = [s3_error("InternalError", "500 Internal Server Error")] * 2
    with faulty_server(identity, *storm, answer(BODY)) as server:
        opened = store(server.endpoint, breaker_threshold=2)
        now = [0.0]
        opened.breaker = Breaker(failures=2, open_s=15, clock=lambda: now[0])
        for _ in range(2):
            with refused("REGISTRY_BUSY", within_s=READ_S):
                opened.get("a", max_bytes=100)
        with refused("REGISTRY_BREAKER_OPEN", within_s=0) as caught:
            opened.get("a", max_bytes=100)
        assert caught[0].evidence["retry_in_s"] == 15
        assert len(server.requests) == 2
        now[0] = 15.1
        assert opened.get("a", max_bytes=len(BODY)) is not None
        assert opened.breaker.view().state == "closed"


def test_a_refusal_of_the_request_does_not_open_the_breaker(store: Callable[..., S3Store], identity: Identity) -> None:
    with faulty_server(identity, s3_error("NoSuchKey", "404 Not Found")) as server:
        opened = store(server.endpoint, breaker_threshold=1)
        for _ in range(3):
            with refused("REGISTRY_NOT_FOUND", within_s=READ_S):
                opened.get("a", max_bytes=100)


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("AccessDenied", "403 Forbidden", "REGISTRY_DENIED"),
        ("SignatureDoesNotMatch", "403 Forbidden", "REGISTRY_DENIED"),
        ("NoSuchBucket", "404 Not Found", "REGISTRY_NO_BUCKET"),
        ("ObjectLocked", "403 Forbidden", "REGISTRY_LOCKED"),
        ("EntityTooLarge", "400 Bad Request", "REGISTRY_ANSWER"),
    ],
)
def test_the_servers_refusals_have_their_codes(
    store: Callable[..., S3Store], identity: Identity, code: str, status: str, expected: str
) -> None:
    with faulty_server(identity, s3_error(code, status)) as server, refused(expected, within_s=READ_S):
        store(server.endpoint).get("a", max_bytes=100)


def test_clock_skew_names_both_clocks(store: Callable[..., S3Store], identity: Identity) -> None:
    skewed = s3_error("RequestTimeTooSkewed", "403 Forbidden", headers={"Date": "Mon, 23 Nov 2026 09:00:00 GMT"})
    with faulty_server(identity, skewed) as server, refused("REGISTRY_CLOCK_SKEW", within_s=READ_S) as caught:
        store(server.endpoint).get("a", max_bytes=100)
    assert caught[0].evidence["theirs"] == "2026-11-23T09:00:00+00:00"
    assert isinstance(caught[0].evidence["difference_s"], int)


def test_a_broken_transfer_goes_on_where_it_stopped(store: Callable[..., S3Store], identity: Identity) -> None:
    body = BODY * 50
    into = io.BytesIO()
    with faulty_server(identity, ranged(body, break_after=300_000), ranged(body)) as server:
        store(server.endpoint, attempts=3).copy("a", into, size_bytes=len(body))
        again = server.requests[1].headers
    assert into.getvalue() == body
    assert int(again["range"].removeprefix("bytes=").rstrip("-")) > 0
    assert again["if-match"] == '"tag"'


def test_an_object_that_changed_during_the_transfer_is_not_pieced_together(
    store: Callable[..., S3Store], identity: Identity
) -> None:
    body = BODY * 50
    changed = ranged(b"z" * len(body), etag="other")
    with (
        faulty_server(identity, ranged(body, break_after=300_000), changed) as server,
        refused("REGISTRY_CHANGED", within_s=DEADLINE_S),
    ):
        store(server.endpoint, attempts=3).copy("a", io.BytesIO(), size_bytes=len(body))


def test_a_server_that_ignores_the_range_is_refused(store: Callable[..., S3Store], identity: Identity) -> None:
    into = io.BytesIO(b"half")
    into.seek(0, io.SEEK_END)
    with faulty_server(identity, answer(b"the whole")) as server, refused("REGISTRY_ANSWER", within_s=READ_S):
        store(server.endpoint).copy("a", into, size_bytes=9)


def test_a_part_that_comes_for_the_whole_is_refused(store: Callable[..., S3Store], identity: Identity) -> None:
    part = answer(b"half", status="206 Partial Content", headers={"Content-Range": "bytes 0-3/8"})
    with faulty_server(identity, part) as server, refused("REGISTRY_ANSWER", within_s=READ_S):
        store(server.endpoint).get("a", max_bytes=100)


def test_an_object_that_was_never_seen_cannot_be_unchanged(store: Callable[..., S3Store], identity: Identity) -> None:
    """Or a registry could seem to answer soundly without ever showing a pointer."""
    with faulty_server(identity, answer(status="304 Not Modified")) as server:
        with refused("REGISTRY_ANSWER", within_s=READ_S):
            store(server.endpoint).get("a", max_bytes=100)
        with refused("REGISTRY_ANSWER", within_s=READ_S):
            store(server.endpoint).copy("a", io.BytesIO(), size_bytes=9)


REFUSES_RANGES = {
    "the whole, whatever was asked": answer(BODY),
    "not satisfiable": answer(status="416 Range Not Satisfiable"),
}


@pytest.mark.parametrize("name", REFUSES_RANGES)
def test_an_interrupted_transfer_begins_again_where_no_rest_can_be_had(
    store: Callable[..., S3Store], identity: Identity, tmp_path: Path, name: str
) -> None:
    record = FileRecord(sha256=sha256_hex(BODY), size_bytes=len(BODY))
    cache = Cache(tmp_path / "cache")
    (tmp_path / "cache" / "partial" / record.sha256).write_bytes(BODY[:1000])
    with faulty_server(identity, REFUSES_RANGES[name], answer(BODY)) as server:
        assert cache.blob(record, store(server.endpoint), "a") == BODY
        assert [request.headers.get("range") for request in server.requests] == ["bytes=1000-", None]
