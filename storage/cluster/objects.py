"""Bytes in an object store: S3 and compatible servers, Google Cloud Storage, or Azure.

obstore is not fork-safe, so nothing of it runs before the first call.
"""

from __future__ import annotations

import errno
import logging
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from obstore.exceptions import BaseError
from obstore.store import from_url

from settings.proxies import DIRECT, NetworkSettings
from settings.servers import ObjectSettings
from storage.gate import Down, Gate
from storage.store import Stored

if TYPE_CHECKING:
    from obstore.store import ObjectStore

log = logging.getLogger("prompt_image_proxy.objects")

T = TypeVar("T")

CONNECT_SECONDS = 2.0
# How long writing an object may take; a picture of 32 MiB needs 36 Mbit/s. Reading may take half
# of it, since a request waits for it.
WRITE_SECONDS = 10.0
READ_SECONDS = WRITE_SECONDS / 2

# The status alone does not tell: a missing bucket is a 404 as well, and so can be the answer of a
# proxy that does not reach the server. Every picture would then be drawn again.
_MISSING = re.compile(r"<Code>(NoSuchKey|BlobNotFound)</Code>")


@dataclass
class Objects:
    """The objects below a prefix. Thread-safe.

    `put` ends within `seconds`, each other call of the store within half of that. All methods
    raise OSError, whose text holds no secret. While the store cannot be read or written, few
    callers ask it, and the others fail at once.
    """

    settings: ObjectSettings
    network: NetworkSettings = DIRECT
    seconds: float = WRITE_SECONDS

    def __post_init__(self) -> None:
        self._reading = Gate(log, "The bucket", "read")
        self._writing = Gate(log, "The bucket", "written to")

    @property
    def fault(self) -> str | None:
        """Why objects cannot be read or written at the moment, None while they can."""
        fault = self._writing.reason or self._reading.reason
        return fault and f"object store: {fault}"

    def put(self, name: str, data: bytes, media_type: str, cache_control: str = "") -> None:
        """Store an object durably, in place of one of the same name."""
        headers = {"Content-Type": media_type}
        if cache_control:
            headers["Cache-Control"] = cache_control
        more: Any = {"attributes": headers, "use_multipart": False}
        self._call(self._writing, lambda: self._patient.put(name, data, **more))

    def get(self, name: str) -> bytes:
        """Return an object. Raises FileNotFoundError if the store says that it does not exist."""
        return self._call(self._reading, lambda: self._store.get(name).bytes().to_bytes())

    def delete(self, name: str) -> None:
        """Delete an object; one that does not exist is deleted already."""
        with suppress(FileNotFoundError):
            self._call(self._writing, lambda: self._store.delete(name))

    def list(self) -> Iterator[Stored]:
        """Yield every object by its name below the prefix, those in deeper folders included."""
        chunks = self._call(self._reading, lambda: iter(self._store.list(chunk_size=1000)))
        while chunk := self._call(self._reading, lambda: next(chunks, ())):
            for meta in chunk:
                yield Stored(meta["path"], meta["size"], meta["last_modified"].timestamp())

    def check(self) -> None:
        """Raise OSError unless objects can be written, read and deleted."""
        name = f"check-{secrets.token_hex(8)}"
        # Without the right to list the bucket, S3 answers 403 for an object that is missing.
        with suppress(FileNotFoundError):
            self.get(name)
        self.put(name, b"", "text/plain")
        self.delete(name)

    def _call(self, gate: Gate, work: Callable[[], T]) -> T:
        try:
            with gate.ask():
                try:
                    return work()
                except (BaseError, OSError, ValueError) as error:
                    raise _translated(str(error)) from None
        except Down as error:
            raise OSError(errno.EIO, f"object store: {error}") from None

    @cached_property
    def _store(self) -> ObjectStore:
        return self._connect(self.seconds / 2)

    @cached_property
    def _patient(self) -> ObjectStore:
        return self._connect(self.seconds)

    def _connect(self, seconds: float) -> ObjectStore:
        is_plain = (self.settings.endpoint_url or "").startswith("http://")
        options: Any = {
            # One attempt may take three quarters of the time; another begins only in the first one.
            "timeout": timedelta(seconds=seconds * 0.75),
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "allow_http": is_plain,
        }
        if self.network.ca_bundle:
            options["root_certificate"] = self.network.ca_bundle.read_bytes()
        proxies = self.network.proxies
        if proxy := proxies.get("http" if is_plain else "https") or proxies.get("all"):
            options |= {"proxy_url": proxy.url, "proxy_excludes": self.network.no_proxy}
        retries: Any = {"max_retries": 2, "retry_timeout": timedelta(seconds=seconds * 0.25)}
        more = _s3_options(self.settings) if self.settings.url.startswith("s3://") else {}
        return from_url(self.settings.url, client_options=options, retry_config=retries, **more)


def _s3_options(settings: ObjectSettings) -> dict[str, Any]:
    # Not as options, which a token in AWS_SESSION_TOKEN would join.
    credentials = {
        "access_key_id": settings.access_key_id,
        "secret_access_key": settings.secret_access_key,
        "token": None,
        "expires_at": None,
    }
    # Not every server has bulk deletion.
    options = {"disable_bulk_delete": True, "credential_provider": lambda: credentials}
    if settings.region:
        options["region"] = settings.region
    if settings.endpoint_url:
        options["endpoint"] = settings.endpoint_url
        # Alibaba's OSS wants the bucket in the host; everywhere else it stands in the path.
        bucket, host = urlsplit(settings.url).netloc, urlsplit(settings.endpoint_url).netloc
        options["virtual_hosted_style_request"] = host.startswith(f"{bucket}.")
    return options


def _translated(text: str) -> FileNotFoundError | Down:
    """Return the error for obstore's text, which holds URLs, key IDs and whole answers."""
    if _MISSING.search(text):
        return FileNotFoundError(errno.ENOENT, "object store: no such object")
    status = re.search(r"status code: ([0-9]{3})", text)
    code = re.search(r"<Code>(\w{1,60})</Code>", text)
    if status:
        return Down(f"HTTP {status[1]}" + (f" ({code[1]})" if code else ""))
    if "InvalidCertificate" in text:
        return Down("its certificate is not trusted; see CA_BUNDLE")
    return Down("no answer in time" if "TimedOut" in text else "cannot be reached")
