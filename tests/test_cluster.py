"""Two services on one database and one bucket, as clients see them, and what breaks between."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import config
from cache import Cache
from picture import ImageRequest
from storage.choose import Unusable, check_parts
from storage.local.folder import Folder
from storage.local.sqlite import SqliteState

from .conftest import (
    ADMIN,
    BROKEN,
    KEY,
    REFUSAL,
    Gunicorn,
    InProcess,
    MakeServer,
    Run,
    drawing,
    llm_settings,
    pollinations_settings,
    saying,
)
from .fronts import Nginx
from .objectstore import ObjectServer
from .postgresql import Postgres
from .proxy import Link
from .scripted import Gate, Got, Say, ScriptedServer, png, send_and_leave, wait_until

HIT = "PromptImageProxy; hit"
BLOG = "access-key-of-the-blog"
# Whatever is down: an answer comes within this time, and all is well again after the other.
IN_TIME, BACK = 6.0, 2.0


class Machine:
    """A service with a folder of its own, and links of its own to the database and the bucket."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        folder.mkdir()
        self.cache = folder / "cache"
        database = urlsplit(environment["DATABASE_URL"])
        self.database = Link(database.port or 0)
        self.objects = Link(urlsplit(environment["S3_ENDPOINT_URL"]).port or 0)
        host = f"{database.username}@127.0.0.1:{self.database.port}"
        own = {"CACHE_DIR": str(self.cache), "S3_ENDPOINT_URL": self.objects.url}
        own["DATABASE_URL"] = database._replace(netloc=host).geturl()
        self.service = Gunicorn({**environment, **own}, folder / "gunicorn.log")
        self.picture = self.service.picture

    def copies(self) -> int:
        return len(list(self.cache.glob("*.png")))

    def close(self) -> None:
        for one in (self.service, self.objects, self.database):
            one.close()


class Cluster:
    """Machines that share a database, a bucket, a backend and an LLM."""

    def __init__(self, postgres: Postgres, objects: ObjectServer, folder: Path) -> None:
        self.postgres = postgres
        self.folder = folder
        self.backend, self.llm = ScriptedServer(), ScriptedServer()
        self.backend.say(drawing())
        self.llm.say(saying("better"))
        bucket = objects.bucket()
        self.environment = {
            "BACKEND_API_URLS": self.backend.url,
            "PROXY_ACCESS_KEY": KEY,
            "ACCESS_KEYS": json.dumps({"blog": {"key": BLOG, "per_day": 1}}),
            "ADMIN_TOKEN": ADMIN,
            "POLLINATIONS_ENABLED": "false",
            "WORKERS": "1",
            "DATABASE_URL": postgres.schema(),
            "STORAGE_URL": bucket.url,
            "S3_ENDPOINT_URL": str(bucket.endpoint_url),
            "S3_REGION": str(bucket.region),
            "S3_ACCESS_KEY_ID": str(bucket.access_key_id),
            "S3_SECRET_ACCESS_KEY": str(bucket.secret_access_key),
            **llm_settings(self.llm, optimise=True),
        }
        self.machines: list[Machine] = []
        self.one, self.other = self.start(), self.start()

    def start(self) -> Machine:
        machine = Machine(self.folder / str(len(self.machines)), self.environment)
        self.machines.append(machine)
        return machine

    def execute(self, statement: str) -> list[Any]:
        return self.postgres.execute(statement, url=self.environment["DATABASE_URL"])

    def forget(self) -> None:
        """Forget cooldowns and everything else that a test made the machines remember."""
        self.execute("DELETE FROM prompt_image_notes")

    def close(self) -> None:
        for machine in self.machines:
            machine.close()
        self.llm.close()
        self.backend.close()


