"""A real nginx with the shipped deploy/nginx.conf, next to a default site as Debian's has one."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from . import missing
from .conftest import ROOT, _Client
from .servers import free_port, wait_until

SHIPPED = (ROOT / "deploy" / "nginx.conf").read_text("utf-8")
CARDS = ROOT / "web" / "cards"
MISSING = "these tests need nginx: apt-get install nginx"
NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")

# Settings as in Debian's nginx.conf, on which the shipped file must not depend.
AROUND = """
daemon off;
worker_processes 2;
pid {prefix}/nginx.pid;
error_log {prefix}/main-error.log;
events {{ worker_connections 768; }}
http {{
    sendfile on;
    tcp_nopush on;
    gzip on;
    gzip_types *;
    gzip_min_length 1;
    default_type application/octet-stream;
    types {{ image/png png; }}
    access_log {prefix}/main-access.log;
    client_body_temp_path {prefix}/body;
    proxy_temp_path {prefix}/proxy;
    fastcgi_temp_path {prefix}/fastcgi;
    uwsgi_temp_path {prefix}/uwsgi;
    scgi_temp_path {prefix}/scgi;
    include {prefix}/conf.d/*.conf;
    server {{
        listen 127.0.0.1:{port} default_server;
        server_name _;
        location / {{ return 200 "Welcome to nginx!"; }}
    }}
}}
"""


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    """Replace the first text of each pair, which must occur exactly once, by the second."""
    for old, new in pairs:
        assert text.count(old) == 1, f"deploy/nginx.conf has {text.count(old)} of {old!r}"
        text = text.replace(old, new)
    return text


def tls_lines(port: int, certificate: Path) -> str:
    """Return the lines of the file's TLS example in the form for the nginx at hand."""
    example = re.search(r"replace `listen 80;` by\n#\n((?:#     .*\n)+)", SHIPPED)
    assert example
    listen, *rest = re.sub("(?m)^# +", "", example[1]).splitlines()
    before, _, since = listen.partition("  # from nginx 1.25.1 on: ")
    said = subprocess.run([str(NGINX), "-v"], capture_output=True, text=True, check=True).stderr
    version = tuple(map(int, re.findall(r"\d+", said)[:3]))
    text = "\n".join([before if version < (1, 25, 1) else since, *rest])
    place = "/etc/letsencrypt/live/pics.example.org"
    return replaced(
        text,
        ("listen 443 ", f"listen 127.0.0.1:{port} "),
        (f"{place}/fullchain.pem", str(certificate)),
        (f"{place}/privkey.pem", str(certificate)),
    )


def server_line(app_url: str) -> str:
    """Return the line for one of several machines, as docs/several-machines.md has it."""
    return f"server {urlsplit(app_url).netloc} max_fails=0;"


class Nginx(_Client):
    """nginx with the shipped file; only addresses and paths are replaced.

    With a certificate it listens as the file's example for TLS does. `is_alone` means without
    Debian's default page.
    """

    def __init__(
        self,
        prefix: Path,
        *app_urls: str,
        certificate: Path | None = None,
        is_alone: bool = False,
    ) -> None:
        if NGINX is None:
            missing.skip(MISSING)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        listen = tls_lines(port, certificate) if certificate else f"listen 127.0.0.1:{port};"
        self.prefix = prefix
        self.cache = prefix / "cache"
        (prefix / "conf.d").mkdir(parents=True)
        site = replaced(
            SHIPPED,
            ("\n    listen 80;  # CHANGE\n", f"\n    {listen}\n"),
            ("server 127.0.0.1:8080;", " ".join(map(server_line, app_urls))),
            ("proxy_cache_path /var/cache/prompt-image-proxy ", f"proxy_cache_path {self.cache} "),
            ("\n    access_log /var/log/nginx/", f"\n    access_log {prefix}/"),
            ("\n    error_log /var/log/nginx/", f"\n    error_log {prefix}/"),
            ("alias /opt/prompt-image-proxy/web/cards/", f"alias {CARDS}/"),
        )
        (prefix / "conf.d" / "prompt-image-proxy.conf").write_text(site, "utf-8")
        user = "user root;" if os.geteuid() == 0 else ""
        # Debian's default page is on port 80 only.
        other_port = free_port() if certificate or is_alone else port
        around = user + AROUND.format(prefix=prefix, port=other_port)
        (prefix / "nginx.conf").write_text(around, "utf-8")
        self.process = subprocess.Popen(
            [NGINX, "-p", str(prefix), "-c", str(prefix / "nginx.conf")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        wait_until(lambda: self._listens(port), what="nginx")

    def _listens(self, port: int) -> bool:
        assert self.process.poll() is None, self.process.communicate()[1].decode()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def logged(self) -> str:
        return (self.prefix / "access.log").read_text("utf-8")

    def close(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=10)
