"""`cache`: look into the cache, tidy it, and move it; `keys`: list the access keys."""

import json
import re
import sys
import time
from datetime import UTC, datetime
from itertools import chain, islice

import click

from commands.console import (
    AS_JSON,
    counted,
    picture_options,
    say,
    say_json,
    valid_text,
    with_cache,
)
from commands.migrate import adopt_pictures, backup, export, import_directory
from commands.transfer import pages
from drawing.verdict import forget_failures
from picture import ImageRequest
from pipeline import Services
from storage import Row

cache_group = click.Group(
    "cache",
    commands=[import_directory, export, adopt_pictures, backup],
    help="Look into the cache, tidy it, and move it.",
)


@cache_group.command("list")
@click.option(
    "--match", default="", type=valid_text, metavar="TEXT", help="Only prompts that contain this."
)
@click.option("--limit", type=click.IntRange(1, 10**9), default=50, show_default=True)
@AS_JSON
@with_cache
def list_pictures(services: Services, match: str, limit: int, as_json: bool) -> None:
    """List the cached pictures, newest first."""
    for row in islice(chain.from_iterable(pages(services.cache.state, match)), limit):
        if as_json:
            say_json(row.to_json())
        else:
            say(_line(row))


@cache_group.command()
@AS_JSON
@with_cache
def stats(services: Services, as_json: bool) -> None:
    """Print how much is in the cache."""
    totals, limit = services.cache.state.totals(), services.cache.max_bytes
    found = {"entries": totals.entries, "bytes": totals.bytes, "max_bytes": limit}
    of = f" of {_size(limit)}" if limit else ", no limit"
    text = f"{counted(totals.entries)}, {_size(totals.bytes)}{of}"
    click.echo(json.dumps(found) if as_json else text)


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def _age(text: str) -> float:
    """Return the seconds of an age such as 30d."""
    match = re.fullmatch("([0-9]{1,6})([smhdw])", text)
    if not match:
        raise click.BadParameter("write a number and s, m, h, d or w, such as 30d")
    return float(int(match[1]) * _UNITS[match[2]])


@cache_group.command(short_help="Delete one picture, or many by age or prompt.")
@click.argument("prompt", required=False)
@picture_options
@click.option("--older-than", metavar="AGE", type=_age, help="Such as 30d, 12h or 90m.")
@click.option(
    "--match", type=valid_text, metavar="TEXT", help="All whose prompt contains this text."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@AS_JSON
@with_cache
def delete(
    services: Services,
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
    if prompt is not None:
        wanted = ImageRequest.from_text(prompt, max_prompt_length=sys.maxsize, **parameters)
        keys = wanted.keys_to_delete
        question = "Delete this picture?"
    else:
        before = float("inf") if older_than is None else time.time() - older_than
        rows = chain.from_iterable(pages(services.cache.state, match or ""))
        keys = [row.key for row in rows if row.created < before]
        question = f"Delete {counted(len(keys))}?"
    if keys and not yes:
        click.confirm(question, abort=True)
    # In this order: while the picture is being drawn, nothing is deleted.
    state = services.cache.state
    found = [(services.cache.delete(key), forget_failures(state, key)) for key in keys]
    count = sum(map(any, found))
    click.echo(json.dumps({"deleted": count}) if as_json else f"{count} deleted")
    if prompt is not None and not count:
        raise click.ClickException("There is no such picture in the cache.")


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


@click.command(short_help="List the access keys and their drawings of today.")
@AS_JSON
@with_cache
def keys(services: Services, as_json: bool) -> None:
    """List the access keys by name, with their drawings since midnight UTC."""
    found = services.access.usage(services.cache.state)
    if as_json:
        click.echo(json.dumps(found))
        return
    width = max(len(key["name"]) for key in found)
    for key in found:
        limit = ", no limit" if key["per_day"] is None else f" of {key['per_day']}"
        expires = f", valid until {key['expires']}" if key["expires"] else ""
        click.echo(f"{key['name']:<{width}}  {key['drawings']} drawn today{limit}{expires}")
