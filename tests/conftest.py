"""Fixtures: scripted servers, the app behind a real HTTP server, and a real gunicorn."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import click.testing
import pytest
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

import config
from access import Access
from app import create_app, make_services
from commands.__main__ import cli
from settings.servers import ObjectSettings
from storage.local.sqlite import SqliteState
from storage.state import State

from . import missing
from .objectstore import ObjectServer
from .postgresql import MISSING, Postgres, find_program
from .scripted import Got, RawServer, Say, ScriptedServer, fetch, free_port, png, wait_until
from .states import Clock

pytest_plugins = ["tests.npm", "tests.one_backend", "tests.studio"]

# They come first, so that at the end no process is alone with one of them: those that mostly wait
# in turn with those that mostly compute.
SLOWEST_FILES = (
    *("test_cluster", "test_page_views", "test_fronts", "test_gunicorn", "test_page_gallery"),
    *("test_nginx", "test_answers", "test_postgres", "test_page", "test_metrics", "test_faults"),
    *("test_page_queue", "test_demo", "test_judging", "test_documents", "test_v1", "test_sqlite"),
)

ROOT = Path(__file__).resolve().parent.parent
KEY = "access-key-of-the-tests"
ADMIN = "admin-token-of-the-tests"
HOSTED_URL = "https://img.example/a.png"


def drawing(data: bytes | None = None, **more: Any) -> Say:
    """Return what an OpenAI backend says with a picture."""
    text = base64.b64encode(data if data is not None else png()).decode()
    return Say({"created": 1, "data": [{"b64_json": text, **more}]})


REFUSAL = Say(
    {
        "error": {
            "message": "Your request was rejected by the safety system.",
            "type": "image_generation_user_error",
            "param": None,
            "code": "moderation_blocked",
        }
    },
    400,
)


BROKEN = Say({"error": {"message": "boom"}}, 500)


def seeds(ordered: Got) -> list[int]:
    """Return the seeds of the pictures in an answer of /v1/images/generations."""
    return [picture["seed"] for picture in ordered.json["data"]]


def saying(text: Any) -> Say:
    """Return what a chat-completions API says with a message."""
    return Say({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]})


def llm_settings(
    llm: ScriptedServer, *, optimise: bool = False, rewrite: bool = False
) -> dict[str, str]:
    return {
        "LLM_OPTIMIZATION_ENABLED": str(optimise),
        "DE_NSFW_ENABLED": str(rewrite),
        "LLM_OPTIMIZATION_API_URL": llm.url,
        "LLM_OPTIMIZATION_TEMPLATE": "OPTIMISE {ORIGINAL_PROMPT}",
        "DE_NSFW_TEMPLATE": "MAKE SAFE {ORIGINAL_PROMPT}",
    }


def pollinations_settings(fallback: ScriptedServer) -> dict[str, str]:
    return {"POLLINATIONS_ENABLED": "true", "POLLINATIONS_URL": f"{fallback.url}/image"}


def hosting_settings(host: ScriptedServer) -> dict[str, str]:
    return {
        "IMAGE_HOSTING_ENABLED": "true",
        "IMAGE_HOSTING_PROVIDER": "picgo",
        "IMAGE_HOSTING_KEY": "picgo-key",
        "IMAGE_HOSTING_URL": host.url,
    }


def access_of(
    key: str | None = KEY, clock: Callable[[], float] = time.time, **settings: Any
) -> Access:
    """Return what authorises with an access key and other settings."""
    plain = config.parse({"BACKEND_API_URLS": "http://127.0.0.1:9", "PROXY_ACCESS_KEY": KEY})
    return Access(replace(plain, access_key=key, **settings), clock)


class Service:
    """The proxy as a client sees it; `backend` is what a fixture gave it."""

    url: str
    backend: ScriptedServer

    def get(self, target: str, **more: Any) -> Got:
        return fetch(self.url + target, **more)

    def picture(self, description: str, method: str = "GET", **query: Any) -> Got:
        """Ask for a picture; `description` and the query go as they are written."""
        pairs = "&".join(f"{name}={value}" for name, value in {"key": KEY, **query}.items())
        return self.get(f"/prompt/{description}?{pairs}", method=method)

    def post(self, target: str, body: Any, key: str = KEY, **headers: str) -> Got:
        """Send a body, as JSON unless it is bytes, with an access key."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {key}", **headers}
        return self.get(target, method="POST", headers=headers, body=data)

    def order(self, body: Any, key: str = KEY, **headers: str) -> Got:
        """Order pictures as OpenAI's clients do."""
        return self.post("/v1/images/generations", body, key, **headers)

    def sign(self, body: Any, key: str = KEY, **headers: str) -> Got:
        return self.post("/sign", body, key, **headers)

    def sign_target(self, body: Any, key: str = KEY) -> str:
        """Return the path and query of a signed URL."""
        return str(self.sign(body, key).json["url"]).removeprefix(self.url)

    def as_admin(self, target: str, **headers: str) -> Got:
        return self.get(target, headers={"X-Admin-Token": ADMIN, **headers})

    def delete(self, body: Any, token: str = ADMIN) -> Got:
        return self.post("/cache/delete", body, **{"X-Admin-Token": token})


