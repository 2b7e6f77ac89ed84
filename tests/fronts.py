"""Other fronts than nginx: the real programs with the files that deploy/ has for them.

Only addresses and paths are replaced.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from . import missing
from .conftest import ROOT, Service
from .front import replaced
from .servers import free_port, wait_until

MODULES = "mpm_event authz_core alias proxy proxy_http headers"
CARDS = "/opt/prompt-image-proxy/web/cards"


class Front(Service):
    """A server in front of the app, in a process of its own, on a free port."""

    package = ""
    program = ""
    file = ""
    # Its lines with a time limit for answers.
    limits: tuple[str, ...] = ()
    # The status of its own answer while the app is down.
    down = 502

    def __init__(self, prefix: Path, app_url: str, *changes: tuple[str, str]) -> None:
        program = shutil.which(self.program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if program is None:
            missing.skip(f"these tests need {self.package}: apt-get install {self.package}")
        self.prefix, self.port = prefix, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        prefix.mkdir(parents=True)
        text = replaced(self.shipped(), *self.places(urlsplit(app_url).port or 0), *changes)
        text = text.replace(CARDS, str(ROOT / "web" / "cards"))
        (prefix / "shipped").write_text(text, "utf-8")
        self.log = prefix / "output.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [program, *self.arguments()],
                env=os.environ | {"HOME": str(prefix), "APACHE_LOG_DIR": str(prefix)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        wait_until(self._listens, what=self.program)

    @classmethod
    def shipped(cls) -> str:
        return (ROOT / "deploy" / cls.file).read_text("utf-8")

    def places(self, app_port: int) -> list[tuple[str, str]]:
        """Return the file's addresses and paths, and what they are replaced by."""
        raise NotImplementedError

    def arguments(self) -> list[str]:
        raise NotImplementedError

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.log.read_text("utf-8")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def logged(self) -> str:
        """Return everything that it has written to its logs."""
        return "".join(path.read_text("utf-8") for path in self.prefix.glob("*.log"))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=10)


class Caddy(Front):
    package = program = "caddy"
    file = "Caddyfile"

    def places(self, app_port: int) -> list[tuple[str, str]]:
        return [
            ("\n{\n", "\n{\n\tadmin off\n"),
            (
                "\npics.example.org {\n",
                f"\n{self.url}, http://pics.example.org:{self.port} {{\n\tbind 127.0.0.1\n",
            ),
            ("127.0.0.1:8080", f"127.0.0.1:{app_port}"),
        ]

    def arguments(self) -> list[str]:
        return ["run", "--adapter", "caddyfile", "--config", str(self.prefix / "shipped")]


class Apache(Front):
    package, program = "apache2", "apache2"
    file = "apache.conf"
    limits = ("ProxyTimeout 210",)
    down = 503

    def places(self, app_port: int) -> list[tuple[str, str]]:
        return [
            ("\n<VirtualHost *:80>\n", f"\n<VirtualHost 127.0.0.1:{self.port}>\n"),
            (
                "ServerName pics.example.org\n",
                "ServerName pics.example.org\nServerAlias 127.0.0.1\n",
            ),
            ("http://127.0.0.1:8080/", f"http://127.0.0.1:{app_port}/"),
        ]

    def arguments(self) -> list[str]:
        main = "".join(
            f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"
            for name in MODULES.split()
        )
        main += f"Listen 127.0.0.1:{self.port}\nServerName localhost\nPidFile {self.prefix}/pid\n"
        main += f"ErrorLog {self.prefix}/main.log\nDefaultRuntimeDir {self.prefix}\n"
        if os.geteuid() == 0:
            main += "User www-data\nGroup www-data\n"
        # In the order of their names, beside Debian's own site.
        (sites := self.prefix / "sites").mkdir()
        (name,) = re.findall(r"/etc/apache2/sites-available/(\S+\.conf)", self.shipped())
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

    def places(self, app_port: int) -> list[tuple[str, str]]:
        return [
            ("    log /dev/log local0\n", "    log stdout format raw local0\n"),
            ("    chroot /var/lib/haproxy\n    user haproxy\n    group haproxy\n", ""),
            ("bind :80  # CHANGE", f"bind 127.0.0.1:{self.port}"),
            ("setenv PICTURES 127.0.0.1:8080", f"setenv PICTURES 127.0.0.1:{app_port}"),
        ]

    def arguments(self) -> list[str]:
        return ["-db", "-f", str(self.prefix / "shipped")]


class Varnish(Front):
    package, program = "varnish", "varnishd"
    file = "varnish.vcl"
    limits = (".first_byte_timeout = 210s", ".between_bytes_timeout = 210s")
    down = 503

    def places(self, app_port: int) -> list[tuple[str, str]]:
        return [('.port = "8080"', f'.port = "{app_port}"')]

    def arguments(self) -> list[str]:
        parameters = re.findall(r"-p (\w+=\w+)", self.shipped())
        return [
            *("-F", "-j", "none", "-n", str(self.prefix / "work"), "-s", "malloc,16m"),
            *("-a", f"127.0.0.1:{self.port}", "-f", str(self.prefix / "shipped")),
            *(word for one in parameters for word in ("-p", one)),
        ]
