"""The PostgreSQL server: a pool of connections to it, and what happens while it is down.

Nothing is opened before the first call, so that processes can be forked until then.
"""

import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import psycopg
from psycopg.abc import RV, PQGen
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.numeric import Int8Dumper
from psycopg.types.string import StrDumper
from psycopg_pool import ConnectionPool, PoolTimeout

from storage import Unavailable
from storage.cluster.tables import ensure_tables
from storage.gate import Down, Gate, LastingFault

# By PostgreSQL's code or, for a failed connection, which has none, by libpq's English words.
_FAULTS = (
    ("^25006$", "the database is read-only: DATABASE_URL has to lead to the primary"),
    (
        "^42501$",
        "the user in DATABASE_URL may not create or use our tables: run GRANT CREATE ON SCHEMA"
        " public TO that user, or make it the owner of the database",
    ),
    (
        "password authentication failed|no password supplied|role .* does not exist",
        "the user or the password in DATABASE_URL is wrong: correct them",
    ),
    (
        "database .* does not exist",
        "the database in DATABASE_URL does not exist: run CREATE DATABASE, or correct its name",
    ),
    (
        "resolve host|Connection refused|No such file|timeout expired|timed out|unreachable",
        "no server answers at the host and port in DATABASE_URL: correct them (a / or @ in the"
        " password is written %2F, %40), start PostgreSQL, or open the firewall",
    ),
)


def explain(error: psycopg.Error) -> str:
    """Return what is wrong: the commonest faults with what to do, others in the server's words."""
    text = str(error)
    for pattern, sentence in _FAULTS:
        if re.search(pattern, error.sqlstate or text):
            return sentence
    # The host precedes the reason, values follow it in lines of their own, names are quoted.
    reason = text.partition("\n")[0].rpartition(" failed: ")[2].removeprefix("FATAL:").strip()
    return "PostgreSQL reports: " + re.sub(r"\"[^\"]*\"|'[^']*'", "…", reason)


@contextmanager
def explained() -> Iterator[None]:
    """Turn errors of PostgreSQL into Unavailable."""
    try:
        yield
    except psycopg.Error as error:
        raise Unavailable(explain(error)) from error


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


class BoundedConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that waits for the server until `deadline` (monotonic), and no longer."""

    deadline = math.inf

    @classmethod
    def connect(cls, conninfo: str = "", **kwargs: Any) -> Self:
        """Connect, and create or migrate the tables. Raises Unavailable.

        `seconds` is how long a call may take. `report` is told why this failed, or None: a pool
        tells only its log.
        """
        seconds, report = kwargs["seconds"], kwargs["report"]
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


log = logging.getLogger("prompt_image_proxy.database")

T = TypeVar("T")

# How long a call waits for a connection that is free; the first host of several may be dead.
_FREE_SECONDS = 3.0
# A shorter probe finds out sooner that the server is back.
_PROBE_SECONDS = 2.0
_SILENT = "the database does not answer in time"


@dataclass
class Server:
    """At most `size` connections to the database at `url`, each for at most `lifetime` seconds.

    A call ends within `seconds`. While the server is down, `gate` lets few calls through.
    """

    url: str = field(repr=False)
    size: int
    gate: Gate
    seconds: float
    lifetime: float = 3600.0
    _pool: ConnectionPool[BoundedConnection] | None = field(default=None, init=False)
    _mutex: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __post_init__(self) -> None:
        self._refusals = LastingFault(log, "A statement", "run")

    def run(self, work: Callable[[BoundedConnection], T]) -> T:
        """Return `work(connection)`. Raises Unavailable.

        `work` is run once more on a new connection if the first turns out to be lost, although the
        server may have done it the first time.
        """
        with self.gate.ask() as is_probe:
            seconds = min(_PROBE_SECONDS, self.seconds) if is_probe else self.seconds
            deadline = time.monotonic() + seconds
            with suppress(_Lost):
                return self._run(work, deadline)
            return self._run(work, deadline)

    def close(self) -> None:
        """Close every connection; the next call opens others."""
        with self._mutex:
            pool, self._pool = self._pool, None
        if pool:
            pool.close(timeout=0)

    def _run(self, work: Callable[[BoundedConnection], T], deadline: float) -> T:
        pool = self._open()
        try:
            with pool.connection(min(_FREE_SECONDS, deadline - time.monotonic())) as connection:
                connection.deadline = deadline
                result = work(connection)
        except PoolTimeout as error:
            raise Down(self.gate.reason or _SILENT) from error
        except psycopg.Error as error:
            # The server has answered, and not that it ends the session (57P01 …).
            if error.sqlstate and not error.sqlstate.startswith("57P"):
                self._refusals.begin(reason := explain(error))
                raise Unavailable(reason) from error
            pool.drain()  # the other connections may be as dead
            if time.monotonic() >= deadline:
                raise Down(_SILENT) from error
            raise _Lost(explain(error)) from error
        self._refusals.end()
        return result

    def _open(self) -> ConnectionPool[BoundedConnection]:
        with self._mutex:
            if self._pool is None:
                # It would log every request, and failures with the user's name.
                logging.getLogger("psycopg").setLevel(logging.CRITICAL)
                self._pool = ConnectionPool(
                    self.url,
                    connection_class=BoundedConnection,
                    kwargs={"seconds": self.seconds, "report": self.gate.note},
                    min_size=1,
                    max_size=self.size,
                    max_lifetime=self.lifetime,
                    # It would try again at ever longer intervals; a probe makes it try at once.
                    reconnect_timeout=_PROBE_SECONDS,
                    num_workers=1,
                    open=True,
                )
            return self._pool


class _Lost(Down):
    """The connection was lost; another one may do better."""