@pytest.fixture(scope="module")
def running(
    postgres: Postgres, object_server: ObjectServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    with closing(Cluster(postgres, object_server, tmp_path_factory.mktemp("cluster"))) as made:
        yield made


@pytest.fixture
def cluster(running: Cluster) -> Iterator[Cluster]:
    """Two machines that run and remember nothing; the backend draws."""
    running.forget()
    running.backend.seen.clear()
    running.backend.say(drawing())
    yield running
    for machine in running.machines:
        machine.database.mend()
        machine.objects.mend()


def is_hit(got: Got) -> bool:
    return (got.status, got.headers["Cache-Status"]) == (200, HIT)


def has(machine: Machine, description: str) -> bool:
    return is_hit(machine.picture(description))


def is_unavailable(call: Callable[[], Got]) -> bool:
    """Return whether the answer is a 503 with a Retry-After, and in time."""
    began = time.monotonic()
    got = call()
    is_in_time = time.monotonic() - began < IN_TIME
    return got.status == 503 and bool(got.headers["Retry-After"]) and is_in_time


# --- one service --------------------------------------------------------------------------------


def test_200_identical_requests_over_two_machines_are_one_drawing(cluster: Cluster) -> None:
    cluster.backend.say(gate := Gate(drawing(png(shade=9))))
    with ThreadPoolExecutor(200) as pool:
        machines = [cluster.one, cluster.other] * 100
        asked = [pool.submit(machine.picture, "identical") for machine in machines]
        wait_until(lambda: cluster.backend.seen)
        gate.opened.set()
        answers = [one.result() for one in asked]
    assert {(got.status, got.body) for got in answers} == {(200, png(shade=9))}
    assert len(cluster.backend.seen) == 1
    # Each has a copy now, and needs the bucket no more.
    for machine in (cluster.one, cluster.other):
        assert machine.copies() >= 1
        machine.objects.cut()
        assert is_hit(machine.picture("identical"))


def test_deleted_picture_is_gone_on_every_machine(cluster: Cluster) -> None:
    assert cluster.one.picture("deleted").status == 200
    assert is_hit(cluster.other.picture("deleted"))
    assert cluster.other.service.delete(b'{"description": "deleted"}').status == 200
    assert cluster.one.picture("deleted", "HEAD").headers["Content-Length"] is None
    assert cluster.one.picture("deleted").headers["Cache-Status"].endswith("; detail=backend")
    assert len(cluster.backend.seen) == 2


def test_what_one_machine_notes_the_others_know(cluster: Cluster) -> None:
    one, other, backend = cluster.one, cluster.other, cluster.backend
    # The LLM's answer, for another size of the same prompt.
    cluster.llm.seen.clear()
    assert one.picture("shared", width=8).status == other.picture("shared", width=9).status == 200
    assert len(cluster.llm.seen) == 1
    # What a key has drawn today.
    assert one.picture("mine", key=BLOG).status == 200
    assert other.picture("too%20much", key=BLOG).status == 429
    # Which parameter the backend rejects.
    rejection = {"error": {"message": "Unknown parameter: 'seed'.", "param": "seed"}}
    backend.say(Say(rejection, 400), drawing())
    assert one.picture("learned").status == 200
    assert other.picture("learned%20too").status == 200
    assert "seed" not in backend.seen[-1].json
    # That moderation refused a prompt, that a backend failed, and that it cools down.
    backend.say(REFUSAL)
    refused = one.picture("rude")
    assert (refused.status, other.picture("rude").json["remembered"]) == (422, True)
    backend.say(BROKEN)
    assert one.picture("broken").status == 502
    calls = len(backend.seen)
    assert other.picture("broken").json["remembered"]
    assert len(backend.seen) == calls
    [known] = other.service.get("/status").json["backends"]
    assert (known["state"], known["why"]) == ("cooling", "down")


def test_repeated_order_joins_the_drawing_of_the_other_machine(cluster: Cluster) -> None:
    cluster.backend.say(gate := Gate(drawing()))

    def order(machine: Machine, **headers: str) -> Any:
        return machine.service.order({"prompt": "a cat"}, **headers).json["data"]

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(order, cluster.one)
        wait_until(lambda: cluster.backend.seen)
        again = pool.submit(order, cluster.other, **{"x-stainless-retry-count": "1"})
        counted = "SELECT count(*) FROM prompt_image_notes WHERE value LIKE '%\"turn\": 2%'"
        wait_until(lambda: cluster.execute(counted) == [(1,)])
        gate.opened.set()
        [one], [other] = first.result(), again.result()
        assert (one["seed"], one["b64_json"]) == (other["seed"], other["b64_json"])
    assert len(cluster.backend.seen) == 1


@pytest.fixture
def service(cluster: Cluster, tmp_path: Path) -> Iterator[InProcess]:
    """A third machine, whose clock a test sets."""
    environment = cluster.environment | {"CACHE_DIR": str(tmp_path / "ahead")}
    with closing(InProcess(environment)) as made:
        yield made


def test_clock_that_is_an_hour_off_changes_nothing(cluster: Cluster, service: InProcess) -> None:
    one, backend = cluster.one, cluster.backend
    service.ahead = 3600.0
    assert service.picture("ahead").status == 200
    assert is_hit(one.picture("ahead"))
    backend.say(BROKEN)
    for first, second in ((service, one), (one, service)):
        cluster.forget()
        assert first.picture(f"broken-{id(first)}").status == 502
        seen = len(backend.seen)
        again = second.picture(f"broken-{id(first)}")
        assert (again.json["remembered"], len(backend.seen)) == (True, seen)
        assert 1 <= int(again.headers["Retry-After"]) <= 2
    # One rejected picture cools the only backend on neither machine.
    cluster.forget()
    backend.say(Say({"error": {"message": "Invalid value"}}, 400))
    assert service.picture("rejected").status == 502
    assert one.service.get("/status").json["backends"][0]["state"] == "ready"
    backend.say(BROKEN)
    service.picture("failed")
    [known] = one.service.get("/status").json["backends"]
    assert (known["state"], known["ready_in"] <= 5) == ("cooling", True)


def test_limit_counts_the_day_of_the_database(cluster: Cluster, service: InProcess) -> None:
    service.ahead = 86400.0
    assert service.picture("today", key=BLOG).status == 200
    for machine in (service, cluster.one):
        got = machine.picture("more", key=BLOG)
        assert (got.status, int(got.headers["Retry-After"]) <= 86400) == (429, True)


def test_other_machine_takes_over_from_a_killed_one(cluster: Cluster) -> None:
    lost = cluster.start()
    cluster.backend.say(gate := Gate(drawing()))
    send_and_leave(lost.service.url, f"/prompt/taken%20over?key={KEY}")
    wait_until(lambda: cluster.backend.seen)
    with ThreadPoolExecutor(1) as pool:
        kept = pool.submit(cluster.one.picture, "taken%20over")
        locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        wait_until(lambda: cluster.postgres.execute(locks) == [(1,)])
        lost.service.close()
        killed = time.monotonic()
        wait_until(lambda: len(cluster.backend.seen) == 2)
        assert time.monotonic() - killed < 1
        gate.opened.set()
        assert kept.result().status == 200


# --- faults -------------------------------------------------------------------------------------


def test_database_that_restarts_is_used_again_at_once(cluster: Cluster) -> None:
    one, other, backend = cluster.one, cluster.other, cluster.backend
    assert one.picture("lasting").status == 200
    backend.say(gate := Gate(drawing()))

    def fails(machine: Machine) -> None:
        wait_until(lambda: answer_of(machine, "new"))
        # The picture may have been deleted.
        assert is_unavailable(partial(machine.picture, "lasting"))
        assert is_unavailable(partial(machine.picture, "new"))
        assert machine.service.get("/status").json["status"] == "degraded"

    with ThreadPoolExecutor(3) as pool:
        drawn = pool.submit(one.picture, "under%20way")
        wait_until(lambda: len(backend.seen) == 2)
        [worker] = other.service.workers()
        cluster.postgres.stop(signal.SIGQUIT)
        # A worker that starts meanwhile waits for it as well.
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: other.service.workers() not in ([], [worker]))
        list(pool.map(fails, (one, other)))
        gate.opened.set()
        assert drawn.result().status == 200, "whoever waits gets it"
    cluster.postgres.start()
    for machine in (one, other):
        wait_until(partial(has, machine, "lasting"), BACK)
    assert len(backend.seen) == 2


