"""`cache import`, `export`, `adopt` and `backup`: move a cache between places."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from cache import Cache, NotKept
from commands.console import AS_JSON, counted, echo_counts, progress, say
from commands.session import Session, with_session
from commands.transfer import opened, prune, transfer
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
            cache.state.try_remember(note, key, left)
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


@click.command("import")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@AS_JSON
@with_session
def import_directory(session: Session, directory: Path, as_json: bool) -> None:
    """Copy the pictures of another cache from DIRECTORY.

    DIRECTORY is the CACHE_DIR of a single machine, or the cache of the TypeScript version.
    The import can be interrupted and run again. Exits 1 if a picture could not be read.
    """
    session.announce_cache()
    cache = session.cache
    if not (directory / "index.sqlite3").exists():
        import_typescript(directory, session.settings, cache, as_json=as_json)
        return
    with opened(directory) as source:
        source.adopt()
        counts = Counter(imported=0, there=0, unusable=0)
        _transfer(source, cache, counts, as_json=as_json)


@click.command(short_help="Copy the whole cache to DIRECTORY.")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@AS_JSON
@with_session
def export(session: Session, directory: Path, as_json: bool) -> None:
    """Copy the whole cache to DIRECTORY, which can be the CACHE_DIR of a single machine.

    The export can be interrupted and run again. Exits 1 if a picture could not be read.
    """
    session.announce_cache()
    cache = session.cache
    if directory.resolve() == session.settings.cache_dir.resolve():
        raise click.UsageError("DIRECTORY is CACHE_DIR; give another one.")
    with opened(directory) as target:
        counts = Counter(exported=0, there=0, unusable=0)
        _transfer(cache, target, counts, as_json=as_json)


@click.command("adopt")
@AS_JSON
@with_session
def adopt_pictures(session: Session, as_json: bool) -> None:
    """Add stored pictures that the index or the database does not know.

    A single machine does this whenever it starts. In a bucket pictures are unknown only
    after an older backup of the database was restored.
    """
    session.announce_cache()
    count = session.cache.adopt()
    click.echo(json.dumps({"adopted": count}) if as_json else f"{counted(count)} adopted")


@click.command(short_help="Make a copy of the cache in DIRECTORY, or update it.")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@AS_JSON
@with_session
def backup(session: Session, directory: Path, as_json: bool) -> None:
    """Copy to DIRECTORY what is new in the cache, and delete what was deleted.

    The service may be running. `cache import DIRECTORY` restores the pictures. Exits 1 if a
    picture could not be read.
    """
    if session.settings.database_url:
        raise click.ClickException(
            "With DATABASE_URL, back up the database, with pg_dump, and the bucket, with its"
            " versioning or replication; CACHE_DIR holds copies only."
        )
    session.announce_cache()
    _claim(session.settings.cache_dir.resolve(), directory)
    source = session.cache
    with opened(directory) as target:
        if target.state.totals().entries and not source.state.totals().entries:
            raise click.ClickException(
                "CACHE_DIR has no pictures, but the backup has; it is left as it is."
            )
        counts = Counter(copied=0, there=0, deleted=prune(source, target))
        _transfer(source, target, counts, as_json=as_json)


def _claim(source: Path, directory: Path) -> None:
    """Mark a folder as the backup of a CACHE_DIR, unless it is something else."""
    if directory.resolve().is_relative_to(source):
        raise click.UsageError("The backup would lie in CACHE_DIR; give another folder.")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    mark = directory / "backup-of"
    if not os.listdir(directory):
        mark.write_text(f"{source}\n")
    elif not mark.exists():
        raise click.UsageError(f"{directory} is neither empty nor a backup; give another folder.")
    elif mark.read_text() != f"{source}\n":
        raise click.UsageError(f"{directory} is the backup of {mark.read_text().strip()}.")


def _transfer(source: Cache, target: Cache, counts: Counter[str], *, as_json: bool) -> None:
    """Copy all pictures with a progress bar, print how many, and exit.

    The first of `counts` is that of the copied ones.
    """
    done, problems = next(iter(counts)), []
    total = source.state.totals().entries
    with progress(transfer(source, target), "Copying", total, is_quiet=as_json) as outcomes:
        for outcome in outcomes:
            is_problem = isinstance(outcome, str)
            counts["unusable" if is_problem else done if outcome else "there"] += 1
            problems += [outcome] if is_problem else []
    for problem in problems:
        say(problem, err=True)
    echo_counts(counts, as_json=as_json)
    sys.exit(1 if problems else 0)
