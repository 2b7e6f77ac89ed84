"""`cache import`, `cache export` and `cache adopt`: move a cache between places."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from commands.arguments import AS_JSON, counted, echo_counts, progress
from commands.output import say
from commands.session import Session, with_session
from commands.typescript import import_typescript
from storage.transfer import Place, opened, transfer
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
        _transfer(source, Place(cache.state, cache.store), "imported", as_json=as_json)


@click.command()
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
        _transfer(Place(cache.state, cache.store), target, "exported", as_json=as_json)


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


def _transfer(source: Place, target: Place, done: str, *, as_json: bool) -> None:
    """Copy all pictures with a progress bar, print how many, and exit."""
    counts = {done: 0, "there": 0, "unusable": 0}
    problems = []
    total = source.state.totals().entries
    with progress(transfer(source, target), "Copying", total, is_quiet=as_json) as outcomes:
        for copied in outcomes:
            counts["unusable" if copied.problem else done if copied.row else "there"] += 1
            problems += [copied.problem] if copied.problem else []
    for problem in problems:
        say(problem, err=True)
    echo_counts(counts, as_json=as_json)
    sys.exit(1 if problems else 0)
