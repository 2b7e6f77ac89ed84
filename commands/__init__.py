"""The command line, through Flask's own: `flask --app app sign|warm|cache …`."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from flask.cli import AppGroup

from access import MAX_EXPIRES_IN, BadSignature, Link, Signer
from cache import Cache, NotKept, Provenance, Record
from commands.documents import Found, find_urls, replace_urls, signed_in_place
from config import Settings
from formats import media_type_of
from picture import BadRequest, ImageRequest
from pipeline import Busy, GaveUp, Pipeline
from storage.sqlite import Unavailable

Documents = tuple[Path, ...]
FILES = click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def register(
    cli: click.Group, settings: Settings, cache: Cache, pipeline: Pipeline, signer: Signer
) -> None:
    """Add the commands to the app's own."""
    cli.add_command(_sign_command(settings, signer))
    cli.add_command(_warm_command(settings, cache, pipeline, signer))
    cli.add_command(_cache_group(settings, cache))


# --- sign


def _sign_command(settings: Settings, signer: Signer) -> click.Command:
    @click.command("sign")
    @click.argument("arguments", nargs=-1, required=True, metavar="PROMPT | FILE…")
    @click.option("--width", help="Pixels, 1 to 4096.")
    @click.option("--height", help="Pixels, 1 to 4096.")
    @click.option("--model", help="The backend's model.")
    @click.option("--seed", help="An integer of at most 18 digits, 42 by default.")
    @click.option(
        "--expires-in",
        type=click.IntRange(1, MAX_EXPIRES_IN),
        metavar="SECONDS",
        help="Let the URL expire.",
    )
    @click.option("--format", "form", type=click.Choice(["url", "markdown", "html"]), default="url")
    @click.option("--in-place", is_flag=True, help="Sign every URL with the key in FILE….")
    @AS_JSON
    def sign(
        arguments: tuple[str, ...],
        expires_in: int | None,
        form: str,
        in_place: bool,
        as_json: bool,
        **parameters: str | None,
    ) -> None:
        """Print a URL that shows one picture without the access key.

        With --in-place: replace `key=` by a signature in every URL of ours in Markdown and HTML
        files, and touch nothing else.
        """
        if in_place:
            _sign_files([Path(name) for name in arguments], settings, signer, expires_in, as_json)
            return
        if len(arguments) != 1:
            raise click.UsageError("Give one PROMPT, in quotes, or --in-place and files.")
        wanted = _wanted(arguments[0], settings, parameters)
        base = settings.public_url or f"http://{settings.host}:{settings.port}"
        link = Link(wanted, base + wanted.to_url(**signer.sign(wanted, expires_in)))
        click.echo(json.dumps(link.to_json()) if as_json else link.to_json()[form])

    return sign


def _sign_files(
    files: list[Path], settings: Settings, signer: Signer, expires_in: int | None, as_json: bool
) -> None:
    def replacement(found: Found) -> str | None:
        if found.credentials.get("key") != settings.access_key:
            return None
        return signed_in_place(found, signer.sign(found.request, expires_in))

    counts = {}
    for file in files:
        text = _read_text(file)
        signed, count = replace_urls(text, replacement, settings.public_url)
        if count:
            # Bytes that are no UTF-8 go back as they came.
            file.write_bytes(signed.encode("utf-8", "surrogateescape"))
        counts[str(file)] = count
        if not as_json:
            click.echo(f"{file}: {count} signed")
    if as_json:
        click.echo(json.dumps(counts))


def _read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise click.ClickException(f"{file} cannot be read: {error.strerror}.") from error


def _wanted(prompt: str, settings: Settings, parameters: dict[str, str | None]) -> ImageRequest:
    try:
        return ImageRequest.from_text(
            prompt, max_prompt_length=settings.max_prompt_length, **parameters
        )
    except BadRequest as error:
        raise click.ClickException(str(error)) from error


# --- warm