def answer_of(machine: Machine, description: str) -> Got | None:
    """Return the answer to a request, or None if it was cut off: its worker has gone."""
    try:
        return machine.picture(description)
    except OSError:
        return None


def test_machine_cut_off_from_the_database_draws_nothing_new(cluster: Cluster) -> None:
    one, other, backend = cluster.one, cluster.other, cluster.backend
    assert one.picture("held").status == 200
    backend.say(gate := Gate(drawing(png(shade=7))))
    [worker] = one.service.workers()
    threads = one.service.threads_of(worker)
    with ThreadPoolExecutor(4) as pool:
        drawn = pool.submit(one.picture, "divided")
        wait_until(lambda: len(backend.seen) == 2)
        one.database.freeze()
        hit = pool.submit(is_unavailable, lambda: one.picture("held"))
        miss = pool.submit(is_unavailable, lambda: one.picture("unknown"))
        waiting = pool.submit(other.picture, "divided")
        began = time.monotonic()
        gate.opened.set()
        assert drawn.result().body == png(shade=7), "whoever waits gets it"
        assert time.monotonic() - began < IN_TIME
        assert hit.result()
        assert miss.result()
        one.database.mend()
        wait_until(lambda: has(one, "held"), BACK)
        assert waiting.result().body == png(shade=7)
    # The lock is lost with its connection: at worst, the other machine draws the picture as well.
    assert len(backend.seen) <= 3
    wait_until(lambda: one.service.threads_of(worker) <= threads + 4)


