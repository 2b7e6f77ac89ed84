"""A real nginx with the shipped deploy/nginx.conf, next to a default site as Debian's has one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from . import missing
from .conftest import ROOT, Service
from .servers import free_port, wait_until

SHIPPED, SHIPPED_TLS = (
    (ROOT / "deploy" / name).read_text("utf-8") for name in ("nginx.conf", "nginx-tls.conf")
)
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
        assert text.count(old) == 1, f"the file has {text.count(old)} of {old!r}"
        text = text.replace(old, new)
    return text


def prompts() -> Iterator[tuple[str, str]]:
    """Yield each prompt as the URL has it and as the backend must receive it."""
    yield "a%20red%20apple", "a red apple"
    yield "/before", "/before"
    yield "//a///b//", "//a///b//"
    yield "c/../d/./e", "c/../d/./e"
    yield "%2E%2E/f", "../f"
    yield "g%2Fh", "g/h"
    yield "i%2F%2F..%2fj", "i//../j"
    yield "one%0Atwo%0D%0Athree", "one\ntwo\r\nthree"
    yield "100%25%2041", "100% 41"
    yield "what%3Fwidth=7%26x", "what?width=7&x"
    yield "k%23l;m=n,o+p", "k#l;m=n,o+p"
    yield "(q)'r'%22s%22%3Ct%3E%5Cu|v", "(q)'r'\"s\"<t>\\u|v"
    yield "caf%C3%A9%20%E4%BD%A0%F0%9F%8D%8E", "café 你🍎"
    yield "%7Btilde~%7D", "{tilde~}"


def write_tls(folder: Path, port: int, certificate: Path) -> None:
    """Write deploy/nginx-tls.conf where nginx.conf includes it, with the given certificate."""
    place = "/etc/letsencrypt/live/prompt-image-proxy"
    text = replaced(
        SHIPPED_TLS,
        ("\nlisten 443 ", f"\nlisten 127.0.0.1:{port} "),
        (f"{place}/fullchain.pem", str(certificate)),
        (f"{place}/privkey.pem", str(certificate)),
    )
    folder.mkdir(parents=True)
    (folder / "tls.conf").write_text(text, "utf-8")


def server_line(app_url: str) -> str:
    """Return the line for one of several machines, as docs/several-machines.md has it."""
    return f"server {urlsplit(app_url).netloc} max_fails=0;"


class Nginx(Service):
    """nginx with the shipped file; only addresses and paths are replaced.

    With a certificate it speaks TLS at `tls_url`, as deploy/nginx-tls.conf says. `is_alone` means
    without Debian's default page.
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
        self.webroot = prefix / "webroot"
        self.prefix = prefix
        self.cache = prefix / "cache"
        (prefix / "conf.d").mkdir(parents=True)
        if certificate:
            self.tls_url = f"https://127.0.0.1:{(tls_port := free_port())}"
            write_tls(prefix / "tls", tls_port, certificate)
        site = replaced(
            SHIPPED,
            ("\n    listen 80;  # CHANGE\n", f"\n    listen 127.0.0.1:{port};\n"),
            ("server 127.0.0.1:8080;", " ".join(map(server_line, app_urls))),
            ("proxy_cache_path /var/cache/prompt-image-proxy ", f"proxy_cache_path {self.cache} "),
            ("include /etc/nginx/prompt-image-proxy/*.conf;", f"include {prefix}/tls/*.conf;"),
            ("root /var/www/html;", f"root {self.webroot};"),
            ("\n    access_log /var/log/nginx/", f"\n    access_log {prefix}/"),
            ("\n    error_log /var/log/nginx/", f"\n    error_log {prefix}/"),
            ("alias /opt/prompt-image-proxy/web/cards/", f"alias {CARDS}/"),
        )
        (prefix / "conf.d" / "prompt-image-proxy.conf").write_text(site, "utf-8")
        user = "user root;" if os.geteuid() == 0 else ""
        other_port = free_port() if is_alone else port
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
