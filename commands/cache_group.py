"""`cache`: look into the cache, tidy it, and move it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice

import click

from cache import Cache
from commands.console import (
    AS_JSON,
    age,
    counted,
    picture_options,
    read_request,
    say,
    say_json,
    valid_text,
)
from commands.migrate import adopt_pictures, backup, export, import_directory
from commands.session import Session, with_session
from drawing.verdict import forget_failures
from storage import Row


@click.group("cache")
def cache_group() -> None:
    """Look into the cache, tidy it, and move it."""


for _command in (import_directory, export, adopt_pictures, backup):
    cache_group.add_command(_command)


@cache_group.command("list")
@click.option(
    "--match", default="", callback=valid_text, help="Only prompts that contain this text."
)
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@AS_JSON
@with_session
def list_pictures(session: Session, match: str, limit: int, as_json: bool) -> None:
    """List the cached pictures, newest first."""
    session.announce_cache()
    for row in islice(_rows(session.cache, match), limit):
        if as_json:
            say_json(row.to_json())
        else:
            say(_line(row))


@cache_group.command()
@AS_JSON
@with_session
def stats(session: Session, as_json: bool) -> None:
    """Print how much is in the cache."""
    session.announce_cache()
    totals = session.cache.state.totals()
    limit = session.cache.max_bytes
    if as_json:
        found = {"entries": totals.entries, "bytes": totals.bytes, "max_bytes": limit}
        click.echo(json.dumps(found))
    else:
        of = f" of {_size(limit)}" if limit else ", no limit"
        click.echo(f"{counted(totals.entries)}, {_size(totals.bytes)}{of}")


@cache_group.command(short_help="Delete one picture, or many by age or prompt.")
@click.argument("prompt", required=False)
@picture_options
@click.option("--older-than", metavar="AGE", callback=age, help="Such as 30d, 12h or 90m.")
@click.option("--match", callback=valid_text, help="All whose prompt contains this text.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@AS_JSON
@with_session
def delete(
    session: Session,
    prompt: str | None,
    older_than: float | None,
    match: str | None,
    yes: bool,
    as_json: bool,
    **parameters: str | None,
) -> None:
    """Delete one picture by PROMPT and parameters, or many by --older-than or --match."""
    if (prompt is None) == (older_than is None and match is None):
        raise click.UsageError("Give a PROMPT, or --older-than or --match.")
    session.announce_cache()
    if prompt is not None:
        length = session.settings.max_prompt_length
        keys = read_request(prompt, length, parameters).keys_to_delete
        question = "Delete this picture?"
    else:
        before = float("inf") if older_than is None else time.time() - older_than
        keys = [row.key for row in _rows(session.cache, match or "") if row.created < before]
        question = f"Delete {counted(len(keys))}?"
    if keys and not yes:
        click.confirm(question, abort=True)
    count = _delete_all(session.cache, keys)
    click.echo(json.dumps({"deleted": count}) if as_json else f"{count} deleted")
    if prompt is not None and not count:
        raise click.ClickException("There is no such picture in the cache.")


def _delete_all(cache: Cache, keys: list[str]) -> int:
    """Delete pictures and their notes; return the number of keys that had either."""
    count = 0
    for key in keys:
        # In this order: while the picture is being drawn, nothing is deleted.
        was_cached, had_failed = cache.delete(key), forget_failures(cache.state, key)
        count += was_cached or had_failed
    return count


def _rows(cache: Cache, match: str) -> Iterator[Row]:
    """Yield all rows, a page at a time."""
    last: Row | None = None
    while rows := cache.state.newest(match, 200, (last.created, last.key) if last else None):
        yield from rows
        last = rows[-1]


def _line(row: Row) -> str:
    when = datetime.fromtimestamp(row.created, UTC).strftime("%Y-%m-%d %H:%M")
    prompt = " ".join(row.prompt.split()) if row.prompt else f"({row.key[:12]}…)"
    size = "{}x{}".format(*row.pixels) if row.pixels else "-"
    return f"{when}  {_size(row.bytes):>9}  {size:>9}  {prompt[:80]}"


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
