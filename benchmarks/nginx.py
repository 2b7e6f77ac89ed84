"""nginx on both sides of the service: the shipped configuration, and TLS before a backend."""

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import certifi

from benchmarks.stack import ROOT, App, Unmeasurable, ask, running, tool, wait_for
from tests.scripted import free_port

MAIN = """
{user}
daemon off;
worker_processes auto;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 768; }}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {http}
}}
"""

# Debian's own http block, the shipped configuration, and a static site. Both sides write the same
# log in the same way: with Debian's default, the static site alone would write a line at a time.
SHIPPED = """
    sendfile on;
    tcp_nopush on;
    types_hash_max_size 2048;
    default_type application/octet-stream;
    gzip on;
    include {folder}/conf.d/*.conf;
    server {{
        listen 127.0.0.1:{static_port};
        access_log {folder}/static-access.log {access_log};
        root {folder}/static;
    }}
"""

# The buffers take a picture of 1 MiB as base64, so that none is written to disk on its way.
TERMINATOR = """
    access_log off;
    upstream backend {{ server {backend}; keepalive 4; }}
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/server.pem;
        ssl_certificate_key {folder}/server.key;
        location / {{
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffer_size 32k;
            proxy_buffers 64 32k;
        }}
    }}
    server {{
        listen 127.0.0.1:{status_port};
        location / {{ stub_status; }}
    }}
"""


@contextlib.contextmanager
def _serving(folder: Path, http: str, ready: str) -> Iterator[None]:
    """Run nginx with the given http block until `ready` answers."""
    # As root it would otherwise serve as another user, to whom these folders are closed.
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(MAIN.format(user=user, folder=folder, http=http), "utf-8")
    command = [tool("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with running(command, stderr=subprocess.DEVNULL) as process:
        wait_for(ready, process)
        yield


@dataclass(frozen=True, slots=True)
class Front:
    """nginx with the shipped configuration at `url`, and a static site in `folder`."""

    url: str
    static_url: str
    folder: Path

    def publish(self, name: str, data: bytes) -> str:
        """Put a file into the static site; return its URL."""
        (self.folder / name).write_bytes(data)
        return f"{self.static_url}/{name}"


@contextlib.contextmanager
def shipped(folder: Path, app: App) -> Iterator[Front]:
    """Run nginx with the shipped configuration before `app`, and a static site beside it."""
    port, static_port = free_port(), free_port()
    for name in ("conf.d", "static"):
        (folder / name).mkdir(parents=True)
    text = (ROOT / "deploy" / "nginx.conf").read_text("utf-8")
    adapted = _adapted(text, folder, port, urlsplit(app.url).netloc)
    (folder / "conf.d" / "prompt-image-proxy.conf").write_text(adapted, "utf-8")
    access_log = re.search(r"^ *access_log \S+ ([^;]+);", text, re.MULTILINE)
    http = SHIPPED.format(
        folder=folder, static_port=static_port, access_log=access_log[1] if access_log else ""
    )
    front = Front(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{static_port}", folder / "static")
    with _serving(folder, http, f"{front.url}/robots.txt"):
        yield front


def _adapted(text: str, folder: Path, port: int, app: str) -> str:
    """Return the shipped configuration with our ports and folders, and no limit per address."""
    pairs = {
        "\n    listen 80;": f"\n    listen 127.0.0.1:{port};",
        "server 127.0.0.1:8080;": f"server {app};",
        "proxy_cache_path /var/cache/prompt-image-proxy ": f"proxy_cache_path {folder}/cache ",
        "\n    access_log /var/log/nginx/": f"\n    access_log {folder}/",
        "\n    error_log /var/log/nginx/": f"\n    error_log {folder}/",
        # All load comes from one address. The limit is still counted, and costs what it costs.
        "rate=30r/s": "rate=1000000r/s",
        "burst=300": "burst=1000000",
    }
    return _replaced(text, pairs)


def _replaced(text: str, pairs: Mapping[str, str]) -> str:
    """Replace keys by values. Raises Unmeasurable unless each key occurs exactly once."""
    for old, new in pairs.items():
        if text.count(old) != 1:
            raise Unmeasurable(f"deploy/nginx.conf contains {old!r} {text.count(old)} times")
        text = text.replace(old, new)
    return text


@dataclass(slots=True)
class Terminator:
    """A backend behind TLS. `bundle` is a file of authorities to trust, its own among them."""

    url: str
    bundle: Path
    status_url: str
    asked: int = 0

    def connections(self) -> int:
        """Return how many connections have been accepted, except for this question's own."""
        self.asked += 1
        found = re.search(r"\n\s*(\d+) \d+ \d+", ask(self.status_url).body.decode())
        assert found
        return int(found[1]) - self.asked


@contextlib.contextmanager
def terminator(folder: Path, backend_url: str) -> Iterator[Terminator]:
    """Run nginx as the TLS side of a backend."""
    folder.mkdir(parents=True)
    bundle = make_certificates(folder)
    port, status_port = free_port(), free_port()
    http = TERMINATOR.format(
        folder=folder, port=port, status_port=status_port, backend=urlsplit(backend_url).netloc
    )
    status_url = f"http://127.0.0.1:{status_port}/"
    with _serving(folder, http, status_url):
        yield Terminator(f"https://127.0.0.1:{port}", bundle, status_url)


def make_certificates(folder: Path) -> Path:
    """Make a certificate for 127.0.0.1, server.pem; return a bundle with its authority.

    The bundle has the public authorities too: loading those is most of what a TLS context costs.
    """
    new = [tool("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "group:P-256"]
    new += ["-nodes", "-days", "2"]
    authority = ["-subj", "/CN=Benchmark authority", "-keyout", "ca.key", "-out", "ca.pem"]
    authority += ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    server = ["-subj", "/CN=127.0.0.1", "-keyout", "server.key", "-out", "server.pem"]
    server += ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1"]
    server += ["-addext", "basicConstraints=critical,CA:FALSE"]
    for options in (authority, server):
        done = subprocess.run([*new, *options], cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise Unmeasurable(f"openssl could not make a certificate: {done.stderr}")
    bundle = folder / "bundle.pem"
    bundle.write_bytes(Path(certifi.where()).read_bytes() + (folder / "ca.pem").read_bytes())
    return bundle