def test_nginx_hides_a_cut_off_machine(cluster: Cluster, opened: list[Any], tmp_path: Path) -> None:
    one, other, backend = cluster.one, cluster.other, cluster.backend
    opened.append(front := Nginx(tmp_path / "nginx", one.service.url, other.service.url))
    front.picture("before")
    one.database.freeze()
    wait_until(lambda: one.service.get("/status").status == 503)
    # An order is not repeated by nginx: its client sees the 503.
    headers, body = {"Authorization": f"Bearer {KEY}"}, b'{"prompt": "order", "seed": 1}'
    order = partial(front.get, method="POST", headers=headers, body=body)
    with ThreadPoolExecutor(16) as pool:
        pictures = pool.map(front.picture, [f"cut-off-{n}" for n in range(6)])
        heads = pool.map(partial(front.picture, method="HEAD"), ["before"] * 2)
        states = pool.map(front.get, ["/status"] * 4)
        orders = pool.map(order, ["/v1/images/generations"] * 4)
        assert {got.status for got in (*pictures, *heads, *states)} == {200}
    assert {got.status for got in orders} == {200, 503}
    assert len(backend.seen) == 8


def test_second_try_of_nginx_pays_for_nothing(
    cluster: Cluster, server: MakeServer, opened: list[Any], tmp_path: Path
) -> None:
    fallback = server()
    fallback.say(Say(png()), BROKEN)
    environment = cluster.environment | pollinations_settings(fallback)
    machines = [InProcess(environment | {"CACHE_DIR": str(tmp_path / name)}) for name in ("a", "b")]
    opened += machines
    opened.append(front := Nginx(tmp_path / "nginx", *(machine.url for machine in machines)))
    cluster.backend.say(Say("", 401))  # avoided for a minute
    assert front.picture("first").status == 200
    got = front.picture("second")
    assert (got.status, got.json.get("remembered")) == (503, True), "asked a second machine"
    assert (len(cluster.backend.seen), len(fallback.seen)) == (1, 2)


def test_hanging_bucket_stops_no_hits_and_no_money_is_spent(cluster: Cluster) -> None:
    one, other, backend = cluster.one, cluster.other, cluster.backend
    assert one.picture("near").status == other.picture("far").status == 200
    one.objects.freeze()
    with ThreadPoolExecutor(120) as pool:
        waiting = [pool.submit(is_unavailable, lambda: one.picture("far")) for _ in range(120)]
        wait_until(lambda: one.objects.requests[-1].startswith("GET"))
        began = time.monotonic()
        assert is_hit(one.picture("near"))
        assert time.monotonic() - began < 1
        assert all(request.result() for request in waiting)
    assert is_unavailable(lambda: one.picture("new"))
    assert one.service.get("/status").json["status"] == "degraded"
    assert len(backend.seen) == 2
    one.objects.mend()
    wait_until(lambda: has(one, "far"), IN_TIME)
    wait_until(lambda: one.picture("new").status == 200, IN_TIME)


