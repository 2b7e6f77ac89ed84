"""Bytes in an object store: S3 and compatible servers, Google Cloud Storage, or Azure.

obstore is not fork-safe, so nothing of it runs before the first call.
"""

from __future__ import annotations

import errno
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from obstore.exceptions import BaseError
from obstore.store import from_url

from settings.buckets import ObjectSettings
from settings.network import NetworkSettings

if TYPE_CHECKING:
    from obstore.store import ObjectStore

log = logging.getLogger("prompt_image_proxy.objects")

T = TypeVar("T")

CONNECT_SECONDS = 3.0
# A call as a whole; a picture of 32 MiB needs 36 Mbit/s.
CALL_SECONDS = 10.0
# How long callers fail at once after two failures in a row, before one of them tries again.
PAUSE_SECONDS = 0.5
# Callers that wait for the store at once; others wait a second for a place.
PLACES = 64
_PLACE_SECONDS = 1.0

# The status alone does not tell: a missing bucket is a 404 as well, and so can be the answer of a
# proxy that does not reach the server. Every picture would then be drawn again.
_MISSING = re.compile(r"<Code>(NoSuchKey|BlobNotFound)</Code>")


class Found(NamedTuple):
    """An object: its name below the prefix, its bytes, and when it was written (Unix time)."""

    name: str
    bytes: int
    modified: float


class Objects:
    """The objects below a prefix. Thread-safe.

    Every method ends within about `seconds` and raises OSError, whose text holds no secret.
    While the store fails, one caller at a time tries it, and the others fail at once.
    """

    def __init__(
        self,
        settings: ObjectSettings,
        network: NetworkSettings | None = None,
        seconds: float = CALL_SECONDS,
    ) -> None:
        self._settings = settings
        self._network = network
        self._seconds = seconds
        self._gate = _Gate()

    def put(self, name: str, data: bytes, media_type: str, cache_control: str = "") -> None:
        """Store an object durably, in place of one of the same name."""
        headers = {"Content-Type": media_type} | (
            {"Cache-Control": cache_control} if cache_control else {}
        )
        self._call(lambda store: store.put(name, data, attributes=headers, use_multipart=False))

    def get(self, name: str) -> bytes:
        """Return an object. Raises FileNotFoundError if the store says that it does not exist."""
        return self._call(lambda store: store.get(name).bytes().to_bytes())

    def delete(self, name: str) -> None:
        """Delete an object; one that does not exist is deleted already."""
        with suppress(FileNotFoundError):
            self._call(lambda store: store.delete(name))

    def list(self) -> Iterator[Found]:
        """Yield every object, those in deeper folders included."""
        chunks = self._call(lambda store: iter(store.list(chunk_size=1000)))
        while chunk := self._call(lambda _: next(chunks, ())):
            for meta in chunk:
                yield Found(meta["path"], meta["size"], meta["last_modified"].timestamp())

    def check(self) -> None:
        """Raise OSError unless objects can be written, read and deleted."""
        name = f"check-{secrets.token_hex(8)}"
        self.put(name, b"", "text/plain")
        self.delete(name)
        # Without the right to list the bucket, S3 answers 403 for an object that is missing.
        with suppress(FileNotFoundError):
            self.get(name)

    def _call(self, work: Callable[[ObjectStore], T]) -> T:
        self._gate.enter()
        error: OSError | None = None
        try:
            return work(self._store)
        except (BaseError, OSError, ValueError) as failure:
            error = _translated(str(failure))
            raise error from None
        finally:
            self._gate.leave(error)

    @cached_property
    def _store(self) -> ObjectStore:
        settings, options = self._settings, _client_options(self._settings, self._network)
        arguments = _s3_options(settings) if settings.url.startswith("s3://") else {}
        # One attempt may take three quarters of the time; another begins only in the first one.
        options["timeout"] = timedelta(seconds=self._seconds * 0.75)
        retries = {"max_retries": 2, "retry_timeout": timedelta(seconds=self._seconds * 0.25)}
        arguments |= {"client_options": options, "retry_config": retries}
        return from_url(settings.url, **arguments)


