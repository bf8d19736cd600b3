"""A registry in a bucket: MinIO, or any server that speaks S3, over TLS of our own authority.

One retry layer (tenacity, here and nowhere below), one breaker, and an absolute deadline around every operation.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, BinaryIO, TypeVar

import tenacity
from minio import Minio
from minio.error import S3Error

from appliance.breaker import Breaker
from appliance.errors import RegistryError
from appliance.files import translated
from appliance.registry.contract import Blob, Entry, KeyRule, checked_key
from appliance.registry.faults import PASSING, UNAVAILABLE, translate
from appliance.registry.settings import Credentials, S3Settings
from appliance.registry.tls import RevocationLists, client_context, no_revocations
from appliance.registry.transport import Deadline, HttpsPool

MAX_ENTRIES = 100_000  # of one listing
PAGE_ENTRIES = 1000  # S3's own
_CHUNK = 256 * 1024  # bytes
_SINGLE_PUT_BYTES = 5 * 1024**3  # S3's limit for an object in one request

Result = TypeVar("Result")


class S3Store:
    """A registry's home in a bucket.

    Args:
        settings: where it is and how it is reached.
        credentials: the key pair.
        revocations: TLS certificates that the registry must not show.
        keys: which keys it has: a registry's own, or those of whoever fills the bucket (`foreign_key`).
    """

    def __init__(
        self,
        settings: S3Settings,
        credentials: Credentials,
        *,
        revocations: RevocationLists = no_revocations,
        keys: KeyRule = checked_key,
    ) -> None:
        self._settings = settings
        self._checked = keys
        context = client_context(
            settings.ca_file, client_certificate=settings.client_certificate, client_key=settings.client_key
        )
        pool = HttpsPool(
            context,
            pins=frozenset(settings.spki_pins),
            revocations=revocations,
            connect_timeout_s=settings.connect_timeout_s,
            read_timeout_s=settings.read_timeout_s,
        )
        self._client = Minio(
            settings.endpoint,
            access_key=credentials.access_key,
            secret_key=credentials.secret_key,
            region=settings.region,
            secure=True,
            http_client=pool,
        )
        self.breaker = Breaker(failures=settings.breaker_threshold, open_s=settings.breaker_pause_s)

    @property
    def location(self) -> str:
        """`s3://host:port/bucket/prefix`."""
        return f"s3://{self._settings.endpoint}/{self._settings.bucket}/{self._settings.prefix}"

    def get(self, key: str, *, max_bytes: int, unless: str | None = None) -> Blob | None:
        """Read an object whole; see `Store.get`."""
        conditions = {"If-None-Match": f'"{unless}"'} if unless is not None else {}

        def attempt(deadline: Deadline) -> Blob | None:
            with self._response(deadline, key, conditions=conditions) as response:
                if response is None:
                    return None
                length = _length(response, key)
                if response.status != 200:
                    raise RegistryError("REGISTRY_ANSWER", f"{key}: a part came for the whole", status=response.status)
                if length > max_bytes:
                    raise RegistryError(
                        "REGISTRY_TOO_LARGE",
                        f"{key} is larger than allowed",
                        key=key,
                        bytes=length,
                        max_bytes=max_bytes,
                    )
                data = b"".join(_body(response, length, key))
                return Blob(data, response.headers.get("etag", "").strip('"'))

        return self._run(key, attempt, size_bytes=max_bytes)

    def copy(self, key: str, into: BinaryIO, *, size_bytes: int) -> None:
        """Append the rest of an object; see `Store.copy`. A broken transfer goes on where it stopped."""
        etag: str | None = None

        def attempt(deadline: Deadline) -> None:
            nonlocal etag
            offset = into.tell()
            if offset == size_bytes and offset > 0:
                return
            conditions = {"If-Match": etag} if etag is not None else {}
            with self._response(deadline, key, offset=offset, conditions=conditions) as response:
                _check_range(response, key, offset, size_bytes)
                etag = response.headers.get("etag")
                for chunk in _body(response, size_bytes - offset, key):
                    with translated(key):
                        into.write(chunk)

        self._run(key, attempt, size_bytes=size_bytes)

    def put(self, key: str, data: bytes, *, only_if_absent: bool = False) -> str:
        """Write an object in one request; see `Store.put`."""
        if len(data) > _SINGLE_PUT_BYTES:
            raise RegistryError("REGISTRY_TOO_LARGE", f"{key} is larger than one request carries", bytes=len(data))
        headers = {"If-None-Match": "*"} if only_if_absent else {}

        def attempt(deadline: Deadline) -> str:
            deadline.headers.update(headers)
            written = self._client.put_object(
                self._settings.bucket, self._name(key), io.BytesIO(data), len(data), part_size=_SINGLE_PUT_BYTES
            )
            return str(written.etag or "")

        return self._run(key, attempt, size_bytes=len(data))

    def list(self, prefix: str) -> list[Entry]:
        """Every object below a prefix; see `Store.list`."""

        def attempt(_deadline: Deadline) -> list[Entry]:
            asked = self._name(prefix)
            listed = self._client.list_objects(self._settings.bucket, prefix=asked, recursive=True)
            found = self._entries(islice(listed, MAX_ENTRIES + 1), asked)
            if len(found) > MAX_ENTRIES:
                raise RegistryError("REGISTRY_ANSWER", "the listing does not end", entries=len(found))
            return sorted((entry for entry in found if not entry.key.endswith("/")), key=lambda entry: entry.key)

        return self._run(prefix, attempt)

    def pages(self, prefix: str) -> Iterator[Sequence[Entry]]:
        """Every object below a prefix, a request a page, each under a deadline of its own; see `Objects.pages`."""
        after = ""

        def attempt(_deadline: Deadline) -> Sequence[Entry]:
            asked = self._name(prefix)
            listed = self._client.list_objects(
                self._settings.bucket, prefix=asked, recursive=True, start_after=after or None
            )
            return self._entries(islice(listed, PAGE_ENTRIES), asked)

        while True:
            page = self._run(prefix, attempt)
            for entry in page:  # S3 lists by the bytes of the keys; a page that goes back would never end
                key = self._settings.prefix + entry.key
                if key.encode() <= after.encode():
                    raise RegistryError("REGISTRY_ANSWER", "the listing is in no order", prefix=prefix)
                after = key
            yield page
            if len(page) < PAGE_ENTRIES:
                return

    def _entries(self, listed: Iterable[Any], asked: str) -> Sequence[Entry]:
        found = []
        for item in listed:
            named = item.object_name is not None and item.object_name.startswith(asked)
            if not named or item.last_modified is None or (item.size or 0) < 0:
                raise RegistryError("REGISTRY_ANSWER", "the listing names what was not asked for", prefix=asked)
            found.append(Entry(item.object_name[len(self._settings.prefix) :], item.size or 0, item.last_modified))
        return found

    def delete(self, key: str) -> None:
        """Remove an object; see `Store.delete`."""
        self._run(key, lambda _deadline: self._client.remove_object(self._settings.bucket, self._name(key)))

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """One operation under the breaker, which counts the registry's failures and not the request's."""
        if not self.breaker.allow():
            view = self.breaker.view()
            raise RegistryError(
                "REGISTRY_BREAKER_OPEN",
                "the registry failed several times in a row and is left alone for a while",
                registry=self.location,
                failures=view.failures_in_a_row,
                last=view.last_reason,
                retry_in_s=round(view.retry_in_s, 1),
            )
        try:
            yield
        except RegistryError as error:
            if error.code in UNAVAILABLE:
                self.breaker.failure(error.code)
            else:
                self.breaker.success()  # it answered
            raise
        except BaseException:
            self.breaker.unused()
            raise
        self.breaker.success()

    def _name(self, key: str) -> str:
        return self._settings.prefix + (self._checked(key) if key and not key.endswith("/") else key)

    @contextmanager
    def _response(
        self, deadline: Deadline, key: str, *, offset: int = 0, conditions: Mapping[str, str] | None = None
    ) -> Iterator[Any]:
        """A GET's answer, body unread; None where the object is unchanged. The connection is closed unless used up."""
        asked = conditions or {}
        deadline.headers.update(asked)
        try:
            response = self._client.get_object(self._settings.bucket, self._name(key), offset=offset)
        except Exception as error:
            if deadline.unchanged and "If-None-Match" in asked:
                yield None
                return
            if deadline.unchanged:
                raise RegistryError("REGISTRY_ANSWER", f"{key} is called unchanged, and was never seen") from error
            if isinstance(error, S3Error) and error.code == "PreconditionFailed":
                raise RegistryError(
                    "REGISTRY_CHANGED", f"{key} was exchanged while it was transferred", key=key
                ) from error
            raise
        try:
            yield response
        finally:
            if response.length_remaining == 0:
                response.release_conn()
            else:
                response.close()

    def _run(self, key: str, attempt: Callable[[Deadline], Result], *, size_bytes: int = 0) -> Result:
        """Do one operation: breaker outside, retries within, everything under one deadline.

        Raises:
            RegistryError: whatever `faults.translate` says, or REGISTRY_BREAKER_OPEN.
        """
        seconds = self._settings.deadline_s + size_bytes / self._settings.minimum_rate_bytes_s
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self._settings.attempts) | tenacity.stop_after_delay(seconds),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=2.0),
            retry=tenacity.retry_if_exception(lambda e: isinstance(e, RegistryError) and e.code in PASSING),
            reraise=True,
        )
        with self._guarded(), Deadline(seconds) as deadline:

            def once() -> Result:
                deadline.begin()
                try:
                    return attempt(deadline)
                except Exception as error:
                    raise translate(error, deadline, where=self.location, key=key) from error

            return retrying(once)


