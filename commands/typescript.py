"""The cache of the TypeScript version, for `cache import`."""

from __future__ import annotations

import json
import re
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from cache import Cache, NotKept
from commands.arguments import echo_counts, progress
from commands.output import say
from config import Settings
from drawing.verdict import Blocked
from images.formats import media_type_of


class BadEntry(Exception):
    """An entry cannot be imported; the text says which file is at fault, and why."""


def import_typescript(directory: Path, settings: Settings, cache: Cache, *, as_json: bool) -> None:
    """Import a directory, print what is unusable and the count of each outcome, and exit."""
    metas = sorted(directory.rglob("*.meta.json"))
    counts = dict.fromkeys(("imported", "there", "blocked", "fallback_failed", "unusable"), 0)
    problems = []
    with progress(metas, "Importing", len(metas), is_quiet=as_json) as files:
        for meta in files:
            try:
                counts[_import_one(meta, settings, cache)] += 1
            except BadEntry as error:
                counts["unusable"] += 1
                problems.append(str(error))
    for problem in problems:
        say(problem, err=True)
    echo_counts(counts, as_json=as_json)
    sys.exit(1 if counts["unusable"] else 0)


def _import_one(meta: Path, settings: Settings, cache: Cache) -> str:
    """Import one entry, `{hash}.data` beside `{hash}.meta.json`; return the outcome.

    Raises BadEntry.
    """
    key = meta.name.removesuffix(".meta.json")
    about = _read_json(meta)
    if not re.fullmatch(r"[0-9a-f]{64}", key):
        raise BadEntry(f"{meta}: its name is not a cache key")
    created = _created_at(about.get("createdAt"), meta)
    prompts = {
        name: about.get(f"{name}Prompt") if isinstance(about.get(f"{name}Prompt"), str) else None
        for name in ("optimized", "rewritten", "revised")
    }
    if about.get("blocked"):
        left = created + settings.blocked_ttl - time.time()
        note = Blocked(prompts["optimized"], prompts["rewritten"], settings.fingerprint)
        if left > 0:
            note.write(cache.state, key, left)
    for field, outcome in _WITHOUT_PICTURE.items():
        if about.get(field):
            return outcome
    return _import_picture(cache, key, meta.with_name(f"{key}.data"), created, prompts)


# Drawings that ended without a picture: refused, or refused and the fallback failed as well.
_WITHOUT_PICTURE = {"fallbackFailed": "fallback_failed", "blocked": "blocked"}


def _import_picture(
    cache: Cache, key: str, file: Path, created: float, prompts: dict[str, Any]
) -> str:
    if picture := cache.get(key):
        picture.close()
        return "there"
    try:
        data = file.read_bytes()
        media_type = media_type_of(data)
        if media_type is None:
            raise BadEntry(f"{file}: not a complete PNG, JPEG, WebP or GIF")
        cache.put(key, data, media_type, created=created, **prompts)
    except OSError as error:
        raise BadEntry(f"{file}: {error.strerror}") from error
    except NotKept as error:
        raise BadEntry(f"{file}: {error}") from error
    return "imported"


def _read_json(meta: Path) -> dict[str, Any]:
    try:
        about = json.loads(meta.read_bytes())
    except OSError as error:
        raise BadEntry(f"{meta}: {error.strerror}") from error
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise BadEntry(f"{meta}: not a JSON object")
    return about


def _created_at(value: Any, meta: Path) -> float:
    """Read a time as JavaScript writes it, in milliseconds or ISO 8601; else take the file's."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e14:
        return value / 1000
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value).timestamp()
        except ValueError:
            pass
    return meta.stat().st_mtime