def test_picture_being_drawn_elsewhere_is_not_deleted(cluster: Cluster) -> None:
    one, other, backend = cluster.one, cluster.other, cluster.backend
    backend.say(gate := Gate(drawing()))
    body = b'{"description": "contested"}'
    with ThreadPoolExecutor(1) as pool:
        drawn = pool.submit(one.picture, "contested")
        wait_until(lambda: backend.seen)
        assert is_unavailable(lambda: other.service.delete(body))
        gate.opened.set()
        assert drawn.result().status == 200
    assert is_hit(other.picture("contested"))
    assert one.service.delete(body).status == 200
    assert other.picture("contested", "HEAD").headers["Content-Length"] is None


# --- commands -----------------------------------------------------------------------------------


def test_cache_moves_into_the_cluster_and_out(cluster: Cluster, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "single"
    with closing(Cache(SqliteState(folder), Folder(folder))) as single:
        wanted = ImageRequest("moved")
        single.put(wanted.key, png(shade=3), "image/png", request=wanted)

    def command(*arguments: str) -> tuple[str, str]:
        result = run("cache", *arguments, **cluster.environment)
        return result.stdout, result.stderr

    counts, cache = command("import", str(folder))
    assert counts == "1 imported, 0 there, 0 unusable\n"
    assert "\nCache: postgresql://127.0.0.1:" in cache
    for machine in cluster.one, cluster.other:
        assert machine.picture("moved").body == png(shade=3)
    # As after an older backup of the database was restored.
    cluster.execute("DELETE FROM prompt_image_entries WHERE prompt = 'moved'")
    assert command("adopt")[0].endswith("adopted\n")
    assert is_hit(cluster.other.picture("moved"))
    assert " 0 there, 0 unusable\n" in command("export", str(tmp_path / "new"))[0]
    [moved] = (tmp_path / "new").glob(f"{wanted.key}-*")
    assert moved.read_bytes() == png(shade=3)
    assert cluster.backend.seen == []


# --- the start ----------------------------------------------------------------------------------


def test_unusable_server_is_a_fault_of_a_setting(cluster: Cluster, server: MakeServer) -> None:
    schema = cluster.environment["DATABASE_URL"].partition("?")[2]
    cluster.postgres.execute("CREATE ROLE reader LOGIN IN ROLE pg_read_all_data")
    refusing = server()
    refusing.say(Say("<Error><Code>AccessDenied</Code></Error>", 403))
    stranger, reader = cluster.postgres.url("guarded:hidden"), cluster.postgres.url("reader")
    wrong = {"DATABASE_URL": stranger, "S3_ENDPOINT_URL": refusing.url}
    assert faults_of(cluster, wrong) == ["DATABASE_URL", "S3_ACCESS_KEY_ID"]
    wrong = {"DATABASE_URL": reader + schema, "STORAGE_URL": "s3://nothing-there"}
    assert faults_of(cluster, wrong) == ["DATABASE_URL", "STORAGE_URL"]
    assert faults_of(cluster, {"STORAGE_URL": "az://without-credentials"}) == ["STORAGE_URL"]


def faults_of(cluster: Cluster, wrong: dict[str, str]) -> list[str]:
    """Return the settings that a start with `wrong` ones blames."""
    settings = {"CACHE_DIR": str(cluster.folder / "unused"), **wrong}
    with pytest.raises(Unusable) as caught:
        check_parts(config.parse(cluster.environment | settings), ("state", "store"))
    assert "hidden" not in str(caught.value)
    assert "az:" not in str(wrong) or "set AZURE_STORAGE_ACCOUNT_NAME" in str(caught.value)
    return [fault.partition(":")[0] for fault in caught.value.faults]
