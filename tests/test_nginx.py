"""The shipped deploy/nginx.conf, in a real nginx, next to a default site as in Debian's own."""

import gzip
import re
import stat
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import pytest

from picture import ImageRequest

from .conftest import ADMIN, KEY, REFUSAL, Serve, Start, drawing
from .fronts import CARDS, Nginx, prompts
from .scripted import (
    Gate,
    Got,
    Say,
    ScriptedServer,
    Seen,
    free_port,
    png,
    wait_until,
)
from .states import orders
from .studio import Studio

StartNginx = Callable[..., Nginx]


@pytest.fixture
def nginx(opened: list[Any], tmp_path: Path) -> StartNginx:
    """Start nginx in front of an app: `nginx(app.url)`."""

    def start(url: str, **more: Any) -> Nginx:
        opened.append(made := Nginx(tmp_path / "nginx", url, **more))
        return made

    return start


@pytest.fixture
def expiring(nginx: StartNginx, serve: Serve, backend: ScriptedServer) -> Nginx:
    """nginx in front of an app whose pictures it may cache for a second."""
    return nginx(serve(backend, NGINX_CACHE_SECONDS="1").url)


@pytest.fixture(scope="module")
def down(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """nginx in front of an app that does not run, without Debian's default page."""
    prefix = tmp_path_factory.mktemp("down") / "nginx"
    with closing(Nginx(prefix, f"http://127.0.0.1:{free_port()}", is_alone=True)) as made:
        yield made


@pytest.fixture(scope="module")
def before_studio(
    opened_studio: Studio, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Nginx]:
    prefix = tmp_path_factory.mktemp("shared") / "nginx"
    with closing(Nginx(prefix, opened_studio.service.url)) as made:
        yield made


@pytest.fixture
def shared(before_studio: Nginx, studio: Studio) -> Nginx:
    """nginx in front of a real gunicorn, for all tests that do not disturb them."""
    return before_studio


def is_hit(got: Got) -> bool:
    """Return whether nginx answered from its cache."""
    return got.headers["Cache-Status"] == "nginx; hit"


def hit(ask: Callable[..., Got], *arguments: Any, **more: Any) -> Got:
    """Ask until nginx answers from its cache, which it fills just after the app's answer."""
    return cast(Got, wait_until(lambda: is_hit(got := ask(*arguments, **more)) and got, 5, "a hit"))


def read_card(name: str) -> bytes:
    return (CARDS / f"{name}.png").read_bytes()


def is_stale(got: Got) -> bool:
    """Return whether nginx answered from its cache because the app failed."""
    return got.headers["Cache-Status"] == "nginx; hit; detail=stale"


def at_once(count: int, ask: Callable[[], Got]) -> list[Got]:
    with ThreadPoolExecutor(count) as pool:
        return [asked.result() for asked in [pool.submit(ask) for _ in range(count)]]


# --- what is cached, and for how long


def test_picture_is_cached_for_nginx_cache_seconds_and_revalidated(
    expiring: Nginx, backend: ScriptedServer
) -> None:
    cold = expiring.picture("x")
    assert cold.headers["Cache-Status"] == "PromptImageProxy; fwd=miss; stored; detail=backend"
    assert "generate" in cold.headers["Server-Timing"]
    hot = hit(expiring.picture, "x")
    assert "Server-Timing" not in hot.headers
    asked_again = "PromptImageProxy; hit, nginx; fwd=stale; fwd-status=304"
    renewed = wait_until(
        lambda: (got := expiring.picture("x")).headers["Cache-Status"] == asked_again and got
    )
    for got in (cold, hot, renewed, hit(expiring.picture, "x")):
        assert (got.status, got.body) == (200, png())
        assert "X-Accel-Expires" not in got.headers
        assert got.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    assert len(backend.seen) == 1


def test_errors_are_never_cached(shared: Nginx, studio: Studio) -> None:
    studio.backend.say(REFUSAL, drawing())
    assert shared.picture("refused").status == 422
    assert shared.delete({"description": "refused"}).status == 200  # the refusal
    assert shared.picture("refused").status == 200
    hit(shared.picture, "refused")
    assert shared.picture("refused", width="nonsense").status == 400
    assert len(studio.entries()) == 1


def test_only_x_accel_expires_makes_an_answer_cacheable(
    nginx: StartNginx, backend: ScriptedServer
) -> None:
    forbidding = {"Cache-Control": "no-store", "Vary": "*", "Set-Cookie": "a=b", "Expires": "0"}
    backend.say(
        lambda seen: (
            Say("cached", headers=forbidding | {"X-Accel-Expires": "60"})
            if seen.path == "/marked"
            else Say("not cached", headers={"Cache-Control": "public, max-age=31536000"})
        )
    )
    service = nginx(backend.url)
    hit(service.get, "/marked")
    for _ in range(3):
        assert not is_hit(service.get("/unmarked"))


def test_nginx_cache_seconds_of_0_disables_its_cache(
    nginx: StartNginx, serve: Serve, backend: ScriptedServer
) -> None:
    service = nginx(serve(backend, NGINX_CACHE_SECONDS="0").url)
    service.picture("x")
    got = service.picture("x")
    assert got.headers["Cache-Status"] == "PromptImageProxy; hit"
    assert "X-Accel-Expires" not in got.headers


def test_cache_files_are_private(shared: Nginx, studio: Studio) -> None:
    hit(shared.picture, "cached")
    found = [shared.cache, *shared.cache.rglob("*")]
    assert any(path.is_file() for path in found)
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in found)


