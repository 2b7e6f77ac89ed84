"""`cache import`, `export`, `adopt` and `backup`: move a cache between places."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

import click

from commands.arguments import AS_JSON, counted, echo_counts, progress
from commands.output import say
from commands.session import Session, with_session
from commands.typescript import import_typescript
from storage.transfer import Place, opened, prune, transfer
from storage.upkeep import adopt


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
        adopt(*source)
        counts = Counter(imported=0, there=0, unusable=0)
        _transfer(source, Place(cache.state, cache.store), counts, as_json=as_json)


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
        _transfer(Place(cache.state, cache.store), target, counts, as_json=as_json)


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
    source = Place(session.cache.state, session.cache.store)
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


def _transfer(source: Place, target: Place, counts: Counter[str], *, as_json: bool) -> None:
    """Copy all pictures with a progress bar, print how many, and exit.

    The first of `counts` is that of the copied ones.
    """
    done, problems = next(iter(counts)), []
    total = source.state.totals().entries
    with progress(transfer(source, target), "Copying", total, is_quiet=as_json) as outcomes:
        for copied in outcomes:
            counts["unusable" if copied.problem else done if copied.row else "there"] += 1
            problems += [copied.problem] if copied.problem else []
    for problem in problems:
        say(problem, err=True)
    echo_counts(counts, as_json=as_json)
    sys.exit(1 if problems else 0)