def _warm_command(
    settings: Settings, cache: Cache, pipeline: Pipeline, signer: Signer
) -> click.Command:
    def draw(request: ImageRequest) -> str:
        if entry := cache.get(request.key):
            entry.close()
            return "there"
        try:
            pipeline.draw(request)
        except (GaveUp, Busy) as error:
            return str(error) or "All places for drawing are taken."
        return "drawn"

    @click.command("warm")
    @FILES
    @click.option("--jobs", type=click.IntRange(1, 32), default=4, show_default=True)
    @AS_JSON
    def warm(files: Documents, jobs: int, as_json: bool) -> None:
        """Draw what Markdown and HTML files show and the cache lacks.

        It can be interrupted and run again; a running server draws none of it a second time.
        """
        wanted = {
            found.request.key: found.request
            for file in files
            for _, found in find_urls(
                _read_text(file), settings.public_url, settings.max_prompt_length
            )
            if _is_ours(found, settings, signer)
        }
        outcomes = _draw_all(list(wanted.values()), draw, jobs, quiet=as_json)
        failed = {
            request.prompt: outcome
            for request, outcome in outcomes
            if outcome not in ("there", "drawn")
        }
        counts = {how: sum(o == how for _, o in outcomes) for how in ("drawn", "there")}
        if as_json:
            click.echo(json.dumps(counts | {"failed": failed}))
        else:
            click.echo(f"{counts['drawn']} drawn, {counts['there']} there, {len(failed)} failed")
            for prompt, why in failed.items():
                click.echo(f"  {' '.join(prompt.split())[:50]:<50}  {why}")
        sys.exit(1 if failed else 0)

    return warm


def _is_ours(found: Found, settings: Settings, signer: Signer) -> bool:
    """Say whether the service would draw this for whoever opens the URL."""
    if "sig" not in found.credentials:
        return found.credentials.get("key") == settings.access_key
    try:
        signer.verify(found.request, found.credentials["sig"], found.credentials.get("exp"))
    except (BadSignature, BadRequest):
        return False
    return True


def _draw_all(
    wanted: list[ImageRequest], draw: Any, jobs: int, quiet: bool
) -> list[tuple[ImageRequest, str]]:
    outcomes = []
    pool = ThreadPoolExecutor(jobs)
    try:
        waiting = {pool.submit(draw, request): request for request in wanted}
        with click.progressbar(
            as_completed(waiting),
            length=len(waiting),
            label="Drawing",
            show_pos=True,
            file=sys.stderr,
            hidden=quiet,
        ) as done:
            outcomes = [(waiting[future], future.result()) for future in done]
    finally:
        # On Ctrl-C: what is being drawn is paid for, and kept; nothing more is begun.
        pool.shutdown(cancel_futures=True)
    return outcomes


# --- cache


def _cache_group(settings: Settings, cache: Cache) -> click.Group:
    group = AppGroup("cache", help="Look into the cache, and tend it.")
    for command in (
        _list_command(cache),
        _stats_command(settings, cache),
        _delete_command(settings, cache),
        _import_command(settings, cache),
    ):
        group.add_command(command)
    return group


def _list_command(cache: Cache) -> click.Command:
    @click.command("list")
    @click.option("--match", default="", help="Only prompts that hold this text.")
    @click.option("--limit", type=click.IntRange(1), default=50, show_default=True)
    @AS_JSON
    def list_entries(match: str, limit: int, as_json: bool) -> None:
        """List what is in the cache, the newest first."""
        for number, record in enumerate(_records(cache, match)):
            if number == limit:
                break
            click.echo(json.dumps(record.to_json()) if as_json else _line(record))

    return list_entries


def _stats_command(settings: Settings, cache: Cache) -> click.Command:
    @click.command("stats")
    @AS_JSON
    def stats(as_json: bool) -> None:
        """Print how much is in the cache."""
        totals = cache.totals()
        if totals is None:
            raise click.ClickException("The cache's index cannot be used.")
        found = totals | {"max_bytes": settings.cache_max_bytes}
        if as_json:
            click.echo(json.dumps(found))
        else:
            limit = _size(settings.cache_max_bytes) if settings.cache_max_bytes else "no limit"
            click.echo(f"{found['entries']} pictures, {_size(found['bytes'])} of {limit}")

    return stats


