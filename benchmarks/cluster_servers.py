"""What several machines share: a PostgreSQL server and an S3 server, on loopback.

They are those of the tests. The S3 server is moto's, which is written in Python and keeps
everything in memory: a real one answers later and takes none of this machine's CPU.
"""

import contextlib
from collections.abc import Iterator

from benchmarks.stack import Unmeasurable
from tests.objectstore import ObjectServer
from tests.postgresql import MISSING, Postgres, find_program


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """Run a PostgreSQL server. Raises Unmeasurable if none is installed."""
    if not find_program("initdb"):
        raise Unmeasurable(MISSING)
    with contextlib.closing(Postgres()) as server:
        yield server


@contextlib.contextmanager
def shared() -> Iterator[dict[str, str]]:
    """Run both; yield the settings that lead to a database and a bucket of their own."""
    with postgres() as database, contextlib.closing(ObjectServer()) as objects:
        bucket = objects.bucket()
        yield {
            "DATABASE_URL": database.schema(),
            "STORAGE_URL": bucket.url,
            "S3_ENDPOINT_URL": str(bucket.endpoint_url),
            "S3_REGION": str(bucket.region),
            "S3_ACCESS_KEY_ID": str(bucket.access_key_id),
            "S3_SECRET_ACCESS_KEY": str(bucket.secret_access_key),
        }
