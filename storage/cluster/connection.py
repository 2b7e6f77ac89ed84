"""One connection to PostgreSQL: its types, its time limits and its settings."""

from __future__ import annotations

import math
import time
from typing import Any

import psycopg
from psycopg.abc import RV, PQGen
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.numeric import Int8Dumper
from psycopg.types.string import StrDumper

from storage import Unavailable

# For each address of each host, unless the URL says otherwise; libpq takes no less.
_CONNECT_SECONDS = 2
# The server drops the locks of a machine that lost its power or its network when these give up,
# after 11 s; its default is two hours.
_KEEPALIVES = "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3"


class _Text(StrDumper):
    """Text as PostgreSQL can store it: without NUL and halves of surrogate pairs."""

    def dump(self, obj: str) -> bytes:
        return obj.encode("utf-8", "replace").replace(b"\0", b"?")


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that waits for the server until `deadline` (monotonic), and no longer.

    The kernel's keepalives do not notice a server that is reachable but passes no bytes, as
    behind some proxies.
    """

    deadline = math.inf

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        # A statement is prepared once for each combination of types, and psycopg would send
        # small and large numbers as different ones.
        self.adapters.register_dumper(str, _Text)
        self.adapters.register_dumper(int, Int8Dumper)

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        left = max(0.0, self.deadline - time.monotonic())
        return super().wait(gen, interval, left if timeout is None else min(left, timeout))


def parameters(url: str, statement_seconds: float) -> dict[str, Any]:
    """Return what `Connection.connect` takes beside `url`; a statement ends after so long.

    Raises Unavailable for an invalid URL.
    """
    try:
        given = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        # Not `from` it: it quotes parts of the URL, which may be the password's.
        raise Unavailable(
            "DATABASE_URL is invalid: write postgresql://user:password@host/database, and after a ?"
            " only parameters that PostgreSQL knows"
        ) from None
    timeout = f"-c statement_timeout={statement_seconds * 1000:.0f}"
    return {
        "autocommit": True,
        "prepare_threshold": 0,
        "connect_timeout": given.get("connect_timeout", _CONNECT_SECONDS),
        "client_encoding": "utf8",
        "fallback_application_name": "prompt-image-proxy",
        "options": f"{given.get('options', '')} {timeout} {_KEEPALIVES}",
    }
