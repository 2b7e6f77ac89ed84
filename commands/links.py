"""`links` and `warm`: the URLs in documents, what they show, and drawing what is not cached."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import click

from commands.console import AS_JSON, FILES, progress, say, say_json
from commands.document_faults import DocumentFault, Examiner
from commands.documents import FoundUrl, documents, read
from commands.services import AnyService, with_service
from commands.session import DRAWN, THERE


@click.command(short_help="List the URLs of this service in documents.")
@FILES
@with_service
def links(service: AnyService, files: tuple[Path, ...]) -> None:
    """List this service's URLs in Markdown and HTML files, and in the Markdown files of folders.

    For each, its picture and when it was drawn, or why it does not open; then it exits with 1.
    Nothing is drawn.
    """
    service.announce_cache()
    examiner = Examiner(service.why_closed, public_url=service.public_url)
    has_faults = False
    for file in documents(files):
        for line, one in examiner.examine(read(file)):
            if isinstance(one, DocumentFault):
                has_faults, text = True, one.reason
            else:
                text = _describe(service, one)
            say(f"{file}:{line}: {text}")
    sys.exit(has_faults)


def _describe(service: AnyService, found: FoundUrl) -> str:
    size = f", {found.request.size}" if found.request.size else ""
    return f"{_shortened(found)}{size}, {service.describe(found)}"


def _shortened(found: FoundUrl) -> str:
    return " ".join(found.request.prompt.split())[:50]


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
    examiner = Examiner(service.why_closed, public_url=service.public_url)
    wanted: dict[str, FoundUrl] = {}
    broken: list[str] = []
    for file in documents(files):
        for line, one in examiner.examine(read(file)):
            if isinstance(one, DocumentFault):
                broken.append(f"{file}:{line}: {one.reason}")
            else:
                wanted[one.named.pictures[0].key] = one
    outcomes = _draw_all(service, list(wanted.values()), jobs, is_quiet=as_json)
    sys.exit(_report(outcomes, broken, as_json=as_json))


Outcomes = list[tuple[FoundUrl, str]]


def _draw_all(
    service: AnyService, wanted: list[FoundUrl], jobs: int, *, is_quiet: bool
) -> Outcomes:
    pool = ThreadPoolExecutor(min(jobs, service.max_jobs))
    try:
        waiting = {pool.submit(service.draw, found): found for found in wanted}
        completed = as_completed(waiting)
        with progress(completed, "Drawing", len(waiting), is_quiet=is_quiet) as done:
            return [(waiting[future], future.result()) for future in done]
    finally:
        # On Ctrl-C the drawings under way are finished and stored: they have been paid for.
        pool.shutdown(cancel_futures=True)


def _report(outcomes: Outcomes, broken: list[str], *, as_json: bool) -> bool:
    """Print the outcomes; return whether any URL failed."""
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
    return bool(failed or broken)