def test_order_whose_client_left_nginx_is_not_paid_for_again(
    nginx: StartNginx, serve: Serve, backend: ScriptedServer, tmp_path: Path
) -> None:
    backend.say(gate := Gate(drawing()))
    service = nginx(serve(backend).url)
    target, headers = "/v1/images/generations", {"Authorization": f"Bearer {KEY}"}
    with pytest.raises(TimeoutError):
        service.get(target, method="POST", headers=headers, body=b'{"prompt": "a cat"}', timeout=1)
    gate.opened.set()
    wait_until(lambda: [note["has_ended"] for note in orders(tmp_path)] == [True])
    got = service.order({"prompt": "a cat"})
    assert [one["seed"] for one in got.json["data"]] == [seen.json["seed"] for seen in backend.seen]


# --- access keys


def test_keys_never_share_a_cache_entry(shared: Nginx, studio: Studio) -> None:
    path, right = "/prompt/keys?width=1", f"Bearer {KEY}"
    assert shared.get(f"{path}&key={KEY}").status == 200
    assert shared.get(path, headers={"Authorization": right}).status == 200
    hit(shared.get, f"{path}&key={KEY}")
    kept = hit(shared.get, path, headers={"Authorization": right})
    assert kept.headers["Cache-Control"].startswith("private, ")
    for target, headers in (
        (path, {}),
        (f"{path}&key=wrong", {}),
        (f"{path}&key=", {}),
        (path, {"Authorization": "Bearer wrong"}),
        (path, {"Authorization": f"Basic {KEY}"}),
    ):
        for _ in range(2):
            assert shared.get(target, headers=headers).status == 401, (target, headers)
    assert len(studio.backend.seen) == 1


def test_no_answer_in_nginx_outlasts_its_exp(expiring: Nginx, backend: ScriptedServer) -> None:
    target = expiring.sign_target({"description": "x", "expires_in": 1000})
    exp = int(re.findall(r"exp=([0-9]+)", target)[0])

    def left() -> int:
        asked = time.time()
        answer = expiring.get(target)
        [seconds] = re.findall(r"max-age=([0-9]+)", answer.headers["Cache-Control"])
        assert asked + int(seconds) <= exp
        return int(seconds)

    first = left()
    hit(expiring.get, target)
    wait_until(lambda: left() < first - 1)  # also when nginx has asked again
    assert len(backend.seen) == 1


def test_revoked_key_expires_from_the_cache(
    nginx: StartNginx, gunicorn: Start, backend: ScriptedServer, environment: Any, tmp_path: Path
) -> None:
    del environment["PROXY_ACCESS_KEY"]
    (tmp_path / "key").write_text("old-access-key")
    app = gunicorn(backend, PROXY_ACCESS_KEY_FILE=str(tmp_path / "key"), NGINX_CACHE_SECONDS="1")
    service = nginx(app.url)
    service.picture("x", key="old-access-key")
    hit(service.picture, "x", key="old-access-key")
    (tmp_path / "key").write_text("new-access-key")
    app.reload()
    wait_until(lambda: service.picture("x", key="old-access-key").status == 401, 5)
    for _ in range(5):
        assert service.picture("x", key="old-access-key").status == 401
    assert service.picture("x", key="new-access-key").status == 200
    assert len(backend.seen) == 1