class _Gate:
    """Keeps threads from piling up in front of a store that fails or hangs."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._places = threading.Semaphore(PLACES)
        self._mutex = threading.Lock()
        # When the next caller may try a store that fails; None while it works.
        self._next_try: float | None = None
        self._failure = ""

    def enter(self) -> None:
        """Take a place. Raises OSError if all are taken, or while the store fails."""
        with self._mutex:
            is_failing = self._next_try is not None
            if self._next_try is not None:
                if self._clock() < self._next_try:
                    raise OSError(errno.EIO, self._failure)
                self._next_try = float("inf")  # until this caller knows
        if not self._places.acquire(timeout=_PLACE_SECONDS):
            if is_failing:
                self._next_try = self._clock()
            raise OSError(errno.EBUSY, "object store: too many calls at once")

    def leave(self, error: OSError | None) -> None:
        """Give the place back, with what came of the call."""
        self._places.release()
        has_failed = error is not None and not isinstance(error, FileNotFoundError)
        with self._mutex:
            was_failing = self._next_try is not None
            self._next_try = None
            if has_failed:
                self._failure = str(error and error.strerror)
                # An accident must not cost other callers anything: one tries again at once.
                self._next_try = self._clock() + (PAUSE_SECONDS if was_failing else 0.0)
        if has_failed and not was_failing:
            log.error("The %s", self._failure)
        if was_failing and not has_failed:
            log.warning("The object store works again")


def _client_options(settings: ObjectSettings, network: NetworkSettings | None) -> dict[str, Any]:
    is_plain = (settings.endpoint_url or "").startswith("http://")
    options: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
        "allow_http": is_plain,
    }
    if network and network.ca_bundle:
        options["root_certificate"] = network.ca_bundle.read_bytes()
    proxies = network.proxies if network else {}
    if proxy := proxies.get("http" if is_plain else "https") or proxies.get("all"):
        options |= {"proxy_url": proxy.url, "proxy_excludes": network and network.no_proxy}
    return options


def _s3_options(settings: ObjectSettings) -> dict[str, Any]:
    # Not every server has bulk deletion.
    options: dict[str, Any] = {"disable_bulk_delete": True}
    if settings.region:
        options["region"] = settings.region
    if settings.endpoint_url:
        options["endpoint"] = settings.endpoint_url
        # Alibaba's OSS wants the bucket in the host; everywhere else it stands in the path.
        bucket, host = urlsplit(settings.url).netloc, urlsplit(settings.endpoint_url).netloc
        options["virtual_hosted_style_request"] = host.startswith(f"{bucket}.")
    if settings.access_key_id is None:
        # Otherwise credentials are asked for at 169.254.169.254.
        return options | {"skip_signature": True}
    # Not as options, which a token in AWS_SESSION_TOKEN would join.
    credentials = {
        "access_key_id": settings.access_key_id,
        "secret_access_key": settings.secret_access_key,
        "token": None,
        "expires_at": None,
    }
    return options | {"credential_provider": lambda: credentials}


def _translated(text: str) -> OSError:
    """Return the error for obstore's text, which holds URLs, key IDs and whole answers."""
    if _MISSING.search(text):
        return FileNotFoundError(errno.ENOENT, "object store: no such object")
    status = re.search(r"status code: ([0-9]{3})", text)
    code = re.search(r"<Code>(\w{1,60})</Code>", text)
    if status:
        reason = f"HTTP {status[1]}" + (f" ({code[1]})" if code else "")
    elif "InvalidCertificate" in text:
        reason = "its certificate is not trusted; see CA_BUNDLE"
    else:
        reason = "no answer in time" if "TimedOut" in text else "cannot be reached"
    return OSError(errno.EIO, f"object store: {reason}")
