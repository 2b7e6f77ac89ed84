"""PostgreSQL alone: what is said about a wrong DATABASE_URL, migration, and the server's faults."""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import psycopg
import pytest

from storage import IncompatibleSchema, LockTimeout, Row, Totals, Unavailable
from storage.cluster.postgres import CONNECTIONS, PostgresState
from storage.cluster.server import BoundedConnection
from storage.state import State

from .postgresql import Postgres
from .proxy import Link
from .scripted import free_port, wait_until
from .states import Word, row_of

Open = Callable[..., PostgresState]

KEY = "a" * 64
SESSIONS = "FROM pg_stat_activity WHERE application_name = 'prompt-image-proxy'"
# What a call may take in tests of a server that does not answer; the time within which the
# service goes on once the server is back; and that within which every call ends.
SHORT, BACK, IN_TIME = 0.5, 2.0, 6.0


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.schema()


@pytest.fixture
def open_state(url: str) -> Iterator[Open]:
    with contextlib.ExitStack() as stack:

        def open_one(url: str = url, seconds: float = 5.0) -> PostgresState:
            state = PostgresState(url, seconds=seconds)
            stack.callback(state.close)
            return state

        yield open_one


@pytest.fixture
def state(open_state: Open) -> PostgresState:
    return open_state()


@pytest.fixture
def link(postgres: Postgres) -> Iterator[Link]:
    with contextlib.closing(Link(postgres.port)) as made:
        yield made


def picture(number: int) -> Row:
    return row_of(f"picture {number}")


def works(state: State) -> bool:
    with contextlib.suppress(Unavailable):
        state.totals()
        with state.hold("f" * 64, 0.0):
            return True
    return False


def seconds_of(call: Callable[[], object]) -> float:
    """Return how long a call took that failed."""
    began = time.monotonic()
    with pytest.raises(Unavailable):
        call()
    return time.monotonic() - began


def sessions(postgres: Postgres) -> int:
    """Return how many connections there are from the service."""
    [(count,)] = postgres.execute(f"SELECT count(*) {SESSIONS}")
    return int(count)


def terminate_all(postgres: Postgres) -> None:
    postgres.execute(f"SELECT pg_terminate_backend(pid, 1000) {SESSIONS}")


# --- a wrong DATABASE_URL


def test_wrong_database_url_is_explained_without_the_password(postgres: Postgres) -> None:
    postgres.execute(
        "CREATE ROLE guarded LOGIN PASSWORD 'right'",
        "CREATE ROLE poor LOGIN",
        "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0",
    )
    url, here = postgres.url("postgres:hush"), f"127.0.0.1:{postgres.port}"
    for wrong, reason in [
        (postgres.url("guarded:hush"), "user or the password"),
        (postgres.url("guarded"), "user or the password"),
        (postgres.url("nobody:hush"), "user or the password"),
        (postgres.url("poor:hush"), "GRANT CREATE"),
        (postgres.url("postgres:hush", port=free_port()), "no server answers"),
        (url.replace(here, "host.invalid"), "no server answers"),
        (url.replace("/postgres?", "/missing?"), "CREATE DATABASE"),
        (url.replace("/postgres?", "/latin?"), "ENCODING 'UTF8'"),
        (postgres.url("postgres:hush", sslmode="require"), "does not support SSL"),
        (postgres.url("postgres:hush", options="-csearch_path=none"), "no schema"),
        (postgres.url("postgres:hush", options="-chush=1"), "unrecognized configuration"),
        (url.replace("hush", "hu%sh"), "invalid percent-encoded"),
    ]:
        with pytest.raises(Unavailable, match=reason) as caught:
            (state := PostgresState(wrong)).check()
        assert "hu" not in f"{caught.value} {state}", wrong
        assert "\n" not in str(caught.value), wrong


def test_silent_host_is_explained_in_time(postgres: Postgres, link: Link) -> None:
    link.freeze()
    began = time.monotonic()
    with pytest.raises(Unavailable, match="no server answers"):
        PostgresState(postgres.url(port=link.port)).check()
    assert time.monotonic() - began < 5


# --- tables


def test_tables_are_made_and_migrated_once(open_state: Open, postgres: Postgres, url: str) -> None:
    """Beside those of others, by whichever of several machines comes first."""
    postgres.execute("CREATE TABLE entries (x int)", "CREATE TABLE notes (x int)", url=url)
    for _ in range(2):
        states = [open_state() for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(PostgresState.check, states))
        states[0].store(picture(1))
        assert [state.find(picture(1).key) for state in states] == [picture(1)] * 4
        older = "ADD COLUMN machine TEXT, DROP COLUMN drawn_width, DROP COLUMN drawn_height"
        version = "UPDATE prompt_image_schema_version SET version = 2"
        postgres.execute(f"ALTER TABLE prompt_image_entries {older}", version, url=url)
    open_state().check()
    with pytest.raises(psycopg.errors.UndefinedColumn):
        postgres.execute("SELECT machine FROM prompt_image_entries", url=url)


def test_newer_tables_are_refused(open_state: Open, postgres: Postgres, url: str) -> None:
    open_state().check()
    postgres.execute("UPDATE prompt_image_schema_version SET version = 99", url=url)
    with pytest.raises(IncompatibleSchema, match="DATABASE_URL"):
        open_state().check()
    with pytest.raises(Unavailable, match="newer version"):
        open_state(seconds=SHORT).totals()