# --- while the app is down


def test_stop_finishes_drawings_while_nginx_serves_its_cache(
    nginx: StartNginx, gunicorn: Start, backend: ScriptedServer
) -> None:
    app = gunicorn(backend, NGINX_CACHE_SECONDS="1")
    service = nginx(app.url)
    service.picture("x")
    gate = Gate(drawing(png(shade=7)))
    backend.say(lambda seen: gate(seen) if seen.json["prompt"] == "y" else drawing())
    with ThreadPoolExecutor(1) as pool:
        drawn = pool.submit(service.picture, "y")
        wait_until(lambda: len(backend.seen) == 2)
        app.process.terminate()
        new = (service.picture(str(number)) for number in count())
        down = next(got for got in new if got.status == 502)
        assert down.headers["Retry-After"] == "5"
        stale = wait_until(lambda: is_stale(got := service.picture("x")) and got)
        assert (stale.status, stale.body) == (200, png())
        gate.opened.set()
        assert drawn.result().body == png(shade=7)


def test_stale_picture_never_hides_an_error_of_the_app(
    nginx: StartNginx, backend: ScriptedServer
) -> None:
    backend.say(Say("cached", headers={"X-Accel-Expires": "1"}))
    service = nginx(backend.url)
    statuses = [500, 502, 503, 504, 401]
    ask = [partial(service.get, f"/{status}") for status in statuses]
    for one in ask:
        hit(one)
    backend.say(lambda seen: Say("", int(seen.last_segment)))
    wait_until(lambda: ask[-1]().status == statuses[-1])  # the others were cached before
    assert [one().status for one in ask * 3] == statuses * 3


def test_deleted_picture_is_gone_while_backends_fail(
    expiring: Nginx, backend: ScriptedServer
) -> None:
    hit(expiring.picture, "x")
    backend.say(Say("", 500))
    assert expiring.delete({"description": "x"}).status == 200
    wait_until(lambda: expiring.picture("x").status != 200)
    # The first answer says that the backend fails, the next ones that it is cooling down.
    assert {expiring.picture("x").status for _ in range(5)} <= {502, 503}


@pytest.mark.parametrize(
    ("headers", "has_card"),
    [
        ({"Accept": "image/avif,image/webp,image/*,*/*;q=0.8"}, True),
        ({"Accept": "image/png"}, True),
        ({"Sec-Fetch-Dest": "image", "Accept": "*/*"}, True),
        ({"Sec-Fetch-Dest": "document", "Accept": "image/*"}, False),
        ({"Accept": "text/html,application/xhtml+xml,image/webp,image/png,*/*;q=0.8"}, False),
        ({"Accept": "*/*"}, False),
        ({"Accept": "*/*", "User-Agent": "github-camo (0123abcd)"}, True),
        ({"Via": "1.1 Camo Asset Proxy 2.3.0"}, True),
        ({}, False),
    ],
)
def test_nginx_itself_answers_with_a_card_where_the_app_does(
    down: Nginx,
    serve: Serve,
    backend: ScriptedServer,
    headers: dict[str, str],
    has_card: bool,
) -> None:
    target = "/prompt/x.png?key=wrong"
    got, from_app = down.get(target, headers=headers), serve(backend).get(target, headers=headers)
    names = ("Content-Type", "Vary", "Cache-Control", "Cross-Origin-Resource-Policy")
    for name in names:
        assert got.headers.get_all(name) == from_app.headers.get_all(name)
    assert (got.status, got.headers["Retry-After"], got.headers["Server"]) == (502, "5", "nginx")
    if has_card:
        assert got.body == read_card("later.en")


