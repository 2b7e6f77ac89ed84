"""`links` and `warm`: the URLs in documents, what they show, and drawing what is not cached."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import click

from commands.console import AS_JSON, FILES, progress, read_text, say, say_json
from commands.document_faults import Examiner
from commands.documents import FoundUrl, documents, find_urls
from commands.local_service import DRAWN, THERE
from commands.services import AnyService, with_service


@click.command(short_help="List the URLs of this service in documents.")
@FILES
@with_service
def links(service: AnyService, files: tuple[Path, ...]) -> None:
    """List this service's URLs in Markdown and HTML files, and in the Markdown files of folders.

    For each, its picture and when it was drawn, or why it does not open; then it exits with 1.
    Nothing is drawn.
    """
    service.announce_cache()
    is_clean = True
    for file in documents(files):
        opening, broken = examine(file, service)
        is_clean = is_clean and not broken
        lines = [(line, _describe(service, found)) for line, found in opening]
        for line, text in sorted([*lines, *broken]):
            say(f"{file}:{line}: {text}")
    sys.exit(0 if is_clean else 1)


def examine(
    file: Path, service: AnyService
) -> tuple[list[tuple[int, FoundUrl]], list[tuple[int, str]]]:
    """Return a document's URLs that open, and why the others do not, each with its line."""
    text = read_text(file)
    limits = service.public_url, service.max_prompt_length
    opening = [
        (text.count("\n", 0, start) + 1, found)
        for start, found in find_urls(text, *limits)
        if not service.why_closed(found)
    ]
    faults = Examiner(service.why_closed, (), *limits).find_faults(text)
    return opening, [(fault.line, fault.reason) for fault in faults]


def _describe(service: AnyService, found: FoundUrl) -> str:
    prompt = " ".join(found.request.prompt.split())
    size = f", {found.request.size}" if found.request.size else ""
    return f"{prompt[:50]}{size}, {service.describe(found)}"


Outcomes = list[tuple[FoundUrl, str]]


@click.command(short_help="Draw the pictures in documents that are not cached yet.")
@FILES
@click.option("--jobs", type=click.IntRange(1, 32), default=4, show_default=True)
@AS_JSON
@with_service
def warm(service: AnyService, files: tuple[Path, ...], jobs: int, as_json: bool) -> None:
    """Draw the pictures in Markdown and HTML files that are not cached yet.

    Folders count for their Markdown files. URLs that do not open are named. It can be
    interrupted and run again. A running server shares its locks: nothing is drawn twice.
    """
    service.announce_cache()
    wanted: dict[str, FoundUrl] = {}
    broken: list[str] = []
    for file in documents(files):
        opening, closed = examine(file, service)
        wanted |= {found.named.pictures[0].key: found for _, found in opening}
        broken += [f"{file}:{line}: {reason}" for line, reason in closed]
    jobs = min(jobs, service.max_jobs)
    outcomes = _draw_all(list(wanted.values()), service.draw, jobs, is_quiet=as_json)
    sys.exit(_report(outcomes, broken, as_json=as_json))


def _draw_all(
    wanted: list[FoundUrl], draw: Callable[[FoundUrl], str], jobs: int, *, is_quiet: bool
) -> Outcomes:
    pool = ThreadPoolExecutor(jobs)
    try:
        waiting = {pool.submit(draw, found): found for found in wanted}
        completed = as_completed(waiting)
        with progress(completed, "Drawing", len(waiting), is_quiet=is_quiet) as done:
            return [(waiting[future], future.result()) for future in done]
    finally:
        # On Ctrl-C the drawings under way are finished and stored: they have been paid for.
        pool.shutdown(cancel_futures=True)


def _report(outcomes: Outcomes, broken: list[str], *, as_json: bool) -> int:
    """Print the outcomes; return the exit status."""
    counts = {how: sum(outcome == how for _, outcome in outcomes) for how in (DRAWN, THERE)}
    failed = {found.request.prompt: how for found, how in outcomes if how not in counts}
    if as_json:
        say_json(counts | {"failed": failed, "broken": broken})
    else:
        more = f", {len(broken)} broken" if broken else ""
        click.echo(f"{counts[DRAWN]} drawn, {counts[THERE]} there, {len(failed)} failed{more}")
        for prompt, why in failed.items():
            say(f"  {' '.join(prompt.split())[:50]:<50}  {why}")
    for line in broken:
        say(line, err=True)
    return 1 if failed or broken else 0
