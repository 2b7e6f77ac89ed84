"""What the largest inputs cost: each header, parameter, path and body that nginx lets through.

That is 64 KB for the request line and the headers together (`large_client_header_buffers` in
deploy/nginx.conf), and as much for the body; gunicorn takes header lines of 8,190 bytes, and joins
those of one name. Reading 64 KB costs gunicorn something, whatever is in them: each input is
compared with one of the same size that nobody looks into.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import urlsplit

from benchmarks.figures.plan import Figure, Plan, median
from benchmarks.stack import KEY, App, backend, gunicorn

ADMIN = "admin-token-of-the-benchmark"
LINE, LINES, TARGET, BODY = 8100, 8, 65_000, 64_000
AS_ADMIN = (("X-Admin-Token", ADMIN),)
BEARER = (("Authorization", f"Bearer {KEY}"),)
HIT = f"/prompt/apple?key={KEY}&width=64&height=64"
Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Input:
    """A large request, and the one that it is compared with."""

    name: str
    target: str
    headers: Headers = ()
    body: str | None = None
    neutral: Input | None = None


def lines(name: str, text: str) -> Headers:
    """Return as many lines of a header as pass."""
    return ((name, text),) * LINES


def repeated(piece: str, size: int) -> str:
    return piece * (size // len(piece))


LINE_AS_IT_COMES = Input("a request line of 64 KB", "/robots.txt?" + "a" * TARGET)
HEADERS_AS_THEY_COME = Input("headers of 64 KB", "/robots.txt", lines("X-A", "a" * LINE))
ENCODED_PATH = Input("a path of 64 KB, percent-encoded", "/robots.txt/" + repeated("%41", TARGET))


def header(name: str, piece: str, target: str = "/prompt/x", start: str = "") -> Input:
    """Return an input with a header at its largest, filled with `piece`."""
    filled = lines(name, start + repeated(piece, LINE))
    return Input(f"{name}: {start}{piece}…", target, filled, neutral=HEADERS_AS_THEY_COME)


def query(name: str, piece: str, route: str = "/prompt/x", headers: Headers = ()) -> Input:
    """Return an input whose query is `name` and as many pieces as pass."""
    target = f"{route}?{name}{repeated(piece, TARGET)}"
    return Input(f"{route}?{name}{piece}…", target, headers, neutral=LINE_AS_IT_COMES)


def path(route: str, piece: str) -> Input:
    """Return an input whose path is `route` and as many pieces as pass."""
    neutral = ENCODED_PATH if "%" in piece else LINE_AS_IT_COMES
    return Input(f"{route}{piece}…", route + repeated(piece, TARGET), neutral=neutral)


def body(route: str, text: str, label: str) -> Input:
    neutral = Input("", route, BEARER, "{}")
    return Input(f"POST {route}, {label}", route, BEARER, text, neutral)


JSON_BODIES = {
    "nested": "[" * BODY,
    "many fields": "{" + ",".join(f'"f{n}":{n}' for n in range(BODY // 13)) + "}",
    "long number": '{"n":' + "9" * (BODY - 8) + "}",
    "numbers": '{"n":[' + repeated("1,", BODY - 20) + "1]}",
    "escapes": '{"prompt":"' + repeated(r"\u00e9", BODY - 20) + '"}',
    "long prompt": json.dumps({"prompt": "a" * (BODY - 20)}),
}
INPUTS: tuple[Input, ...] = (
    *(header("Accept", piece) for piece in ("a,", "a/b;q=0.1,", '",', "image/png;a=b,", " ")),
    *(header("Accept-Language", piece) for piece in ("zh,", "zh-a;q=0.1,", "-,")),
    *(header("Accept-Encoding", piece, "/") for piece in ("gzip,", "a;q=0.1,")),
    *(header("If-None-Match", piece, "/page/en.js") for piece in ('"a",', 'W/"', " ")),
    header("If-None-Match", '"a",', HIT),
    header("Range", "0-1,", HIT, "bytes="),
    header("If-Modified-Since", "1 ", HIT),
    header("If-Range", '"a",', HIT),
    header("Authorization", "a", start="Bearer "),
    header("X-Admin-Token", "a", "/cache"),
    header("Cookie", "a=b;"),
    header("Forwarded", "for=a;"),
    header("User-Agent", "a"),
    header("Via", "1.1 a,"),
    header("Sec-Fetch-Dest", "a"),
    header("X-Forwarded-Host", "a", "/sign"),
    header("X-Stainless-Retry-Count", "1", "/v1/models"),
    Input(
        "90 headers of 600 bytes",
        "/prompt/x",
        tuple((f"X-{n}", "a" * 600) for n in range(90)),
        neutral=HEADERS_AS_THEY_COME,
    ),
    *(query(name, "a") for name in ("key=", "sig=", "exp=", "model=", "quality=", "unknown=")),
    *(query(name, "9") for name in ("width=", "seed=")),
    *(query("", piece) for piece in ("&", "a=b&", "&amp;", "%41", "?", "?a", ";", "%26")),
    *(query(f"{name}=", "%C3%A9") for name in ("key", "negative_prompt", "unknown")),
    query("", "%41", "/sign"),
    query("q=", "a", "/cache", AS_ADMIN),
    query("before=", "1", "/cache", AS_ADMIN),
    *(path("/prompt/", piece) for piece in ("a", "%41", "%C3%A9", "/", ".", "%20", "%0A")),
    *(path("/v1/models/", piece) for piece in ("a", "/")),
    *(path("/page/", piece) for piece in ("a", "/")),
    path("/", "a/"),
    *(body("/v1/images/generations", text, name) for name, text in JSON_BODIES.items()),
    *(body("/sign", text[:16_000], name) for name, text in JSON_BODIES.items()),
)


def largest_inputs(plan: Plan) -> Iterator[Figure]:
    """Yield the CPU time of one worker for each input, beyond that of a neutral one."""
    count, rounds = plan.cold_requests, min(5, plan.rounds)
    with (
        backend(1024) as upstream,
        gunicorn(plan.folder / "inputs", upstream.url, WORKERS="1", ADMIN_TOKEN=ADMIN) as app,
    ):
        cpu_of(app, Input("the picture of the hits", HIT), 1)
        for one in (LINE_AS_IT_COMES, HEADERS_AS_THEY_COME, ENCODED_PATH):
            costs = [cpu_of(app, one, count) for _ in range(rounds)]
            yield Figure("inputs", one.name, median(costs), None, "ms")
        for one in INPUTS:
            assert one.neutral
            more = [
                cpu_of(app, one, count) - cpu_of(app, one.neutral, count) for _ in range(rounds)
            ]
            yield Figure("inputs", one.name, median(more), 1.0, "ms")


def cpu_of(app: App, one: Input, count: int) -> float:
    """Return the CPU milliseconds of the service for one request of `count`."""
    before = app.cpu_seconds()
    with closing(http.client.HTTPConnection(urlsplit(app.url).netloc, timeout=60)) as connection:
        for _ in range(count):
            connection.putrequest("GET" if one.body is None else "POST", one.target)
            for name, value in one.headers:
                connection.putheader(name, value)
            if one.body is not None:
                connection.putheader("Content-Length", str(len(one.body)))
            connection.endheaders(None if one.body is None else one.body.encode())
            connection.getresponse().read()
    return (app.cpu_seconds() - before) / count * 1000
