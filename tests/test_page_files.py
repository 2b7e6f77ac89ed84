"""The page's files over HTTP."""

import gzip
import re

from web.sentences import SENTENCES

from .conftest import ROOT, InProcess

FOLDER = ROOT / "web" / "page"
GZIP = {"Accept-Encoding": "gzip, deflate, br"}


def test_every_file_has_its_type_and_may_be_compressed(service: InProcess) -> None:
    types = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg"}
    for path in FOLDER.iterdir():
        plain = service.get(f"/page/{path.name}")
        compressed = service.get(f"/page/{path.name}", headers=GZIP)
        assert (plain.status, plain.body) == (200, path.read_bytes())
        assert plain.headers["Content-Type"].startswith(types[path.suffix[1:]])
        assert plain.headers["X-Content-Type-Options"] == "nosniff"
        assert "script-src 'self';" in plain.headers["Content-Security-Policy"]
        assert "unsafe" not in plain.headers["Content-Security-Policy"]
        assert compressed.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(compressed.body) == plain.body
        assert plain.headers["Vary"] == compressed.headers["Vary"] == "Accept-Encoding"
        assert plain.headers["ETag"] != compressed.headers["ETag"]
    assert service.get("/").body == (FOLDER / "page.html").read_bytes()


def test_unchanged_file_is_not_sent_again(service: InProcess) -> None:
    etag = service.get("/page/page.js", headers=GZIP).headers["ETag"]
    again = service.get("/page/page.js", headers=GZIP | {"If-None-Match": etag})
    assert (again.status, again.body) == (304, b"")


def test_nothing_else_is_served(service: InProcess) -> None:
    for name in ("x.js", "..", "%2e%2e%2fapi.py", "__init__.py", ""):
        assert service.get(f"/page/{name}").status == 404


def test_page_preloads_each_of_its_short_modules() -> None:
    html = (FOLDER / "page.html").read_text("utf-8")
    modules = {path.name: path.read_text("utf-8") for path in FOLDER.glob("*.js")}
    preloaded = re.findall(r'rel="modulepreload" href="page/(.+?)"', html)
    assert sorted([*preloaded, "page.js"]) == sorted(modules)
    assert max(len(text.splitlines()) for text in modules.values()) <= 250


def test_each_text_of_a_language_is_defined_once() -> None:
    for language in ("en", "zh"):
        table = (FOLDER / f"{language}.js").read_text("utf-8")
        names = re.findall(r"(?m)^  '?([\w.]+)'?:", table)
        assert len(names) > 100
        assert len(set(names)) == len(names)


def test_chinese_has_one_word_for_drawing() -> None:
    words = [(FOLDER / "zh.js").read_text("utf-8"), *(text.zh for text in SENTENCES.values())]
    assert not re.search("绘|画(?!面)", "".join(words)), "it is 生成 everywhere"
