"""GET /metrics, in this process, over two workers, and as a real Prometheus sees it."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from prometheus_client.parser import text_string_to_metric_families

from metrics.multiprocess import CountFiles
from metrics.prometheus import PREFIX

from . import missing
from .conftest import (
    ADMIN,
    BROKEN,
    KEY,
    REFUSAL,
    ROOT,
    Gunicorn,
    MakeServer,
    Serve,
    Service,
    Start,
    drawing,
    hosting_settings,
    llm_settings,
    pollinations_settings,
    saying,
    with_backend,
)
from .disks import file_sizes_limited
from .scripted import (
    Gate,
    Got,
    Say,
    ScriptedServer,
    fetch,
    free_port,
    png,
    send_and_leave,
    wait_until,
)

BEARER = {"Authorization": f"Bearer {ADMIN}"}
ON = {"METRICS": "true"}


class Numbers:
    """The samples of one answer. A call returns one of them, or 0 if it is not there."""

    def __init__(self, service: Service) -> None:
        got = service.get("/metrics", headers=BEARER)
        assert got.status == 200, got.body
        self.text = got.body.decode()
        self.samples = {
            (sample.name.removeprefix(PREFIX), frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        return self.samples.get((name, frozenset(labels.items())), 0.0)

    def by(self, name: str, *labels: str) -> dict[Any, float]:
        """Return what is not 0 of a metric, by the values of these labels."""
        found = {}
        for (other, pairs), value in self.samples.items():
            if other == name and value:
                values = tuple(dict(pairs)[label] for label in labels)
                found[values if len(values) > 1 else values[0]] = value
        return found


GUIDE = (ROOT / "docs" / "metrics.md").read_text("utf-8")
DASHBOARD = json.loads((ROOT / "deploy" / "grafana.json").read_text("utf-8"))


class PrometheusServer:
    """A Prometheus with the configuration in docs/metrics.md; only paths and times are replaced."""

    def __init__(self, folder: Path, target: str) -> None:
        (written,) = re.findall(r"(?s)```yaml\n(.*?)```", GUIDE)
        (folder / "token").write_text(ADMIN)
        config = written.replace("/etc/prometheus/prompt-image-proxy.token", str(folder / "token"))
        config = config.replace("127.0.0.1:8080", target.removeprefix("http://"))
        assert config.count(str(folder)) == 1
        (folder / "prometheus.yml").write_text(f"global: {{scrape_interval: 500ms}}\n{config}")
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = ["prometheus", f"--config.file={folder}/prometheus.yml", "--log.level=error"]
        command += [f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"]
        self.process = subprocess.Popen(command, cwd=folder)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples that an expression has now, each with `metric` and `value`."""
        got = fetch(f"{self.url}/api/v1/query?query={quote(expression)}")
        assert got.status == 200, (expression, got.body)
        found: list[dict[str, Any]] = got.json["data"]["result"]
        return found

    def by(self, expression: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Return the sums that are not 0 by the values of these labels."""
        # There are none for a moment where a scrape has taken longer than its interval.
        query = f"sum by ({','.join(labels)}) ({expression}) != 0"
        found = wait_until(lambda: self.query(query), what=query)
        return {
            tuple(one["metric"][label] for label in labels): float(one["value"][1]) for one in found
        }

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


Scraped = tuple[ScriptedServer, Gunicorn, PrometheusServer]


@pytest.fixture(scope="module", autouse=True)
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped | None]:
    """Two workers and a Prometheus, which takes 5 s until it begins: other tests run meanwhile."""
    if not shutil.which("prometheus"):
        yield None
        return
    folder = tmp_path_factory.mktemp("prometheus")
    with (
        with_backend(folder, DRAWINGS_PER_DAY="1000", **ON) as (service, backend),
        closing(PrometheusServer(folder, service.url)) as prometheus,
    ):
        yield backend, service, prometheus


def test_metrics_need_the_admin_token_as_a_bearer_token(serve: Serve) -> None:
    service = serve(BACKEND_API_URLS="http://127.0.0.1:9", **ON)
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-Admin-Token": ADMIN}):
        got = service.get("/metrics", headers=headers)
        assert (got.status, got.headers["WWW-Authenticate"][:6]) == (401, "Bearer")
    got = service.get("/metrics", headers=BEARER)
    assert (got.status, got.headers["Cache-Control"]) == (200, "no-store")
    assert got.headers["Content-Type"].startswith("text/plain; version=")
    closed = serve(BACKEND_API_URLS="http://127.0.0.1:9", ADMIN_TOKEN="", **ON)
    assert closed.get("/metrics", headers=BEARER).status == 403


WITHOUT = """
import sys, config
from app import create_app
client = create_app(config.parse(dict(pair.split("=", 1) for pair in sys.argv[1:]))).test_client()
print(client.get("/metrics").status_code, client.get("/status").status_code)
print([name for name in sys.modules if "prometheus" in name or name == "web.metrics"])
"""


def test_without_the_setting_nothing_is_imported(environment: dict[str, str]) -> None:
    settings = {**environment, "BACKEND_API_URLS": "http://127.0.0.1:9"}
    pairs = [f"{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-c", WITHOUT, *pairs]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["404 200", "[]"]


def test_drawing_is_counted_stage_by_stage(serve: Serve, server: MakeServer) -> None:
    llm, host = server(), server()
    llm.say(saying("<prompt>a better x</prompt>"), saying("<prompt>a harmless x</prompt>"))
    host.say(Say({"image": {"url": "https://images.example/x.png"}}))
    stages = llm_settings(llm, optimise=True, rewrite=True) | hosting_settings(host)
    service = serve(**stages, **ON)
    service.backend.say(REFUSAL, drawing())
    assert [service.picture("x").status for _ in range(2)] == [302, 302]
    found = Numbers(service)
    assert found.by("pictures_total", "source") == {"rewritten": 1, "hit": 1}
    ended_well = ("optimise", "rewrite", "generate", "upload")
    assert found.by("stage_duration_seconds_count", "stage", "outcome") == {
        ("generate", "refused"): 1,
        **dict.fromkeys(((stage, "ok") for stage in ended_well), 1),
    }
    assert found.by("drawing_duration_seconds_count", "outcome") == {"drawn": 1}
    calls = {(service.backend.url, "refused"): 1, (service.backend.url, "drawn"): 1}
    assert found.by("backend_calls_total", "backend", "outcome") == calls
    assert found("backend_call_duration_seconds_count", backend=service.backend.url) == 2
    assert [found(f"{name}_total") for name in ("refusals", "rewrites", "retries")] == [1, 1, 0]
    calls = {("optimise", "ok"): 1, ("rewrite", "ok"): 1}
    assert found.by("llm_calls_total", "task", "outcome") == calls
    assert found.by("uploads_total", "outcome") == {"ok": 1}


def test_failure_is_counted_once_however_often_it_is_answered(
    serve: Serve, server: MakeServer
) -> None:
    backends = server(), server()
    for backend in backends:
        backend.say(BROKEN)
    weights = json.dumps({backends[1].url: 0})
    service = serve(*backends, BACKEND_WEIGHTS=weights, **ON)
    assert [service.picture("x").status for _ in range(3)] == [502] * 3
    found = Numbers(service)
    assert found.by("drawing_duration_seconds_count", "outcome") == {"failed": 1}
    assert found.by("pictures_total", "source") == {}
    states = {(backends[0].url, "cooling"): 1, (backends[1].url, "drained"): 1}
    assert found.by("backend_state", "backend", "state") == states
    assert 0 < found("backend_cooldown_seconds", backend=backends[0].url) <= 5


def test_fallback_and_retries_are_counted(serve: Serve, server: MakeServer) -> None:
    backends, fallback = (server(), server(), server()), server()
    for backend in backends:
        backend.say(BROKEN)
    fallback.say(Say(png()))
    service = serve(*backends, **pollinations_settings(fallback), **ON)
    assert service.picture("x").status == 200
    found = Numbers(service)
    assert found("retries_total") == 2
    assert found.by("pictures_total", "source") == {"fallback": 1}
    calls = {(backend.url, "failed"): 1 for backend in backends} | {("pollinations", "drawn"): 1}
    assert found.by("backend_calls_total", "backend", "outcome") == calls


def test_waiting_requests_and_drawings_are_shown_with_their_limits(serve: Serve) -> None:
    gate = Gate(drawing())
    service = serve(DRAWINGS="5", THREADS="36", **ON)
    service.backend.say(gate)
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(service.picture, "x") for _ in range(3)]
        wait_until(lambda: Numbers(service)("waiting_requests") == 3)
        found = Numbers(service)
        assert (found("drawings_in_progress"), found("drawings_limit")) == (1, 5)
        assert found("waiting_requests_limit") == 20
        gate.opened.set()
        assert {answer.result().status for answer in answers} == {200}
    found = Numbers(service)
    assert found.by("pictures_total", "source") == {"backend": 1, "waited": 2}
    assert (found("drawings_in_progress"), found("waiting_requests")) == (0, 0)


def test_openai_clients_get_hits_too(serve: Serve) -> None:
    service = serve(**ON)
    for _ in range(2):
        service.order({"prompt": "x", "seed": 42})
    assert Numbers(service).by("pictures_total", "source") == {"backend": 1, "hit": 1}


def test_drawings_are_shown_by_the_name_of_the_key(serve: Serve) -> None:
    keys = {"blog": {"key": "key-of-the-blog", "per_day": 7}, "phone": {"key": "key-of-the-phone"}}
    service = serve(ACCESS_KEYS=json.dumps(keys), **ON)
    service.picture("x", key="key-of-the-blog")
    found = Numbers(service)
    assert found.by("key_drawings_today", "key") == {"blog": 1}
    assert found.by("key_drawings_limit", "key") == {"blog": 7}


def test_cache_and_connections_are_counted(serve: Serve, environment: dict[str, str]) -> None:
    (folder := Path(environment["CACHE_DIR"])).mkdir()
    (folder / f"{'a' * 64}-{'0' * 16}.png").write_bytes(png(size=900))
    service = serve(MAX_IMAGE_BYTES="2500", CACHE_MAX_BYTES="2500", **ON)
    service.backend.say(drawing(png(size=1000)))
    for prompt in "xyz":
        service.picture(prompt)
    found = Numbers(service)
    assert found("cache_adoptions_total") == 1
    assert found("cache_evictions_total") == 2
    size = [found(f"cache_{name}") for name in ("entries", "bytes", "limit_bytes")]
    assert size == [2, 2000, 2500]
    connections = [found(f"upstream_connections_{how}_total") for how in ("opened", "reused")]
    assert connections == [1, 2]
    assert found("store_call_duration_seconds_count", call="write") == 3
    assert found("state_call_duration_seconds_count", call="find") >= 3


def test_requests_are_counted_by_route_and_status(serve: Serve) -> None:
    service = serve(**ON)
    for prompt, key in [("x/y", KEY), ("x/y", KEY), ("x", "wrong")]:
        service.picture(prompt, key=key)
    for target in ("/page/base.css", "/no/such/route", f"/cache/{'0' * 64}", "/v1/models/a/b"):
        service.get(target)
    assert Numbers(service).by("requests_total", "route", "status") == {
        ("/prompt/{description}", "200"): 2,
        ("/prompt/{description}", "401"): 1,
        ("/page/{name}", "200"): 1,
        ("other", "404"): 1,
        ("/cache/{key}", "401"): 1,
        ("/v1/models/{id}", "401"): 1,
    }


def test_metrics_show_no_secret_and_no_prompt(serve: Serve, backend: ScriptedServer) -> None:
    url = backend.url.replace("//", "//user:secret-of-the-url@")
    service = serve(BACKEND_API_URLS=url, AUTH_TOKEN="token-of-the-backend", **ON)
    assert service.picture("unspeakable").status == 200
    found = Numbers(service)
    assert found("backend_calls_total", backend=backend.url, outcome="drawn") == 1
    for secret in (KEY, ADMIN, "secret-of-the-url", "token-of-the-backend", "unspeakable"):
        assert secret not in found.text


def test_counters_survive_deaths_and_reloads_but_gauges_do_not(gunicorn: Start) -> None:
    gate = Gate(drawing())
    service = gunicorn(**ON)
    service.backend.say(drawing(), gate)
    for _ in range(11):
        service.picture("x")
    send_and_leave(service.url, f"/prompt/y?key={KEY}")
    wait_until(lambda: Numbers(service)("drawings_in_progress") == 1)
    for change in (service.respawn_workers, service.reload, service.reload):
        change()
        found = Numbers(service)
        assert found("pictures_total", source="hit") == 10
        assert found("drawing_duration_seconds_count", outcome="drawn") == 1
        assert found("drawings_in_progress") == 0
        wait_until(lambda: Numbers(service)("drawings_limit") == 2 * 64)
    gate.opened.set()
    name = f"prompt-image-proxy-metrics-{service.process.pid}-*"
    (folder,) = (*Path("/dev/shm").glob(name), *Path(tempfile.gettempdir()).glob(name))
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(list(folder.glob("counter_*.db"))) <= 4
    service.process.terminate()
    assert service.process.wait(15) == 0
    assert not folder.exists()


def test_full_disk_costs_numbers_and_no_worker(gunicorn: Start) -> None:
    service = gunicorn(**ON)
    service.picture("x")
    service.picture("x")
    with file_sizes_limited(service.process.pid, 2000):
        service.reload()
        assert service.said().count("This worker is missing from /metrics: File too large") == 2
        # SQLite's -shm file has 32 KiB, so that new workers cannot serve pictures either.
        assert Numbers(service)("pictures_total", source="hit") == 1
    service.respawn_workers()
    service.picture("x")
    assert Numbers(service)("pictures_total", source="hit") == 2


def test_folders_of_killed_services_are_removed_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metrics.multiprocess._SHARED_MEMORY", tmp_path)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "")
    with subprocess.Popen(["true"]) as ended:
        pass
    gone = [tmp_path / f"prompt-image-proxy-metrics-{pid}-x" for pid in (ended.pid, os.getpid())]
    names = (f"prompt-image-proxy-metrics-{os.getppid()}-x", "prompt-image-proxy-metrics-x", "y")
    kept = [tmp_path / name for name in names]
    for folder in gone + kept:
        folder.mkdir()
    made = CountFiles.make()
    assert set(tmp_path.iterdir()) == {*kept, made.folder}


Observed = tuple[Gunicorn, PrometheusServer, ScriptedServer, list[tuple[str, Got]]]


@pytest.fixture(scope="module")
def observed(scraped: Scraped | None) -> Observed:
    """Two workers and their Prometheus after a load, with the routes and answers of its requests.

    Many of these are for the same pictures at once.
    """
    if scraped is None:
        missing.skip("Prometheus is not installed: apt-get install prometheus")
    backend, service, prometheus = scraped
    backend.say(lambda seen: REFUSAL if "refused" in seen.json["prompt"] else drawing())
    pictures, key = "/prompt/{description}", f"?key={KEY}"
    requests = [(pictures, f"/prompt/{n // 8}{key}") for n in range(240)]
    requests += [(pictures, f"/prompt/{n % 10}{key}") for n in range(200)]
    requests += [(pictures, f"/prompt/refused{key}"), (pictures, "/prompt/x?key=wrong")] * 10
    requests += [("other", "/nothing"), ("/status", "/status")] * 10
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda one: (one[0], service.get(one[1])), requests))
    return service, prometheus, backend, answers


def test_prometheus_has_the_numbers_of_the_load_generator(observed: Observed) -> None:
    _, prometheus, backend, answers = observed
    statuses = Counter((route, str(got.status)) for route, got in answers)
    how = [got.headers["Cache-Status"] or "" for _, got in answers if got.status == 200]
    hits, misses = how.count("PromptImageProxy; hit"), sum("fwd=miss" in one for one in how)
    assert sum("refused" not in seen.json["prompt"] for seen in backend.seen) == 30
    requests = PREFIX + 'requests_total{route!~"/metrics|/robots.txt"}'
    wait_until(lambda: prometheus.by(requests, "route", "status") == statuses)
    sources = {("hit",): hits, ("backend",): 30, ("waited",): misses - 30}
    assert prometheus.by(f"{PREFIX}pictures_total", "source") == sources
    outcomes = prometheus.by(f"{PREFIX}drawing_duration_seconds_count", "outcome")
    assert outcomes == {("drawn",): 30, ("refused",): 1}


def test_promtool_finds_no_fault(observed: Observed) -> None:
    text = observed[0].get("/metrics", headers=BEARER).body
    run = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    assert (run.returncode, run.stdout + run.stderr) == (0, b"")


def test_every_panel_of_the_dashboard_shows_something(observed: Observed) -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$__rate_interval", "10s")
            expression = expression.replace("$instance", ".*")
            found = wait_until(partial(observed[1].query, expression), what=expression)
            for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                assert all(label in one["metric"] for one in found), (expression, label)


def test_expressions_for_alerts_are_about_metrics_that_exist(observed: Observed) -> None:
    rows = re.findall(r"(?m)^\| .* \| `(.* [<>=]+ [0-9.]+)` \|$", GUIDE)
    assert len(rows) == 5
    for row in rows:
        wait_until(partial(observed[1].query, row.rsplit(" ", 2)[0]), what=row)


def test_guide_lists_every_metric_with_its_labels(serve: Serve) -> None:
    service = serve(DRAWINGS_PER_DAY="9", **ON)
    service.picture("x")
    served = {
        re.sub("_(bucket|sum|count)$", "", sample.name): sample.labels.keys() - {"le"}
        for family in text_string_to_metric_families(Numbers(service).text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    listed = re.findall(rf"(?m)^\| `({PREFIX}\w+)` \| (.*?) ?\| ", GUIDE)
    assert {name: set(re.findall(r"\w+", labels)) for name, labels in listed} == served
