"""Servers in front of the app: the real programs with the files that deploy/ has for them.

Only addresses and paths are replaced.
"""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from . import missing
from .conftest import ROOT, Service
from .scripted import free_port, wait_until

Changes = Sequence[tuple[str, str]]

CARDS = ROOT / "web" / "cards"
INSTALLED_CARDS = "/opt/prompt-image-proxy/web/cards"
APACHE_MODULES = "mpm_event authz_core alias proxy proxy_http headers"


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


def shipped(file: str) -> str:
    return (ROOT / "deploy" / file).read_text("utf-8")


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    """Replace the first text of each pair, which must occur exactly once, by the second."""
    for old, new in pairs:
        assert text.count(old) == 1, f"the file has {text.count(old)} of {old!r}"
        text = text.replace(old, new)
    return text


class Front(Service):
    """A server in front of the app, in a process of its own, on a free port."""

    package = ""
    program = ""
    file = ""
    # Its lines with a time limit for answers.
    limits: tuple[str, ...] = ()
    # The status of its own answer while the app is down.
    down = 502

    def __init__(self, prefix: Path, *app_urls: str, changes: Changes = ()) -> None:
        program = shutil.which(self.program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            missing.skip(f"these tests need {self.package}: apt-get install {self.package}")
        self.prefix, self.port = prefix, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.apps = [urlsplit(url).netloc for url in app_urls]
        prefix.mkdir(parents=True)
        text = replaced(shipped(self.file), *self.places(), *changes)
        text = text.replace(INSTALLED_CARDS, str(CARDS))
        (prefix / "shipped").write_text(text, "utf-8")
        output = prefix / "output.log"
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [program, *self.arguments()],
                env=os.environ | {"HOME": str(prefix), "APACHE_LOG_DIR": str(prefix)},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        wait_until(lambda: self._listens(output), what=self.program)

    def places(self) -> Changes:
        """Return the file's addresses and paths, and what they are replaced by."""
        raise NotImplementedError

    def arguments(self) -> list[str]:
        raise NotImplementedError

    def _listens(self, output: Path) -> bool:
        assert self.process.poll() is None, output.read_text("utf-8")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def logged(self) -> str:
        """Return everything that it has written to its logs."""
        return "".join(path.read_text("utf-8") for path in self.prefix.glob("*.log"))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=10)


