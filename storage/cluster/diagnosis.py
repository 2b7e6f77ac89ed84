"""What an error of PostgreSQL means, in a sentence for whoever set DATABASE_URL.

No sentence contains a password, a user, a host or what a statement was about.
"""

from __future__ import annotations

import re

import psycopg
from psycopg import errors
from psycopg_pool import PoolClosed

# libpq reports failed connections without a code, in English; the server's own words after
# "FATAL:" are in the language of its `lc_messages`.
_CONNECTING = (
    (
        r"password authentication failed|no password supplied|role .* does not exist",
        "the user or the password in DATABASE_URL is wrong: correct them",
    ),
    (
        r"database .* does not exist",
        "the database named in DATABASE_URL does not exist: run CREATE DATABASE, or correct the"
        " name",
    ),
    (
        r"failed to resolve host",
        "the host in DATABASE_URL cannot be resolved: correct its name, and write / and @ in the"
        " password as %2F and %40",
    ),
    (
        r"Connection refused|No such file or directory",
        "no server listens at the host and port in DATABASE_URL: correct them, or start"
        " PostgreSQL and let it listen there (listen_addresses)",
    ),
    (
        r"no encryption",
        "the server in DATABASE_URL accepts only TLS, or not this user from this machine: add"
        " sslmode=require to the URL, or a line to the server's pg_hba.conf",
    ),
    (
        r"pg_hba\.conf",
        "the server in DATABASE_URL accepts no connection of this user from this machine: add a"
        " line to its pg_hba.conf",
    ),
    (
        r"does not support SSL",
        "the server in DATABASE_URL has no TLS: turn on `ssl` there, or remove sslmode from the"
        " URL",
    ),
    (
        r"does not match host name",
        "the certificate of the server in DATABASE_URL is another host's: write the name it has,"
        " or sslmode=verify-ca",
    ),
    (
        r"certificate",
        "the certificate of the server in DATABASE_URL is not trusted: set sslrootcert in the"
        " URL to a file with its authority's certificate",
    ),
    (
        r"too many clients|connection slots|too many connections",
        "the server in DATABASE_URL has no connection left: raise its max_connections, or set"
        " fewer WORKERS, which take up to nine each",
    ),
    (
        r"timeout expired|timed out|unreachable",
        "the host and port in DATABASE_URL do not answer: correct them, or open the firewall",
    ),
    (
        r"invalid port|invalid integer value",
        "the port in DATABASE_URL is not a number up to 65535: correct it",
    ),
)
_REPORTED: tuple[tuple[type[psycopg.Error], str], ...] = (
    (PoolClosed, "the connection to the database was lost"),
    (
        errors.ReadOnlySqlTransaction,
        "the database is read-only: DATABASE_URL has to lead to the primary",
    ),
    (errors.QueryCanceled, "the database took too long"),
    (errors.DiskFull, "the database's disk is full"),
    (
        errors.InsufficientPrivilege,
        "the user in DATABASE_URL may not create or use our tables: run GRANT CREATE ON SCHEMA"
        " public TO that user, or make it the owner of the database",
    ),
    (
        errors.InvalidSchemaName,
        "the schema that DATABASE_URL leads to does not exist: run CREATE SCHEMA, or correct"
        " search_path",
    ),
)


def explain(error: psycopg.Error) -> str:
    """Return what is wrong and, where that is known, what to do about it."""
    for kind, sentence in _REPORTED:
        if isinstance(error, kind):
            return sentence
    text = str(error)
    for pattern, sentence in _CONNECTING:
        if not error.sqlstate and re.search(pattern, text):
            return sentence
    # The host precedes the reason, and names of users and the like are quoted.
    reason = text.partition("\n")[0].rpartition(" failed: ")[2].removeprefix("FATAL:").strip()
    return "PostgreSQL reports: " + re.sub(r'"[^"]*"', '"…"', reason)
