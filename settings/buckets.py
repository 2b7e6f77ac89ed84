"""Settings of an object store: for pictures, and for the image host `s3`."""

from __future__ import annotations

from dataclasses import dataclass, field

from settings.reader import Reader
from settings.table import Table


@dataclass(frozen=True, slots=True)
class ObjectSettings:
    """A bucket and a prefix in it, as a URL; the rest is for S3 and compatible stores alone."""

    url: str
    endpoint_url: str | None = field(default=None, repr=False)
    region: str | None = None
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)


def make_objects(name: str, url: str | None, table: Table, reader: Reader) -> ObjectSettings | None:
    """Return the bucket at `url`, the value of the variable `name`."""
    if not url:
        return None
    if url.startswith("s3://"):
        for credential in ("S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY"):
            reader.require(credential, f"{name} needs it: write the access key for the bucket")
    return ObjectSettings(
        url,
        table.s3_endpoint_url,
        table.s3_region,
        table.s3_access_key_id,
        table.s3_secret_access_key,
    )
