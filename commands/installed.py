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
}


def outdated_files(root: Path) -> Iterator[str]:
    """Say, for each installed file of another edition than deploy/ has, what to do.

    Files that are not installed, not readable, or not in deploy/ (as in the Docker image) are left
    out.
    """
    for name, place in INSTALLED.items():
        installed = root / place
        with suppress(OSError):
            if _edition(installed) != _edition(_DEPLOY / name):
                yield (
                    f"{installed} is of another version than this code: compare it with"
                    f" deploy/{name}, as docs/upgrading.md describes"
                )


def _edition(path: Path) -> str | None:
    found = _EDITION.search(path.read_text("utf-8", "replace"))
    return found and found[1]