def _length(response: Any, key: str) -> int:
    """The announced length, which an honest server always sends.

    Raises:
        RegistryError: REGISTRY_NO_LENGTH.
    """
    text = response.headers.get("content-length", "")
    if not text.isdecimal() or len(text) > 15 or response.headers.get("transfer-encoding"):
        raise RegistryError("REGISTRY_NO_LENGTH", f"{key} came without its length", key=key)
    return int(text)


def _body(response: Any, length: int, key: str) -> Iterator[bytes]:
    """Exactly `length` bytes, or REGISTRY_INTERRUPTED."""
    left = length
    while left and (chunk := response.read(min(_CHUNK, left), decode_content=False)):
        left -= len(chunk)
        yield chunk
    if left:
        raise RegistryError("REGISTRY_INTERRUPTED", f"{key} ended early", key=key, bytes=length - left, expected=length)


def _check_range(response: Any, key: str, offset: int, size_bytes: int) -> None:
    """The answer must be the rest of the very object we expect.

    Raises:
        RegistryError: REGISTRY_ANSWER, REGISTRY_TOO_LARGE, REGISTRY_INCOMPLETE.
    """
    length = _length(response, key)
    if offset:
        expected = f"bytes {offset}-{size_bytes - 1}/{size_bytes}"
        if response.status != 206 or response.headers.get("content-range") != expected:
            raise RegistryError(
                "REGISTRY_ANSWER",
                f"{key}: asked for the rest of the object, got something else",
                status=response.status,
                content_range=response.headers.get("content-range", ""),
                expected=expected,
            )
    if offset + length != size_bytes:
        code = "REGISTRY_TOO_LARGE" if offset + length > size_bytes else "REGISTRY_INCOMPLETE"
        raise RegistryError(
            code, f"{key} has another length", key=key, bytes=offset + length, expected_bytes=size_bytes
        )
