"""Settings of an object store: for pictures, and for the image host `s3`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from settings import parsers as v
from settings.reader import Reader


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
    url = text.rstrip("/")
    is_url = re.fullmatch(
        r"(s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._-]+(/[\w.=!*'()+-]+)*", url, re.ASCII
    )
    if not is_url or {".", ".."} & set(url.split("/")):
        # Not quoted: someone may have put credentials into it.
        forms = "s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"
        raise ValueError(f"is not the URL of a bucket; write {forms}")
    return url


def read_storage(reader: Reader) -> ObjectSettings | None:
    return read_objects(reader, "STORAGE_URL")


def read_objects(reader: Reader, name: str) -> ObjectSettings | None:
    """Read the bucket that the variable `name` names, and the S3 settings."""
    url = reader.get(name, object_url, None)
    endpoint = reader.get("S3_ENDPOINT_URL", v.url_without_query, None)
    region = reader.get("S3_REGION", v.header_value, None)
    key_id = reader.get("S3_ACCESS_KEY_ID", v.header_value, None)
    secret = reader.get("S3_SECRET_ACCESS_KEY", v.header_value, None)
    if url and url.startswith("s3://"):
        for credential in ("S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY"):
            reader.require(credential, f"{name} needs it: write the access key for the bucket")
    return ObjectSettings(url, endpoint, region, key_id, secret) if url else None
