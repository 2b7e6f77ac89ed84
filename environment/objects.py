"""Settings of an object store: for pictures, and for the image host `s3`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import values as v
from environment.reader import Reader


@dataclass(frozen=True, slots=True)
class ObjectSettings:
    """A bucket and a prefix in it, as a URL; the rest is for S3 and compatible stores alone."""

    url: str
    endpoint_url: str | None = field(default=None, repr=False)
    region: str | None = None
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)

    def secrets(self) -> Iterator[str | None]:
        yield self.access_key_id
        yield self.secret_access_key


def object_url(text: str) -> str:
    """Return the URL of a bucket and a prefix, without a trailing slash."""
    if not re.fullmatch(r"(s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._-]+(/[\x21-\x7e]*)?", text):
        raise ValueError("is not the URL of a bucket; write s3://bucket/prefix, gs://… or az://…")
    if re.search(r"[?#@]", text):
        raise ValueError("contains ?, # or @; write s3://bucket/prefix, and credentials apart")
    return text.rstrip("/")


def read_storage(reader: Reader) -> ObjectSettings | None:
    """Read STORAGE_URL with the S3 settings."""
    url = reader.get("STORAGE_URL", object_url, None)
    endpoint = reader.get("S3_ENDPOINT_URL", v.url_without_query, None)
    region = reader.get("S3_REGION", v.header_value, None)
    key_id = reader.get("S3_ACCESS_KEY_ID", v.header_value, None)
    secret = reader.get("S3_SECRET_ACCESS_KEY", v.header_value, None)
    if key_id:
        reader.require("S3_SECRET_ACCESS_KEY", "S3_ACCESS_KEY_ID needs it: write both, or neither")
    if secret:
        reader.require("S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY needs it: write both, or neither")
    return ObjectSettings(url, endpoint, region, key_id, secret) if url else None