class _Handler(WSGIRequestHandler):
    """Werkzeug's handler, silent, and with PATH_INFO as PEP 3333 and gunicorn have it."""

    def make_environ(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().make_environ()
        # Werkzeug puts U+FFFD where a byte is not UTF-8, and the app would never see the byte.
        environ["PATH_INFO"] = unquote(self.path.partition("?")[0], "latin-1")
        return environ

    def log(self, type: str, message: str, *args: Any) -> None:
        pass


class _Server(ThreadedWSGIServer):
    """Werkzeug's, which ends after its requests: they write notes after an answer was read."""

    daemon_threads = False


class InProcess(Service):
    """The app in this process, behind Werkzeug's threaded HTTP server: starts in no time.

    `ahead` is how many seconds its clock is ahead of the real one.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self.ahead = 0.0
        app = create_app(config.parse(environment), lambda: time.time() + self.ahead)
        self.services = app.extensions["prompt_image_proxy"]
        self._server = _Server("127.0.0.1", 0, app, _Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self.services.close()


class Gunicorn(Service):
    """The shipped gunicorn.conf.py in a process of its own, on a free port."""

    def __init__(self, environment: dict[str, str], log: Path, root: Path = ROOT) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self._expected = int(environment["WORKERS"])
        # Nothing of this shell's settings gets in, and no .env: it would be read from the folder.
        clean = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        clean |= {"PYTHONPATH": str(root), "HOME": str(log.parent / "home")}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "--config", str(root / "gunicorn.conf.py")],
                cwd=log.parent,
                env=clean | environment | {"PORT": str(port)},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(self._answers, what=f"gunicorn, which said: {self.said()}")

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.said()
        # A worker that has not come so far that its upkeep runs would miss a signal to stop.
        workers = self.workers()
        if len(workers) < self._expected or not all(self.threads_of(pid) > 1 for pid in workers):
            return False
        try:
            return self.get("/robots.txt").status == 200
        except OSError:
            return False

    @staticmethod
    def threads_of(pid: int) -> int:
        """Return how many threads a worker has: each request in flight has one."""
        try:
            return len(list(Path(f"/proc/{pid}/task").iterdir()))
        except FileNotFoundError:
            return 0

    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def workers(self) -> list[int]:
        """Return the process ids of the workers."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def reload(self) -> None:
        """Have it read its settings anew, and wait until all workers are new."""
        old = self.workers()
        self.process.send_signal(signal.SIGHUP)
        self._wait_for_others_than(old)

    def respawn_workers(self) -> None:
        for pid in (old := self.workers()):
            os.kill(pid, signal.SIGKILL)
        self._wait_for_others_than(old)

    def _wait_for_others_than(self, old: list[int]) -> None:
        def are_new() -> bool:
            workers = self.workers()
            return len(workers) == self._expected and not {*old} & {*workers}

        wait_until(are_new, 30, "the workers to be replaced")

    def close(self) -> None:
        """End all its processes at once, and remove the metrics that they leave behind."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for counts in Path("/dev/shm").glob(f"prompt-image-proxy-metrics-{self.process.pid}-*"):
            shutil.rmtree(counts)


# What the fixtures `serve`, `gunicorn` and `server` are.
Serve = Callable[..., InProcess]
Start = Callable[..., Gunicorn]
MakeServer = Callable[[], ScriptedServer]


def basic_settings(folder: Path) -> dict[str, str]:
    """Return the least there is to set beside backends, with no way out of this machine."""
    return {
        "PROXY_ACCESS_KEY": KEY,
        "ADMIN_TOKEN": ADMIN,
        "CACHE_DIR": str(folder / "cache"),
        "POLLINATIONS_ENABLED": "false",
        "WORKERS": "2",
    }


@contextmanager
def with_backend(folder: Path, **settings: str) -> Iterator[tuple[Gunicorn, ScriptedServer]]:
    """Run a service, in a folder of its own, and its backend."""
    with closing(ScriptedServer()) as backend:
        own = basic_settings(folder) | {"BACKEND_API_URLS": backend.url}
        with closing(Gunicorn(own | settings, folder / "gunicorn.log")) as service:
            yield service, backend


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(SLOWEST_FILES)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture
def opened() -> Iterator[list[Any]]:
    """Things to close when the test is over, the last opened first."""
    things: list[Any] = []
    yield things
    for thing in reversed(things):
        thing.close()


@pytest.fixture
def server(opened: list[Any]) -> MakeServer:
    """Make scripted servers."""

    def make() -> ScriptedServer:
        opened.append(made := ScriptedServer())
        return made

    return make


@pytest.fixture
def raw_server(opened: list[Any]) -> Callable[[Callable[[Any], None]], RawServer]:
    """Make servers that talk at the level of the socket."""

    def make(talk: Callable[[Any], None]) -> RawServer:
        opened.append(made := RawServer(talk))
        return made

    return make


@pytest.fixture
def backend(server: MakeServer) -> ScriptedServer:
    """A backend that draws a grey pixel unless a test scripts it otherwise."""
    made = server()
    made.say(drawing())
    return made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state(tmp_path: Path, clock: Clock) -> Iterator[State]:
    with closing(SqliteState(tmp_path, clock)) as made:
        yield made


@pytest.fixture(scope="session")
def object_server() -> Iterator[ObjectServer]:
    with closing(ObjectServer()) as made:
        yield made


@pytest.fixture
def bucket(object_server: ObjectServer) -> ObjectSettings:
    """Settings for a new bucket of a real S3 server."""
    return object_server.bucket()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Start a PostgreSQL server, once for all tests."""
    if find_program("initdb") is None:
        missing.skip(MISSING)
    with closing(Postgres()) as made:
        yield made


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make a certificate authority, and a certificate of it for 127.0.0.1 and pics.example.

    Returns the authority's certificate, and the server's with its key in one file.
    """
    folder = tmp_path_factory.mktemp("tls")
    authority, key, server = folder / "ca.pem", folder / "ca.key", folder / "server.pem"
    new = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = "subjectAltName=DNS:pics.example,IP:127.0.0.1"
    for command in (
        f"{new} -subj /CN=authority -keyout {key} -out {authority}",
        f"{new} -subj /CN=pics.example -addext basicConstraints=critical,CA:FALSE"
        f" -addext {names} -CA {authority} -CAkey {key} -keyout {server} -out {server}.crt",
    ):
        subprocess.run(command.split(), check=True, capture_output=True)
    server.write_bytes(server.read_bytes() + Path(f"{server}.crt").read_bytes())
    return authority, server


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return basic_settings(tmp_path)


@pytest.fixture
def serve(environment: dict[str, str], opened: list[Any], backend: ScriptedServer) -> Serve:
    """Start the app in this process: `serve(NAME="value")`, or with backends of its own."""

    def start(*backends: ScriptedServer | RawServer, **settings: str) -> InProcess:
        urls = ",".join(one.url for one in backends or (backend,))
        opened.append(made := InProcess({**environment, "BACKEND_API_URLS": urls, **settings}))
        made.backend = backend
        return made

    return start


@pytest.fixture
def service(serve: Serve) -> InProcess:
    """The app in this process, with one backend and the settings of `environment`."""
    return serve()


@pytest.fixture
def hosted(serve: Serve, server: MakeServer) -> InProcess:
    """The same, whose pictures are at an image host, all at one URL."""
    host = server()
    host.say(Say({"status_code": 200, "image": {"url": HOSTED_URL}}))
    return serve(**hosting_settings(host))


@pytest.fixture
def gunicorn(
    environment: dict[str, str], opened: list[Any], backend: ScriptedServer, tmp_path: Path
) -> Start:
    """Start a real gunicorn with two workers: `gunicorn(NAME="value")`, as `serve` does."""

    def start(*backends: ScriptedServer | RawServer, **settings: str) -> Gunicorn:
        urls = ",".join(one.url for one in backends or (backend,))
        log = tmp_path / f"gunicorn-{len(opened)}.log"
        values = {**environment, "BACKEND_API_URLS": urls, **settings}
        opened.append(made := Gunicorn(values, log))
        made.backend = backend
        return made

    return start


Run = Callable[..., click.testing.Result]


@pytest.fixture
def run(
    environment: dict[str, str],
    backend: ScriptedServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Run `python -m commands …` in this process, in a folder without `.env`."""
    monkeypatch.chdir(tmp_path)

    def invoke(
        *arguments: str, answer: str | None = None, **settings: str | None
    ) -> click.testing.Result:
        own = {"PYTHONPATH": str(ROOT), "BACKEND_API_URLS": backend.url}
        variables = dict.fromkeys(os.environ) | own | environment | settings
        runner = click.testing.CliRunner(env=variables)
        return runner.invoke(cli, arguments, input=answer, obj=make_services)

    return invoke
