"""One connection to PostgreSQL: how long it waits, its types, its settings."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self

import psycopg
from psycopg.abc import RV, PQGen
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.numeric import Int8Dumper
from psycopg.types.string import StrDumper

from storage import Unavailable
from storage.cluster.diagnosis import explained
from storage.cluster.tables import ensure_tables

# For each address of each host, unless the URL says otherwise; libpq takes no less.
_CONNECT_SECONDS = 2
# Of the time for a call, so that a slow statement does not look like a server that is down.
_STATEMENT_SHARE = 0.8
# The server drops the locks of a machine that lost its power or its network when these give up,
# after 11 s; its default is two hours.
_KEEPALIVES = "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3"


class _Text(StrDumper):
    """Text as PostgreSQL can store it: without NUL and halves of surrogate pairs."""

    def dump(self, obj: str) -> bytes:
        return obj.encode("utf-8", "replace").replace(b"\0", b"?")


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that waits for the server until `deadline` (monotonic), and no longer."""

    deadline = math.inf

    @classmethod
    def connect(cls, conninfo: str = "", **kwargs: Any) -> Self:
        """Connect, and create or migrate the tables. Raises Unavailable.

        `seconds` is how long a call may take. `report` is told why this failed, or None: a pool
        tells only its log.
        """
        seconds: float = kwargs["seconds"]
        report: Callable[[str | None], object] = kwargs["report"]
        try:
            with explained(), ExitStack() as stack:
                connection = super().connect(conninfo, **_parameters(conninfo, seconds))
                stack.callback(connection.close)
                connection.deadline = time.monotonic() + seconds
                ensure_tables(connection)
                stack.pop_all()
        except Unavailable as error:
            report(str(error))
            raise
        report(None)
        return connection

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        # A statement is prepared once for each combination of types, and psycopg would send
        # small and large numbers as different ones.
        self.adapters.register_dumper(str, _Text)
        self.adapters.register_dumper(int, Int8Dumper)

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        # tcp_user_timeout would not end the wait for a server, or a proxy in between, that
        # acknowledges every packet and answers none.
        left = max(0.0, self.deadline - time.monotonic())
        return super().wait(gen, interval, left if timeout is None else min(left, timeout))


def _parameters(url: str, seconds: float) -> dict[str, Any]:
    given = conninfo_to_dict(url)
    timeout = f"-c statement_timeout={seconds * _STATEMENT_SHARE * 1000:.0f}"
    return {
        "autocommit": True,
        "prepare_threshold": 0,
        "connect_timeout": given.get("connect_timeout", _CONNECT_SECONDS),
        "client_encoding": "utf8",
        "fallback_application_name": "prompt-image-proxy",
        "options": f"{given.get('options', '')} {timeout} {_KEEPALIVES}",
    }
