"""The files in deploy/ for nginx and other fronts, in the real programs before a real gunicorn."""

import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import config

from .conftest import KEY, MakeServer, drawing
from .fronts import CARDS, Apache, Caddy, Changes, Front, Haproxy, Nginx, Varnish, prompts, shipped
from .scripted import Gate, Got, Say, ScriptedServer, free_port, png, wait_until
from .studio import Studio

FRONTS = (Nginx, Caddy, Apache, Haproxy, Varnish)
every_front = pytest.mark.parametrize("kind", FRONTS, ids=lambda kind: kind.package)
SENTENCE = "The service is not available at the moment."
Start = Callable[..., Front]


@pytest.fixture(scope="module", params=FRONTS, ids=lambda kind: kind.package)
def shared(
    request: pytest.FixtureRequest,
    opened_studio: Studio,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Front]:
    """Each front before the service that tests share, for all that do not disturb it."""
    prefix = tmp_path_factory.mktemp("front") / "x"
    with closing(request.param(prefix, opened_studio.service.url)) as made:
        yield made


@pytest.fixture
def start(opened: list[Any], tmp_path: Path) -> Start:
    """Start a front of some kind before a server: `start(Caddy, server.url, changes)`."""

    def start(kind: type[Front], url: str, changes: Changes = ()) -> Front:
        opened.append(made := kind(tmp_path / kind.package, url, changes=changes))
        return made

    return start


# --- what passes unchanged


def test_every_prompt_passes_unchanged(shared: Front, studio: Studio) -> None:
    for sent, wanted in prompts():
        assert shared.picture(sent).status == 200, sent
        assert studio.backend.seen[-1].json["prompt"] == wanted


@pytest.mark.parametrize("character", ["红", "🍎"])
def test_4000_characters_of_any_script_pass(shared: Front, studio: Studio, character: str) -> None:
    assert shared.picture(quote(character * 4000)).status == 200
    assert studio.backend.seen[-1].json["prompt"] == character * 4000


def test_ranges_and_etags_work_cached_or_not(shared: Front, studio: Studio) -> None:
    studio.backend.say(drawing(data := png(size=5000)))

    def ask(**headers: str) -> Got:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return shared.get(f"/prompt/ranges?key={KEY}", headers=sent)

    for _ in range(2):
        part = ask(Range="bytes=10-19", Accept_Encoding="gzip")
        assert (part.status, part.body) == (206, data[10:20])
        assert part.headers["Content-Range"] == "bytes 10-19/5000"
        assert not {"X-Accel-Expires", "Content-Encoding"} & {*part.headers}
        assert part.headers["ETag"].startswith('"')
        same = ask(If_None_Match=part.headers["ETag"])
        assert (same.status, same.body) == (304, b"")
        assert ask(If_None_Match='"another"').body == data
        assert ask(Range="bytes=5000-").status == 416
    assert len(studio.backend.seen) == 1


def test_head_never_draws(shared: Front, studio: Studio) -> None:
    for _ in range(2):
        cold = shared.picture("head", method="HEAD")
        assert (cold.status, cold.body) == (200, b"")
        assert cold.headers["Cache-Status"] == "PromptImageProxy; fwd=miss"
    assert studio.backend.seen == []
    drawn = shared.picture("head")
    hot = shared.picture("head", method="HEAD")
    assert (hot.headers["ETag"], hot.body) == (drawn.headers["ETag"], b"")


@pytest.mark.parametrize("accept", ["image/*", "application/json"])
def test_errors_pass_as_cards_and_json(shared: Front, studio: Studio, accept: str) -> None:
    for target in ("/prompt/x?key=wrong", f"/prompt/x?key={KEY}&width=0"):
        got, direct = (
            one.get(target, headers={"Accept": accept}) for one in (shared, studio.service)
        )
        assert (got.status, got.body) == (direct.status, direct.body)
        vary, expected = (one.headers["Vary"].replace(" ", "") for one in (got, direct))
        assert vary == expected  # Apache leaves out the spaces
        for name in ("Content-Type", "Cache-Control", "Content-Security-Policy"):
            assert got.headers[name] == direct.headers[name]


