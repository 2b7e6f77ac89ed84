"""`cache backup`: a copy of the cache, brought up to date every night."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from commands.arguments import AS_JSON, echo_counts, progress
from commands.session import Session, with_session
from storage.local.mirror import NotABackup, mirror


@click.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@AS_JSON
@with_session
def backup(session: Session, directory: Path, as_json: bool) -> None:
    """Copy to DIRECTORY what is new in the cache, and delete what was deleted.

    The service may be running. `cache import DIRECTORY` restores the pictures.
    """
    if session.settings.database_url:
        raise click.ClickException(
            "With DATABASE_URL, back up the database, with pg_dump, and the bucket, with its"
            " versioning or replication; CACHE_DIR holds copies only."
        )
    session.announce_cache()
    counts = Counter(copied=0, there=0, deleted=0)
    total = session.cache.state.totals().entries
    copying = mirror(session.settings.cache_dir, directory)
    try:
        with progress(copying, "Copying", total, is_quiet=as_json) as outcomes:
            counts.update(outcomes)
    except NotABackup as error:
        raise click.ClickException(f"{error}.") from error
    echo_counts(counts, as_json=as_json)
