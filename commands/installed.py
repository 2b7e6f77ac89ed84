"""Whether the files of deploy/ that an administrator has installed belong to this code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# A digest of the file without its comments, so that an installed file may be adapted.
_EDITION = re.compile(r"(?m)^# Edition ([0-9a-f]{8})\b")
_DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
# Where the documents install each file, below the root directory.
INSTALLED = {
    "prompt-image-proxy.service": "etc/systemd/system/prompt-image-proxy.service",
    "prompt-image-proxy-backup.service": "etc/systemd/system/prompt-image-proxy-backup.service",
    "prompt-image-proxy-backup.timer": "etc/systemd/system/prompt-image-proxy-backup.timer",
    "nginx.conf": "etc/nginx/conf.d/prompt-image-proxy.conf",
    "nginx-tls.conf": "etc/nginx/prompt-image-proxy/tls.conf",
    "Caddyfile": "etc/caddy/Caddyfile",
    "apache.conf": "etc/apache2/sites-available/00-prompt-image-proxy.conf",
    "haproxy.cfg": "etc/haproxy/haproxy.cfg",
    "varnish.vcl": "etc/varnish/prompt-image-proxy.vcl",
    "traefik.yaml": "etc/traefik/traefik.yaml",
    "traefik-pictures.yaml": "etc/traefik/pictures.yaml",
}


def outdated_files(root: Path) -> Iterator[str]:
    """Say, for each installed file of another edition than deploy/ has, what to do.

    Files that are not installed, not readable, for something else (as Debian's own Caddyfile), or
    not in deploy/ (as in the Docker image) are left out.
    """
    for name, place in INSTALLED.items():
        installed = root / place
        with suppress(OSError):
            text, shipped = (_read(path) for path in (installed, _DEPLOY / name))
            if "prompt image proxy" in text.lower() and _edition(text) != _edition(shipped):
                yield (
                    f"{installed} is of another version than this code: compare it with"
                    f" deploy/{name}, as docs/upgrading.md describes"
                )


def _read(path: Path) -> str:
    return path.read_text("utf-8", "replace")


def _edition(text: str) -> str | None:
    found = _EDITION.search(text)
    return found and found[1]