def test_app_sees_the_host_and_no_forged_headers(shared: Front) -> None:
    headers = {
        "Host": "pics.example.org:8443",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "gopher",
    }
    signed = shared.sign({"description": "x"}, **headers)
    assert signed.json["url"].startswith("http://pics.example.org:8443/prompt/x?")


@every_front
def test_no_log_contains_a_query(kind: type[Front], start: Start, backend: ScriptedServer) -> None:
    backend.say(Say("drawn", headers={"Connection": "close"}))
    service = start(kind, backend.url)
    headers = {"Authorization": f"Bearer {KEY}", "Referer": f"http://x/?key={KEY}"}
    service.picture("a%20red%20apple", seed=7)
    service.get("/prompt/b", headers=headers)
    service.picture("c", key="a-wrong-key")
    backend.close()
    assert service.get(f"/prompt/d?key={KEY}", headers=headers).status == service.down
    service.close()
    for secret in (KEY, "a-wrong-key", "key=", "seed=", "Bearer"):
        assert secret not in service.logged(), secret


def test_haproxy_speaks_tls_and_redirects_to_it(
    start: Start, studio: Studio, certificates: tuple[Path, Path]
) -> None:
    authority, certificate = certificates
    changes = (
        (
            "# bind :443 ssl crt /etc/haproxy/certs/",
            f"bind 127.0.0.1:{(port := free_port())} ssl crt {certificate}",
        ),
        ("# http-request redirect", "http-request redirect"),
    )
    plain = start(Haproxy, studio.service.url, changes)
    curl = ["curl", "--silent", "--http2", "--cacert", str(authority), "--output", "/dev/null"]
    curl += ["--write-out", "%{http_version} %{http_code}"]
    url = f"https://127.0.0.1:{port}/prompt/{quote('🍎' * 4000)}?key={KEY}"
    assert subprocess.run([*curl, url], capture_output=True, text=True).stdout == "2 200"
    moved = plain.get("/prompt/a%2Fb//c?key=k")
    assert (moved.status, moved.headers["Location"].partition("/prompt/")[2]) == (
        301,
        "a%2Fb//c?key=k",
    )
    assert plain.get("/.well-known/acme-challenge/x").status == 503  # certbot does not run


# --- time


@every_front
def test_front_waits_longer_than_a_drawing_may_take(kind: type[Front]) -> None:
    least = {"BACKEND_API_URLS": "http://backend.test", "PROXY_ACCESS_KEY": "key"}
    deadline = config.parse(least).generation_deadline
    for line in kind.limits:
        (seconds,) = re.findall(r"\d+", line)
        assert line in shipped(kind.file)
        assert int(seconds) > deadline


@every_front
def test_no_other_limit_ends_a_drawing(kind: type[Front], start: Start, server: MakeServer) -> None:
    """The file's limits of an answer are the ones that count: shortened, they end it."""
    slow = server()
    slow.say(gate := Gate(Say("drawn")))
    service = start(kind, slow.url, [(one, one.replace("210", "1")) for one in kind.limits])
    asked = time.monotonic()
    if kind.limits:
        assert service.get("/prompt/x").status in (502, 503, 504)
        assert time.monotonic() - asked >= 1
    gate.opened.set()
    assert service.get("/prompt/x").body == b"drawn"


def test_caddy_limits_the_request_and_not_the_drawing(start: Start, server: MakeServer) -> None:
    slow = server()
    slow.say(gate := Gate(Say("drawn")))
    limits = (("read_header 10s", "read_header 1s"), ("read_body 20s", "read_body 1s"))
    service = start(Caddy, slow.url, limits)
    opening = threading.Timer(1.5, gate.opened.set)
    opening.start()
    assert service.get("/prompt/x").body == b"drawn"
    opening.join()


# --- while the app is down


