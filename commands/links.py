"""`links` and `warm`: the URLs in documents, what they show, and drawing what is not cached."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import click

from commands.console import AS_JSON, FILES, progress, say, say_json, sentence
from commands.documents import DocumentFault, Examiner, FoundUrl, documents, read
from commands.services import AnyService, with_service
from picture import Problem


@click.command(short_help="List the URLs of this service in documents.")
@FILES
@with_service
def links(service: AnyService, files: tuple[Path, ...]) -> None:
    """List this service's URLs in Markdown and HTML files, and in the Markdown files of folders.

    For each, its picture and when it was drawn, or why it does not open; then it exits with 1.
    Nothing is drawn.
    """
    has_faults = False
    for place, one in _examine(service, files):
        if isinstance(one, DocumentFault):
            has_faults, text = True, one.reason
        else:
            size = f", {one.request.size}" if one.request.size else ""
            text = f"{_shortened(one.request.prompt)}{size}, {service.describe(one)}"
        say(f"{place}: {text}")
    sys.exit(1 if has_faults else 0)


def _examine(
    service: AnyService, files: tuple[Path, ...]
) -> Iterator[tuple[str, FoundUrl | DocumentFault]]:
    """Yield the URLs of ours that open in documents, and the faults, each with its place."""
    service.announce_cache()
    examiner, is_empty = Examiner(service.why_closed, service.public_url), True
    for file in documents(files):
        for line, one in examiner.examine(read(file)):
            is_empty = False
            yield f"{file}:{line}", one
    if is_empty:
        base = examiner.base
        ours = f"begins with {base}" if base else "names a picture of this service"
        say(f"No URL in these files {ours}.", err=True)


def _shortened(prompt: str) -> str:
    return " ".join(prompt.split())[:50]


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
    wanted: dict[str, FoundUrl] = {}
    broken: list[str] = []
    for place, one in _examine(service, files):
        if isinstance(one, DocumentFault):
            broken.append(f"{place}: {one.reason}")
        else:
            wanted[one.pictures[0].key] = one
    counts, failed = _draw_all(service, list(wanted.values()), jobs, is_quiet=as_json)
    if as_json:
        say_json(counts | {"failed": failed, "broken": broken})
    else:
        more = f", {len(broken)} broken" if broken else ""
        click.echo(f"{counts['drawn']} drawn, {counts['there']} there, {len(failed)} failed{more}")
        for prompt, why in failed.items():
            say(f"  {_shortened(prompt):<50}  {why}")
    for line in broken:
        say(line, err=True)
    sys.exit(1 if failed or broken else 0)


def _draw_all(
    service: AnyService, wanted: list[FoundUrl], jobs: int, *, is_quiet: bool
) -> tuple[dict[str, int], dict[str, str]]:
    """Return how many pictures were drawn or there, and why others failed, by their prompts."""
    counts, failed = {"drawn": 0, "there": 0}, {}
    pool = ThreadPoolExecutor(min(jobs, service.max_jobs))
    try:
        drawings = {pool.submit(service.draw, found): found.request.prompt for found in wanted}
        completed = as_completed(drawings)
        with progress(completed, "Drawing", len(drawings), is_quiet=is_quiet) as done:
            for drawing in done:
                try:
                    counts["drawn" if drawing.result() else "there"] += 1
                except (click.ClickException, Problem) as error:
                    failed[drawings[drawing]] = sentence(error)
    finally:
        # On Ctrl-C the drawings under way are finished and stored: they have been paid for.
        pool.shutdown(cancel_futures=True)
    return counts, failed