@pytest.mark.parametrize(
    ("prompt", "status"),
    [("100%", 400), ("100%%20apples", 400), ("x" * 66_000, 414), ("x" * 65_000, 400)],
)
def test_url_that_nginx_cannot_read_is_a_card(down: Nginx, prompt: str, status: int) -> None:
    headers = {"Accept": "*/*", "Cookie": "x" * 600}  # one buffer for the URL and the headers
    got = down.get(f"/prompt/{prompt}?key={KEY}", headers=headers)
    assert (got.status, got.headers["Content-Type"]) == (status, "image/png")
    assert (got.body, got.headers["Cache-Control"]) == (read_card("unreadable"), "no-store")
    assert got.headers["Retry-After"] is None


def test_cards_have_no_url_of_their_own(down: Nginx) -> None:
    for name in ("later.en.png", "many"):
        assert down.get(f"/_errors/{name}").status == 404


# --- TLS


def test_tls_speaks_http_2_and_takes_the_longest_prompt(
    nginx: StartNginx, studio: Studio, certificates: tuple[Path, Path]
) -> None:
    authority, certificate = certificates
    front = nginx(studio.service.url, certificate=certificate)
    url = f"{front.tls_url}/prompt/{quote('🍎' * 4000)}?key={KEY}"
    curl = ["curl", "--silent", "--http2", "--cacert", str(authority), "--output", "/dev/null"]
    curl += ["--write-out", "%{http_version} %{http_code} %header{cache-status}", url]
    got = [
        subprocess.run(curl, capture_output=True, text=True, check=True).stdout for _ in range(2)
    ]
    assert got[0].startswith("2 200 PromptImageProxy; fwd=miss; stored")
    assert got[1] == "2 200 nginx; hit"


def test_port_80_serves_challenges_before_and_after_the_first_certificate(
    opened: list[Any], certificates: tuple[Path, Path], backend: ScriptedServer, tmp_path: Path
) -> None:
    backend.say(Say("app"))
    for number, certificate in enumerate((None, certificates[1])):
        opened.append(front := Nginx(tmp_path / str(number), backend.url, certificate=certificate))
        challenge = front.webroot / ".well-known" / "acme-challenge" / "token"
        challenge.parent.mkdir(parents=True)
        challenge.write_text("proof")
        assert front.get("/.well-known/acme-challenge/token").body == b"proof"
        got = front.get("/prompt/a%2Fb//c?key=k")
        if certificate:
            assert got.headers["Location"] == "https://127.0.0.1/prompt/a%2Fb//c?key=k"
        assert got.status == (301 if certificate else 200)


# --- load


def test_uncacheable_answers_are_not_queued(nginx: StartNginx, backend: ScriptedServer) -> None:
    arrived = threading.Barrier(5, timeout=10)

    def fail(_: Seen) -> Say:
        arrived.wait()  # until all five requests have reached the app
        return Say("busy", 503)

    backend.say(fail)
    service = nginx(backend.url)
    assert {got.status for got in at_once(5, lambda: service.get("/x"))} == {503}


def test_page_of_40_pictures_passes_but_no_flood(nginx: StartNginx, studio: Studio) -> None:
    service = nginx(studio.service.url)
    cold = at_once(40, lambda: service.picture("x"))
    assert {(got.status, got.body) for got in cold} == {(200, png())}
    assert len(studio.backend.seen) == 1
    with ThreadPoolExecutor(16) as pool:
        flood = list(pool.map(lambda _: service.picture("x"), range(600)))
    statuses = Counter(got.status for got in flood)
    assert statuses.keys() == {200, 429}
    assert statuses[200] > 250
    limited = next(got for got in flood if got.status == 429)
    assert (limited.json["status"], limited.json["error"]["code"]) == (429, "rate_limit_exceeded")
    assert limited.headers["Content-Type"] == "application/problem+json"
    assert (limited.headers["Cache-Control"], limited.headers["Retry-After"]) == ("no-store", "5")


def test_flood_of_pictures_is_a_card(nginx: StartNginx) -> None:
    ask = partial(nginx("http://127.0.0.1:1").get, "/prompt/x.png", headers={"Accept": "image/*"})
    with ThreadPoolExecutor(16) as pool:
        flood = list(pool.map(lambda _: ask(), range(600)))
    limited = next(got for got in flood if got.status == 429)
    assert limited.body == read_card("many.en")
    assert limited.headers["Content-Type"] == "image/png"


# --- what passes, beside what passes every front