@every_front
def test_service_that_is_down_is_a_card_or_json(kind: type[Front], start: Start) -> None:
    service = start(kind, f"http://127.0.0.1:{(port := free_port())}")
    picture = {"Accept": "image/avif,image/webp,image/png,image/*;q=0.8"}
    for headers, name in (
        ({"Accept": "*/*"}, None),
        (picture, "later.en.png"),
        (picture | {"Accept-Language": "zh-CN,zh;q=0.9"}, "later.zh.png"),
    ):
        got = service.get(f"/prompt/x.png?key={KEY}", headers=headers)
        assert got.status == kind.down
        assert (got.headers["Cache-Control"], got.headers["Retry-After"]) == ("no-store", "5")
        assert got.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
        if name:
            assert got.headers["Content-Type"] == "image/png"
            assert got.body == (CARDS / name).read_bytes()
        else:
            assert got.headers["Content-Type"] == "application/problem+json"
            assert (got.json["status"], got.detail) == (kind.down, SENTENCE)
            shown = f"{got.headers}{got.body.decode()}"
            assert str(port) not in shown
            assert KEY not in shown


# --- Varnish's cache


@pytest.fixture(scope="module")
def caching(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Varnish, ScriptedServer]]:
    """Varnish before a server whose answers may be cached for a second; one for all tests."""
    prefix = tmp_path_factory.mktemp("caching") / "x"
    with closing(ScriptedServer()) as server, closing(Varnish(prefix, server.url)) as front:
        yield front, server


RELEASED = {"X-Accel-Expires": "1", "ETag": '"a"', "Connection": "close"}


@pytest.fixture
def varnish(caching: tuple[Varnish, ScriptedServer]) -> Varnish:
    return caching[0]


@pytest.fixture
def released(caching: tuple[Varnish, ScriptedServer]) -> ScriptedServer:
    server = caching[1]
    server.seen.clear()
    server.say(Say("cached", headers=RELEASED))
    return server


def test_varnish_caches_for_nginx_cache_seconds(varnish: Varnish, released: ScriptedServer) -> None:
    got = [varnish.picture("seconds") for _ in range(5)]
    assert {one.body for one in got} == {b"cached"}
    assert "X-Accel-Expires" not in got[0].headers
    released.say(Say("", 304, RELEASED | {"X-Accel-Expires": "600"}))
    wait_until(lambda: varnish.picture("seconds").body == b"cached" and len(released.seen) > 1)
    assert released.seen[-1].headers["If-None-Match"] == '"a"'
    assert varnish.picture("seconds").body == b"cached"
    assert len(released.seen) < 5


def test_varnish_never_hides_an_error_of_the_app(
    varnish: Varnish, released: ScriptedServer
) -> None:
    for status in (statuses := (401, 500, 502, 503, 504)):
        assert varnish.picture(str(status)).body == b"cached"
    released.say(lambda seen: Say("", int(seen.last_segment)))
    expected = list(statuses)
    wait_until(lambda: [varnish.picture(str(status)).status for status in statuses] == expected)
    assert [varnish.picture(str(status)).status for status in statuses * 3] == expected * 3


def test_varnish_serves_its_cache_while_the_app_is_down(start: Start, server: MakeServer) -> None:
    (app := server()).say(Say("cached", headers=RELEASED))
    service = start(Varnish, app.url)
    service.picture("x")
    app.close()
    wait_until(lambda: int(service.picture("x").headers["Age"]) > 1)  # for how long it is fresh
    assert service.picture("x").body == b"cached"
    assert service.picture("y").status == 503


def test_varnish_never_shares_an_answer_between_keys(
    varnish: Varnish, released: ScriptedServer
) -> None:
    headers = RELEASED | {"X-Accel-Expires": "600"}
    released.say(lambda seen: Say(str(len(released.seen)), headers=headers))
    asked: list[Any] = [("a", {}), ("b", {}), ("a", {"Authorization": "Bearer x"})]
    answers = [varnish.get(f"/prompt/x?key={key}", headers=more).body for key, more in asked]
    assert answers == [b"1", b"2", b"3"]
    assert varnish.get("/prompt/x?key=a").body == b"1"
    assert [varnish.get("/status").body for _ in range(2)] == [b"4", b"5"]


def test_varnish_asks_anew_where_a_url_expires(varnish: Varnish, released: ScriptedServer) -> None:
    wait_until(lambda: varnish.picture("exp", exp=5) and len(released.seen) == 2)
    assert "If-None-Match" not in released.seen[1].headers
