"""The name of a machine among several."""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path


def machine_name(directory: Path) -> str:
    """Return the name of the machine that keeps its files in `directory`.

    It is random and kept in a file there: host names are often alike, and change in containers.
    Where it can be neither read nor kept, nothing else can be kept either, and any name will do.
    """
    name, path = secrets.token_hex(8), directory / "machine"
    with suppress(OSError):
        if not path.exists():
            directory.mkdir(parents=True, exist_ok=True)
            fresh = directory / f"machine.{name}"
            fresh.write_text(name)
            fresh.rename(path)
        return path.read_text()
    return name
