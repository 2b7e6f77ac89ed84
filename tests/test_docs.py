"""The documents: examples that work, links that lead somewhere, lists that are complete."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from PIL import Image

import config
from app import create_app
from settings.__main__ import document, example
from settings.dotenv import Dotenv
from upstream.client import Why

from .conftest import KEY, ROOT, InProcess, Serve
from .scripted import Got

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])


@cache
def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


PROGRAMS = {
    "python": ("sign.py", sys.executable),
    "javascript": ("sign.mjs", "node"),
    "sh": ("sign.sh", "sh"),
}
ROTATED_KEY = {"SIGNING_KEY": "ключ-2026,your-signing-key"}


def write_program(language: str, folder: Path) -> tuple[str, str]:
    """Save a program that the document shows; return its interpreter and its file."""
    name, interpreter = PROGRAMS[language]
    assert shutil.which(interpreter), f"install {interpreter} for this test"
    code = re.search(rf"```{language}\n(.*?)```", read("docs/signing.md"), re.DOTALL)
    assert code
    (folder / name).write_text(code[1], "utf-8")
    return interpreter, str(folder / name)


@pytest.fixture(params=PROGRAMS)
def program(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    return write_program(request.param, tmp_path)


def run(*command: str, keys: dict[str, str], cwd: Path = ROOT) -> str:
    """Return what a program prints."""
    environment = {"PATH": os.environ["PATH"], "PYTHONIOENCODING": "utf-8"} | keys
    return subprocess.check_output(command, cwd=cwd, env=environment, text=True).strip()


def get(service: InProcess, url: str) -> Got:
    base, target = url[:24], url[24:]
    assert base == "https://pics.example.org"
    return service.get(target)


def test_signing_program_opens_pictures(serve: Serve, program: tuple[str, str]) -> None:
    urls = []
    for picture, keys in (
        (("a red apple", "1024", "768"), {"SIGNING_KEY": "your-signing-key"}),
        (("A Red Apple (Not Green)", "640"), {"PROXY_ACCESS_KEY": KEY}),
        (("ÄPFEL & Яблоки: 50/50?\n100 %, *new*!",), ROTATED_KEY),
        (("红苹果", "64", "64"), ROTATED_KEY),
    ):
        urls.append(url := run(*program, *picture, keys=keys))
        assert get(serve(**keys), url).status == 200, picture
        # Markdown ends a link at an unbalanced parenthesis, and at white space.
        assert not re.search(r"[()\s]", url), picture
    # The document shows what it prints for the first.
    shown = re.findall(r"(?m)^https://pics\.example\.org/.*", read("docs/signing.md"))
    assert set(shown) == {urls[0]}


CALLS = {
    "python": """
import sign
print(sign.signed_url("A", exp=EXP, seed=7, quality="high", negative_prompt="no (green) *leaf*!"))
""",
    "javascript": """
import { signedUrl } from "./sign.mjs";
const parameters = { seed: 7, quality: "high", negative_prompt: "no (green) *leaf*!" };
console.log(signedUrl("A", parameters, EXP));
""",
}
RUN_TEXT = {"python": ("-c",), "javascript": ("--input-type=module", "-e")}


@pytest.mark.parametrize("language", CALLS)
@pytest.mark.parametrize("exp", [4102444800, 1], ids=["valid", "expired"])
def test_signing_program_takes_an_expiry_and_every_parameter(
    serve: Serve, tmp_path: Path, language: str, exp: int
) -> None:
    interpreter, _ = write_program(language, tmp_path)
    call = CALLS[language].replace("EXP", str(exp))
    url = run(interpreter, *RUN_TEXT[language], call, keys={"SIGNING_KEY": "k"}, cwd=tmp_path)
    got = get(serve(SIGNING_KEY="k"), url)
    assert got.status == 200 if exp > 1 else "has expired" in got.detail


def tokens(document: Path) -> Iterator[Token]:
    for token in MarkdownIt().enable("table").parse(document.read_text("utf-8")):
        yield token
        yield from token.children or ()


@cache
def anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives a document's headings."""
    found, is_heading = set(), False
    for token in tokens(document):
        if is_heading and token.type == "inline":
            text = re.sub(r"[`*]", "", token.content).lower()
            found.add(re.sub(r"[^\w\- ]", "", text).replace(" ", "-"))
        is_heading = token.type == "heading_open"
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for source in re.findall(r'\bsrc(?:set)?="(docs/[^"]+)"', document.read_text("utf-8")):
        assert (document.parent / source).exists(), source
    for token in tokens(document):
        link = urlsplit(str(token.attrs.get("href") or token.attrs.get("src") or ""))
        if link.scheme:
            continue
        target = (document.parent / link.path).resolve() if link.path else document
        assert target.exists(), link.geturl()
        assert not link.fragment or link.fragment in anchors(target), link.geturl()


def test_pictures_of_the_readme_are_light() -> None:
    with Image.open(ROOT / "docs" / "film.webp") as film:
        assert getattr(film, "n_frames", 1) > 10
    for name in ("film.webp", "page.png", "gallery.png"):
        assert (ROOT / "docs" / name).stat().st_size < 1_000_000, name


def test_settings_are_documented_as_the_table_has_them() -> None:
    advice = "run `python -m settings`"
    assert example() == read(".env.example"), advice
    assert document(read("docs/settings.md")) == read("docs/settings.md"), advice


def test_example_works_with_its_two_empty_lines_filled_in() -> None:
    assert re.findall(r"(?m)^[^#\n].*", example()) == ["BACKEND_API_URLS=", "PROXY_ACCESS_KEY="]
    least = {"BACKEND_API_URLS": "https://a", "PROXY_ACCESS_KEY": KEY}
    everything = Dotenv(re.sub(r"(?m)^#([A-Z0-9_]+=)", r"\1", example())).values
    assert config.parse({**everything, **least}) == config.parse(least)


def test_routes_are_documented(environment: dict[str, str]) -> None:
    more = {"BACKEND_API_URLS": "http://127.0.0.1:9", "METRICS": "true"}
    app = create_app(config.parse({**environment, **more}))
    rules = " ".join(rule.rule for rule in app.url_map.iter_rules())
    routes = re.sub(r"<(?:[\w()=]+:)?(\w+)>", r"{\1}", rules).split()
    documented = re.findall(r"(?m)^## `[A-Z, ]+ (/\S*)`", read("docs/api.md"))
    # The page's own files are no API.
    assert {*routes} - {"/page/{name}"} == {*documented}


def test_reasons_for_failures_are_documented() -> None:
    documented = re.findall(r"(?m)^\| `(.+?)`", read("docs/backends.md"))
    assert {str(why) for why in Why} <= set(documented)


def test_guide_for_contributors_maps_every_module() -> None:
    modules = {path.name for path in ROOT.glob("*.py")}
    packages = {f"{path.parent.name}/" for path in ROOT.glob("*/__init__.py")}
    paths = set(re.findall(r"`([\w./]+(?:\.py|/))`", read("CONTRIBUTING.md")))
    assert modules | packages <= paths
    for path in paths:
        assert any((door / path).exists() for door in (ROOT, ROOT / "web", ROOT / "tests")), path


def test_security_names_tests_that_exist() -> None:
    named = re.findall(r"(test_\w+)\.py::(test_\w+)", read("SECURITY.md"))
    assert len(named) >= 20
    for file, function in named:
        assert re.search(rf"(?m)^def {function}\(", read(f"tests/{file}.py")), f"{file}::{function}"