def test_nothing_is_open_before_and_after(state: PostgresState, postgres: Postgres) -> None:
    threads = set(threading.enumerate())
    state.check()
    wait_until(lambda: sessions(postgres) == 0 and set(threading.enumerate()) == threads)
    assert works(state)
    assert sessions(postgres) > 1
    state.close()
    wait_until(lambda: sessions(postgres) == 0 and set(threading.enumerate()) == threads)


# --- rows and notes


def test_writers_never_deadlock_or_miscount(open_state: Open, postgres: Postgres, url: str) -> None:
    states = [open_state(), open_state()]
    rows = [picture(number) for number in range(40)]

    def work(number: int) -> None:
        state, mine = states[number % 2], random.Random(number).sample(rows, len(rows))
        for _ in range(5):
            state.add(mine)
            state.touch({row.key: 1.0 for row in mine})
            state.store(mine[0])
            state.remove(mine[number:])
            state.expire()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    left = len(states[0].newest("", 100, None))
    assert states[0].totals() == Totals(left, 100 * left)
    states[0].expire()
    assert postgres.execute("SELECT * FROM prompt_image_totals", url=url) == [(left, 100 * left)]


def test_text_that_postgresql_cannot_store_is_replaced(state: PostgresState) -> None:
    row = replace(picture(1), revised="a\0b\ud800c")
    state.store(row)
    assert state.find(row.key) == replace(row, revised="a?b?c")
    assert state.find("\0" * 64) is None


# --- locks


def test_server_is_told_to_notice_lost_machines(url: str) -> None:
    with contextlib.closing(
        BoundedConnection.connect(url, seconds=5.0, report=print)
    ) as connection:
        names = ("idle", "interval", "count")
        found = [connection.execute(f"SHOW tcp_keepalives_{name}").fetchone() for name in names]
    assert found == [("5",), ("2",), ("3",)]


def test_locks_end_with_their_connection(
    state: PostgresState, open_state: Open, postgres: Postgres
) -> None:
    other = open_state()
    with state.hold(KEY, 0.0), state.hold("b" * 64, 0.0):
        terminate_all(postgres)
        with other.hold(KEY, 1.0), pytest.raises(LockTimeout), state.hold(KEY, 0.0):
            pass
        stack = contextlib.ExitStack()
        stack.enter_context(other.hold("b" * 64, 1.0))
    with stack, pytest.raises(LockTimeout), state.hold("b" * 64, 0.0):
        pass
    with state.hold(KEY, 0.0):
        pass


# --- faults of the server


def use(state: State, number: int) -> None:
    key = f"{number:064x}"
    with state.hold(key, 0.0):
        state.remember(Word("x"), key, 60)


def test_lost_connections_fail_no_call(state: PostgresState, postgres: Postgres) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(partial(use, state), range(200)))
        assert 1 < sessions(postgres) <= CONNECTIONS + 1
        for _ in range(3):
            running = [pool.submit(use, state, number) for number in range(400)]
            terminate_all(postgres)
            for done in running:
                done.result()


def test_restart_fails_calls_only_while_it_lasts(state: PostgresState, postgres: Postgres) -> None:
    use(state, 1)
    postgres.stop()
    with ThreadPoolExecutor(16) as pool:
        assert all(taken < IN_TIME for taken in pool.map(seconds_of, [state.totals] * 16))
    postgres.start()
    wait_until(lambda: works(state), BACK)
    use(state, 2)


def test_partition_ends_every_call_in_time(
    open_state: Open, postgres: Postgres, url: str, link: Link
) -> None:
    state = open_state(url.replace(f":{postgres.port}/", f":{link.port}/"), SHORT)
    elsewhere = open_state()
    with ThreadPoolExecutor(12) as pool:
        began = time.monotonic()
        with state.hold(KEY, 0.0):
            assert works(state)
            link.freeze()
            for seconds in pool.map(lambda _: seconds_of(state.totals), range(12)):
                assert seconds < SHORT + 0.3
            probe = pool.submit(seconds_of, state.totals)
            assert min(seconds_of(state.totals) for _ in range(20)) < 0.1, "others fail at once"
            assert probe.result() < SHORT + 0.3
        # Neither a release nor a lock makes a caller wait once more.
        assert seconds_of(lambda: state.hold(KEY, 5.0).__enter__()) < SHORT + 0.3
        assert time.monotonic() - began < 4 * SHORT + 0.5
    link.mend()
    wait_until(lambda: works(state), BACK)
    with elsewhere.hold(KEY, 1.0):
        pass


def test_slow_statement_fails_alone(open_state: Open, url: str) -> None:
    state = open_state(seconds=2 * SHORT)
    state.store(picture(1))
    with psycopg.connect(url) as other, ThreadPoolExecutor(1) as pool:
        other.execute("UPDATE prompt_image_entries SET used = 0")
        running = pool.submit(state.touch, {picture(1).key: 1.0})
        assert state.find(picture(1).key)
        with pytest.raises(Unavailable, match="statement timeout"):
            running.result()
        assert state.totals() == Totals(1, 100)


def test_read_only_server_is_read(open_state: Open, state: PostgresState, url: str) -> None:
    state.store(picture(1))
    standby = open_state(f"{url}%20-cdefault_transaction_read_only%3Don")
    with pytest.raises(Unavailable, match="read-only"):
        standby.check()
    with pytest.raises(Unavailable, match="read-only"):
        standby.store(picture(2))
    assert standby.find(picture(1).key) == picture(1)
