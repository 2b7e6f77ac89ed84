"""`cache import`, `export`, `adopt` and `backup`: move a cache between places."""

import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from cache import Cache, NotKept
from commands.console import AS_JSON, count_outcomes, counted, with_cache
from commands.transfer import opened, prune, transfer
from dialect.endpoint import clean_text
from drawing.verdict import Blocked
from images.formats import media_type_of
from pipeline import Services
from storage import Row


def _import_typescript(directory: Path, services: Services, *, as_json: bool) -> int:
    """Import the cache of the TypeScript version; return the exit status."""
    metas = sorted(directory.rglob("*.meta.json"))
    counts = Counter(imported=0, there=0, blocked=0, fallback_failed=0, unusable=0)
    outcomes = _import_entries(metas, services)
    return count_outcomes(outcomes, counts, "Importing", len(metas), as_json=as_json)


def _import_entries(metas: Iterable[Path], services: Services) -> Iterator[str]:
    """Yield for each entry the outcome, or which file is unusable and why."""
    for meta in metas:
        try:
            yield _import_entry(meta, services)
        except OSError as error:
            yield f"{error.filename}: {error.strerror}"
        except NotKept as error:
            yield f"{meta}: {error}"


def _import_entry(meta: Path, services: Services) -> str:
    """Import `{hash}.meta.json` and, if it drew a picture, `{hash}.data` beside it."""
    key, about = meta.name.removesuffix(".meta.json"), None
    if not re.fullmatch(r"[0-9a-f]{64}", key):
        return f"{meta}: its name is not a cache key"
    with suppress(ValueError, RecursionError):
        about = json.loads(meta.read_bytes())
    if not isinstance(about, dict):
        return f"{meta}: not a JSON object"
    created = _created_at(about.get("createdAt"), meta)
    texts = {name: about.get(f"{name}Prompt") for name in ("optimized", "rewritten", "revised")}
    # JavaScript cuts emoji in two, and neither half is valid Unicode.
    prompts = {name: clean for name, text in texts.items() if (clean := clean_text(text))}
    if about.get("blocked"):
        fingerprint, ttl = services.settings.fingerprint, services.settings.blocked_ttl
        note = Blocked(prompts.get("optimized"), prompts.get("rewritten"), fingerprint)
        if (left := created + ttl - time.time()) > 0:
            services.cache.state.try_remember(note, key, left)
    if about.get("fallbackFailed"):  # after the refusal
        return "fallback_failed"
    if about.get("blocked"):
        return "blocked"
    return _import_picture(services.cache, key, meta, created=created, **prompts)


def _created_at(value: Any, meta: Path) -> float:
    """Read a time as JavaScript writes it, in milliseconds or ISO 8601; else take the file's."""
    with suppress(TypeError, ValueError, OverflowError):
        is_text = isinstance(value, str)
        seconds = datetime.fromisoformat(value).timestamp() if is_text else float(value) / 1000
        if 0 < seconds < 1e11:  # later, and not a number, are no date
            return seconds
    return meta.stat().st_mtime


def _import_picture(cache: Cache, key: str, meta: Path, **about: Any) -> str:
    if picture := cache.get(key):
        picture.close()
        return "there"
    data = (file := meta.with_name(f"{key}.data")).read_bytes()
    if (media_type := media_type_of(data)) is None:
        return f"{file}: not a complete PNG, JPEG, WebP or GIF"
    cache.put(key, data, media_type, **about)
    return "imported"


@click.command("import")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@AS_JSON
@with_cache
def import_directory(services: Services, directory: Path, as_json: bool) -> None:
    """Copy the pictures of another cache from DIRECTORY.

    DIRECTORY is the CACHE_DIR of a single machine, or the cache of the TypeScript version.
    The import can be interrupted and run again. Exits 1 if a picture could not be read.
    """
    if not (directory / "index.sqlite3").exists():
        sys.exit(_import_typescript(directory, services, as_json=as_json))
    with opened(directory) as source:
        source.adopt()
        counts = Counter(imported=0, there=0, unusable=0)
        sys.exit(_transfer(source, services.cache, counts, as_json=as_json))


@click.command(short_help="Copy the whole cache to DIRECTORY.")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@AS_JSON
@with_cache
def export(services: Services, directory: Path, as_json: bool) -> None:
    """Copy the whole cache to DIRECTORY, which can be the CACHE_DIR of a single machine.

    The export can be interrupted and run again. Exits 1 if a picture could not be read.
    """
    if directory.resolve() == services.settings.cache_dir.resolve():
        raise click.UsageError("DIRECTORY is CACHE_DIR; give another one.")
    with opened(directory) as target:
        counts = Counter(exported=0, there=0, unusable=0)
        sys.exit(_transfer(services.cache, target, counts, as_json=as_json))


@click.command("adopt")
@AS_JSON
@with_cache
def adopt_pictures(services: Services, as_json: bool) -> None:
    """Add stored pictures that the index or the database does not know.

    A single machine does this whenever it starts. In a bucket pictures are unknown only
    after an older backup of the database was restored.
    """
    count = services.cache.adopt()
    click.echo(json.dumps({"adopted": count}) if as_json else f"{counted(count)} adopted")


@click.command(short_help="Make a copy of the cache in DIRECTORY, or update it.")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@AS_JSON
@with_cache
def backup(services: Services, directory: Path, as_json: bool) -> None:
    """Copy to DIRECTORY what is new in the cache, and delete what was deleted.

    The service may be running. `cache import DIRECTORY` restores the pictures. Exits 1 if a
    picture could not be read.
    """
    if services.settings.database_url:
        raise click.ClickException(
            "With DATABASE_URL, back up the database, with pg_dump, and the bucket, with its"
            " versioning or replication; CACHE_DIR holds copies only."
        )
    _claim(services.settings.cache_dir.resolve(), directory)
    source = services.cache
    with opened(directory) as target:
        if target.state.totals().entries and not source.state.totals().entries:
            raise click.ClickException(
                "CACHE_DIR has no pictures, but the backup has; it is left as it is."
            )
        counts = Counter(copied=0, there=0, deleted=prune(source, target))
        sys.exit(_transfer(source, target, counts, as_json=as_json))


def _claim(source: Path, directory: Path) -> None:
    """Mark a folder as the backup of a CACHE_DIR, unless it is something else."""
    if directory.resolve().is_relative_to(source):
        raise click.UsageError("The backup would lie in CACHE_DIR; give another folder.")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    mark, name = directory / "backup-of", os.fsencode(f"{source}\n")
    if not os.listdir(directory):
        mark.write_bytes(name)
    elif not mark.exists():
        raise click.UsageError(f"{directory} is neither empty nor a backup; give another folder.")
    elif (other := mark.read_bytes()) != name:
        raise click.UsageError(f"{directory} is the backup of {os.fsdecode(other).strip()}.")


def _transfer(source: Cache, target: Cache, counts: Counter[str], *, as_json: bool) -> int:
    """Copy all pictures, print how many, and return the exit status.

    The first of `counts` is that of the copied ones.
    """
    copied = next(iter(counts))
    outcomes = (
        copied if isinstance(found, Row) else found or "there" for found in transfer(source, target)
    )
    total = source.state.totals().entries
    return count_outcomes(outcomes, counts, "Copying", total, as_json=as_json)