def test_every_prompt_is_cached_for_get_and_head(shared: Nginx, studio: Studio) -> None:
    for sent, _ in prompts():
        drawn = shared.picture(sent)
        for got in (hit(shared.picture, sent), hit(shared.picture, sent, method="HEAD")):
            assert (got.status, got.headers["Content-Length"]) == (200, str(len(drawn.body)))
            assert got.headers["ETag"] == drawn.headers["ETag"]
    assert len(studio.backend.seen) == len(list(prompts()))


def test_picture_by_its_key_is_never_cached(shared: Nginx, studio: Studio) -> None:
    assert shared.picture("by%20its%20key").status == 200
    path = f"/cache/{ImageRequest('by its key').key}"
    assert shared.as_admin(path).status == 200
    assert shared.get(path).status == 401


def test_page_and_listing_are_compressed(shared: Nginx, studio: Studio) -> None:
    for number in range(3):
        shared.picture(f"apple%20{number}")
    for target in ("/", "/page/page.js", "/cache"):
        plain = shared.as_admin(target)
        compressed = shared.as_admin(target, **{"Accept-Encoding": "gzip"})
        assert "Content-Encoding" not in plain.headers
        assert compressed.headers["Content-Encoding"] == "gzip"
        assert compressed.headers["Vary"] == plain.headers["Vary"] == "Accept-Encoding"
        assert gzip.decompress(compressed.body) == plain.body


def test_body_over_64_kb_is_a_413(shared: Nginx, studio: Studio) -> None:
    passed, rejected = (
        shared.order(b'{"prompt": "a cat"}'.ljust(size)) for size in (64 * 1024, 64 * 1024 + 1)
    )
    assert (passed.status, len(passed.json["data"])) == (200, 1)
    assert (rejected.status, rejected.headers["Content-Type"]) == (413, "text/html")  # by nginx


@pytest.mark.parametrize("path", ["/v1/images/edits", "/images/edits", "//v1//images/edits"])
def test_edit_is_refused_before_the_upload_as_by_the_app(
    shared: Nginx, serve: Serve, backend: ScriptedServer, path: str
) -> None:
    announced = {"Content-Length": str(2**30)}
    got, from_app = (
        one.get(path, method="POST", headers=announced) for one in (shared, serve(backend))
    )
    assert (got.status, got.body) == (from_app.status, from_app.body)
    names = ("Content-Type", "Access-Control-Allow-Origin", "Cache-Control")
    assert [got.headers[name] for name in names] == [from_app.headers[name] for name in names]
    assert got.status == 400
    assert shared.get(path, method="POST", body=bytes(5_000_000)).body == got.body
    assert shared.get(path, method="OPTIONS").status == 204, "a page may read it"


def test_reason_passes_in_the_status_line(shared: Nginx, studio: Studio) -> None:
    got = shared.order({}, key="wrong")
    assert got.reason == got.json["error"]["message"]


# --- logs


def test_no_log_contains_a_query(nginx: StartNginx, serve: Serve, backend: ScriptedServer) -> None:
    app = serve(backend, NGINX_CACHE_SECONDS="1")
    service = nginx(app.url)
    headers = {"Authorization": f"Bearer {KEY}", "Referer": f"http://x/?key={KEY}"}

    def is_hit() -> bool:
        service.picture("a%20red%20apple", seed=7)
        return "cache=HIT" in service.logged()

    wait_until(is_hit)
    service.get("/prompt/b", headers=headers)
    service.picture("c", key="a-wrong-key")
    service.picture("x" * 66_000)
    service.delete({})
    app.close()
    service.picture("d")
    wait_until(lambda: is_stale(service.picture("a%20red%20apple", seed=7)))
    wait_until(lambda: "cache=STALE upstream=502" in service.logged())
    wait_until(lambda: '"GET /prompt/d" 502' in service.logged())
    assert '"GET /prompt/a%20red%20apple" 200' in service.logged()
    logs = sorted(service.prefix.glob("*.log"))
    assert len(logs) == 5
    for log in logs:
        text = log.read_text("utf-8")
        for secret in (KEY, ADMIN, "a-wrong-key", "key=", "seed=", "Bearer"):
            assert secret not in text, (log.name, secret)
