"""What an error of PostgreSQL means, for whoever set DATABASE_URL.

No sentence contains a password, a user, a host or what a statement was about.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors

from storage import Unavailable

UNREACHABLE = (
    "no server answers at the host and port in DATABASE_URL: correct them (a / or @ in the password"
    " is written %2F, %40), start PostgreSQL, or open the firewall"
)
# libpq reports failed connections without a code, in English.
_CONNECTING = (
    (
        r"password authentication failed|no password supplied|role .* does not exist",
        "the user or the password in DATABASE_URL is wrong: correct them",
    ),
    (
        r"database .* does not exist",
        "the database in DATABASE_URL does not exist: run CREATE DATABASE, or correct its name",
    ),
    (
        r"resolve host|Connection refused|No such file|timeout expired|timed out|unreachable",
        UNREACHABLE,
    ),
)
_REPORTED: tuple[tuple[type[psycopg.Error], str], ...] = (
    (
        errors.ReadOnlySqlTransaction,
        "the database is read-only: DATABASE_URL has to lead to the primary",
    ),
    (
        errors.InsufficientPrivilege,
        "the user in DATABASE_URL may not create or use our tables: run GRANT CREATE ON SCHEMA"
        " public TO that user, or make it the owner of the database",
    ),
)


def explain(error: psycopg.Error) -> str:
    """Return what is wrong: the commonest faults with what to do, others in the server's words."""
    for kind, sentence in _REPORTED:
        if isinstance(error, kind):
            return sentence
    text = str(error)
    for pattern, sentence in _CONNECTING:
        if not error.sqlstate and re.search(pattern, text):
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