class Nginx(Front):
    """nginx, in a configuration like Debian's, before one machine or several.

    With a certificate it speaks TLS at `tls_url`, as deploy/nginx-tls.conf says. `is_alone` means
    without Debian's default page.
    """

    package = program = "nginx"
    file = "nginx.conf"
    limits = ("proxy_read_timeout 210s",)

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
        include {prefix}/shipped;
        server {{
            listen 127.0.0.1:{port} default_server;
            server_name _;
            location / {{ return 200 "Welcome to nginx!"; }}
        }}
    }}
    """

    def __init__(
        self,
        prefix: Path,
        *app_urls: str,
        changes: Changes = (),
        certificate: Path | None = None,
        is_alone: bool = False,
    ) -> None:
        self.certificate = certificate
        self.is_alone = is_alone
        self.tls_port = free_port()
        self.tls_url = f"https://127.0.0.1:{self.tls_port}"
        self.cache, self.webroot = prefix / "cache", prefix / "webroot"
        super().__init__(prefix, *app_urls, changes=changes)

    def places(self) -> Changes:
        # As docs/several-machines.md has them.
        servers = " ".join(f"server {app} max_fails=0;" for app in self.apps)
        return [
            ("\n    listen 80;  # CHANGE\n", f"\n    listen 127.0.0.1:{self.port};\n"),
            ("server 127.0.0.1:8080;", servers),
            ("proxy_cache_path /var/cache/prompt-image-proxy ", f"proxy_cache_path {self.cache} "),
            ("include /etc/nginx/prompt-image-proxy/*.conf;", f"include {self.prefix}/*.tls;"),
            ("root /var/www/html;", f"root {self.webroot};"),
            ("\n    access_log /var/log/nginx/", f"\n    access_log {self.prefix}/"),
            ("\n    error_log /var/log/nginx/", f"\n    error_log {self.prefix}/"),
        ]

    def arguments(self) -> list[str]:
        if self.certificate:
            place = "/etc/letsencrypt/live/prompt-image-proxy"
            tls = replaced(
                shipped("nginx-tls.conf"),
                ("\nlisten 443 ", f"\nlisten 127.0.0.1:{self.tls_port} "),
                (f"{place}/fullchain.pem", str(self.certificate)),
                (f"{place}/privkey.pem", str(self.certificate)),
            )
            (self.prefix / "nginx.tls").write_text(tls, "utf-8")
        user = "user root;" if os.geteuid() == 0 else ""
        port = free_port() if self.is_alone else self.port
        main = self.prefix / "main"
        main.write_text(user + self.AROUND.format(prefix=self.prefix, port=port), "utf-8")
        return ["-p", str(self.prefix), "-c", str(main)]


class Caddy(Front):
    package = program = "caddy"
    file = "Caddyfile"

    def places(self) -> Changes:
        return [
            ("\n{\n", "\n{\n\tadmin off\n"),
            (
                "\npics.example.org {\n",
                f"\n{self.url}, http://pics.example.org:{self.port} {{\n\tbind 127.0.0.1\n",
            ),
            ("127.0.0.1:8080", self.apps[0]),
        ]

    def arguments(self) -> list[str]:
        return ["run", "--adapter", "caddyfile", "--config", str(self.prefix / "shipped")]


class Apache(Front):
    package = program = "apache2"
    file = "apache.conf"
    limits = ("ProxyTimeout 210",)
    down = 503

    def places(self) -> Changes:
        return [
            ("\n<VirtualHost *:80>\n", f"\n<VirtualHost 127.0.0.1:{self.port}>\n"),
            (
                "ServerName pics.example.org\n",
                "ServerName pics.example.org\nServerAlias 127.0.0.1\n",
            ),
            ("http://127.0.0.1:8080/", f"http://{self.apps[0]}/"),
        ]

    def arguments(self) -> list[str]:
        main = "".join(
            f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"
            for name in APACHE_MODULES.split()
        )
        main += f"Listen 127.0.0.1:{self.port}\nServerName localhost\nPidFile {self.prefix}/pid\n"
        main += f"ErrorLog {self.prefix}/main.log\nDefaultRuntimeDir {self.prefix}\n"
        if os.geteuid() == 0:
            main += "User www-data\nGroup www-data\n"
        # In the order of their names, beside Debian's own site.
        (sites := self.prefix / "sites").mkdir()
        (name,) = re.findall(r"/etc/apache2/sites-available/(\S+\.conf)", shipped(self.file))
        (self.prefix / "shipped").rename(sites / name)
        other = f"<VirtualHost 127.0.0.1:{self.port}>\nServerName other.example\n</VirtualHost>\n"
        (sites / "000-default.conf").write_text(other, "utf-8")
        (self.prefix / "main").write_text(f"{main}IncludeOptional {sites}/*.conf\n", "utf-8")
        return ["-D", "FOREGROUND", "-f", str(self.prefix / "main")]


class Haproxy(Front):
    package = program = "haproxy"
    file = "haproxy.cfg"
    limits = ("timeout server 210s", "timeout client 210s")
    down = 503

    def places(self) -> Changes:
        return [
            ("    log /dev/log local0\n", "    log stdout format raw local0\n"),
            ("    chroot /var/lib/haproxy\n    user haproxy\n    group haproxy\n", ""),
            ("bind :80  # CHANGE", f"bind 127.0.0.1:{self.port}"),
            ("setenv PICTURES 127.0.0.1:8080", f"setenv PICTURES {self.apps[0]}"),
        ]

    def arguments(self) -> list[str]:
        return ["-db", "-f", str(self.prefix / "shipped")]


class Varnish(Front):
    package, program = "varnish", "varnishd"
    file = "varnish.vcl"
    limits = (".first_byte_timeout = 210s", ".between_bytes_timeout = 210s")
    down = 503

    def places(self) -> Changes:
        return [('.port = "8080"', f'.port = "{self.apps[0].rpartition(":")[2]}"')]

    def arguments(self) -> list[str]:
        parameters = re.findall(r"-p (\w+=\w+)", shipped(self.file))
        return [
            *("-F", "-j", "none", "-n", str(self.prefix / "work"), "-s", "malloc,16m"),
            *("-a", f"127.0.0.1:{self.port}", "-f", str(self.prefix / "shipped")),
            *(word for one in parameters for word in ("-p", one)),
        ]
