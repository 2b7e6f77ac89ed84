"""A real PostgreSQL server for tests, on loopback."""

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psycopg

from .scripted import free_port, wait_until

MISSING = "PostgreSQL is not installed: apt-get install postgresql, or put initdb on PATH"

_CONFIGURATION = """
fsync = off
full_page_writes = off
shared_buffers = 16MB
max_connections = 200
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
"""
# Those who connect as `guarded` need a password.
_ACCESS = """
host all guarded 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
"""


def find_program(name: str) -> Path | None:
    """Return a program of the newest PostgreSQL on this machine."""
    debian = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"))]
    found = shutil.which(name, path=os.pathsep.join([*reversed(debian), os.environ["PATH"]]))
    return Path(found) if found else None


class Postgres:
    """A server with one database; each `schema()` is as good as a database of its own."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self.port = free_port()
        self._data = self.folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._schemas = itertools.count()
        # PostgreSQL refuses to run as root.
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        options = "--username=postgres --auth=trust --encoding=UTF8 --locale=C --no-sync"
        command = [str(find_program("initdb")), f"--pgdata={self._data}", *options.split()]
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder, **self._user)
        with (self._data / "postgresql.conf").open("a") as file:
            file.write(f"{_CONFIGURATION}port = {self.port}\n")
        (self._data / "pg_hba.conf").write_text(_ACCESS)
        self.start()

    def start(self) -> None:
        command = [str(find_program("postgres")), "-D", str(self._data)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, **self._user
            )
        wait_until(self._answers, what="PostgreSQL")

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop: sessions are ended first (SIGINT), or it is as after a crash (SIGQUIT)."""
        if self._process:
            self._process.send_signal(how)
            self._process.wait(20)
            self._process = None

    def close(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder)

    def url(self, user: str = "postgres", port: int | None = None, **parameters: str) -> str:
        """Return a URL of the database; `user` may have a password, as in `name:password`."""
        host = f"127.0.0.1:{port or self.port}"
        return f"postgresql://{user}@{host}/postgres?{urlencode(parameters, quote_via=quote)}"

    def schema(self, port: int | None = None) -> str:
        """Create an empty schema; return a URL of the database that leads to it."""
        name = f"test_{next(self._schemas)}"
        self.execute(f"CREATE SCHEMA {name}")
        return self.url(port=port, options=f"-csearch_path={name}")

    def execute(self, *statements: str, url: str | None = None) -> list[Any]:
        """Run statements, in the schema that `url` leads to; return the rows of the last."""
        with psycopg.connect(url or self.url(), autocommit=True) as connection:
            cursors = [connection.execute(statement) for statement in statements]
            return cursors[-1].fetchall() if cursors[-1].description else []

    def _answers(self) -> bool:
        assert self._process
        assert self._process.poll() is None, (self.folder / "log").read_text()
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True
