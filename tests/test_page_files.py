"""The page's files over HTTP."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable

from .conftest import ROOT, InProcess
from .servers import ScriptedServer

Serve = Callable[..., InProcess]

FOLDER = ROOT / "web" / "page"
GZIP = {"Accept-Encoding": "gzip, deflate, br"}


def test_every_file_is_served_with_its_type_and_compressed_for_who_accepts_it(
    serve: Serve, backend: ScriptedServer
) -> None:
    service = serve(backend)
    types = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg"}
    for path in FOLDER.iterdir():
        plain = service.get(f"/page/{path.name}")
        compressed = service.get(f"/page/{path.name}", headers=GZIP)
        assert (plain.status, plain.body) == (200, path.read_bytes())
        assert plain.headers["Content-Type"].startswith(types[path.suffix[1:]])
        assert plain.headers["X-Content-Type-Options"] == "nosniff"
        assert "script-src 'self';" in plain.headers["Content-Security-Policy"]
        assert "unsafe" not in plain.headers["Content-Security-Policy"]
        assert (compressed.headers["Content-Encoding"], gzip.decompress(compressed.body)) == (
            "gzip",
            plain.body,
        )
        assert plain.headers["Vary"] == compressed.headers["Vary"] == "Accept-Encoding"
        assert plain.headers["ETag"] != compressed.headers["ETag"]
    assert service.get("/").body == (FOLDER / "page.html").read_bytes()


def test_file_that_the_browser_has_is_not_sent_again(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend)
    etag = service.get("/page/page.js", headers=GZIP).headers["ETag"]
    again = service.get("/page/page.js", headers=GZIP | {"If-None-Match": etag})
    assert (again.status, again.body) == (304, b"")


def test_nothing_else_is_served(serve: Serve, backend: ScriptedServer) -> None:
    service = serve(backend)
    for name in ("x.js", "..", "%2e%2e%2fapi.py", "__init__.py", ""):
        assert service.get(f"/page/{name}").status == 404


def test_page_preloads_each_of_its_short_modules() -> None:
    html = (FOLDER / "page.html").read_text("utf-8")
    modules = {path.name: path.read_text("utf-8") for path in FOLDER.glob("*.js")}
    preloaded = re.findall(r'rel="modulepreload" href="page/(.+?)"', html)
    assert sorted([*preloaded, "page.js"]) == sorted(modules)
    assert max(len(text.splitlines()) for text in modules.values()) <= 250