def _delete_command(settings: Settings, cache: Cache) -> click.Command:
    @click.command("delete")
    @click.argument("prompt", required=False)
    @click.option("--width", help="Pixels.")
    @click.option("--height", help="Pixels.")
    @click.option("--model")
    @click.option("--seed")
    @click.option("--older-than", metavar="AGE", help="Such as 30d, 12h or 90m.")
    @click.option("--match", metavar="TEXT", help="All whose prompt holds this text.")
    @click.option("--yes", is_flag=True, help="Do not ask.")
    @AS_JSON
    def delete(
        prompt: str | None,
        older_than: str | None,
        match: str | None,
        yes: bool,
        as_json: bool,
        **parameters: str | None,
    ) -> None:
        """Delete one picture by PROMPT and parameters, or many by --older-than or --match."""
        if (prompt is None) == (older_than is None and match is None):
            raise click.UsageError("Give a PROMPT, or --older-than or --match.")
        if prompt is not None:
            keys = [_wanted(prompt, settings, parameters).key]
            question = "Delete this picture?"
        else:
            before = time.time() - _age(older_than) if older_than else float("inf")
            keys = [r.key for r in _records(cache, match or "") if r.created < before]
            question = f"Delete {len(keys)} pictures?"
        if keys and not yes:
            click.confirm(question, abort=True)
        try:
            count = sum(cache.delete(key) for key in keys)
        except Unavailable as error:
            raise click.ClickException(f"The cache cannot be used: {error}.") from error
        click.echo(json.dumps({"deleted": count}) if as_json else f"{count} deleted")
        if prompt is not None and not count:
            raise click.ClickException("There is no such picture in the cache.")

    return delete


def _import_command(settings: Settings, cache: Cache) -> click.Command:
    @click.command("import")
    @click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
    @AS_JSON
    def import_directory(directory: Path, as_json: bool) -> None:
        """Take over the cache of the TypeScript version from DIRECTORY, which stays as it is."""
        metas = sorted(directory.rglob("*.meta.json"))
        counts = dict.fromkeys(("imported", "there", "blocked", "unusable"), 0)
        with click.progressbar(
            metas, label="Importing", show_pos=True, file=sys.stderr, hidden=as_json
        ) as files:
            for meta in files:
                counts[_import_one(meta, settings, cache)] += 1
        text = ", ".join(f"{count} {what}" for what, count in counts.items())
        click.echo(json.dumps(counts) if as_json else text)
        sys.exit(1 if counts["unusable"] else 0)

    return import_directory


def _import_one(meta: Path, settings: Settings, cache: Cache) -> str:
    """Take over one entry, `{hash}.data` beside `{hash}.meta.json`; return what became of it."""
    key = meta.name.removesuffix(".meta.json")
    try:
        about = json.loads(meta.read_bytes())
    except (OSError, ValueError, RecursionError):
        return "unusable"
    if not re.fullmatch(r"[0-9a-f]{64}", key) or not isinstance(about, dict):
        return "unusable"
    created = _created_at(about.get("createdAt"), meta)
    prompts = {
        name: about.get(f"{name}Prompt") if isinstance(about.get(f"{name}Prompt"), str) else None
        for name in ("optimized", "rewritten", "revised")
    }
    if about.get("blocked"):
        left = created + settings.blocked_ttl - time.time()
        note = {"optimized": prompts["optimized"], "rewritten": prompts["rewritten"]}
        if left > 0:
            cache.remember("blocked", key, note, left)
        return "blocked"
    if entry := cache.get(key):
        entry.close()
        return "there"
    try:
        data = meta.with_name(f"{key}.data").read_bytes()
        media_type = media_type_of(data)
        if media_type is None:
            return "unusable"
        cache.put(key, data, media_type, Provenance(**prompts), created=created)
    except (OSError, NotKept):
        return "unusable"
    return "imported"


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


def _records(cache: Cache, match: str) -> Iterator[Record]:
    """Yield all records, a page at a time."""
    before = None
    while True:
        try:
            records, before = cache.records(match, 200, before)
        except Unavailable as error:
            raise click.ClickException(f"The cache cannot be used: {error}.") from error
        yield from records
        if before is None:
            return


def _line(record: Record) -> str:
    when = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%d %H:%M")
    prompt = " ".join(record.request.prompt.split()) if record.request else f"({record.key[:12]}…)"
    size = (record.request and record.request.size) or "-"
    return f"{when}  {_size(record.bytes):>9}  {size:>9}  {prompt[:80]}"


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _age(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,6})([smhdw])", text)
    if not match:
        raise click.BadParameter("write a number and s, m, h, d or w, such as 30d")
    return float(int(match[1]) * _UNITS[match[2]])
