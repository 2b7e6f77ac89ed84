"""`warm`: draw the pictures in documents that are not cached."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import click

from commands.arguments import AS_JSON, FILES, progress, read_text
from commands.documents import find_urls
from commands.output import say, say_json
from commands.session import Session, with_session
from drawing.record import GaveUp
from picture import Named
from settings.table import THREADS_KEPT_FREE
from storage import Unavailable
from web.sentences import explain

Outcomes = list[tuple[Named, str]]


@click.command()
@FILES
@click.option("--jobs", type=click.IntRange(1, 32), default=4, show_default=True)
@AS_JSON
@with_session
def warm(session: Session, files: tuple[Path, ...], jobs: int, as_json: bool) -> None:
    """Draw the pictures in Markdown and HTML files that are not cached yet.

    It can be interrupted and run again. A running server shares its locks: nothing is
    drawn twice.
    """
    session.announce_cache()
    wanted = _wanted(files, session)
    # Jobs beyond the waiting places would be rejected.
    jobs = min(jobs, session.settings.threads - THREADS_KEPT_FREE)
    outcomes = _draw_all(wanted, partial(_draw, session), jobs, is_quiet=as_json)
    sys.exit(_report(outcomes, as_json=as_json))


def _wanted(files: tuple[Path, ...], session: Session) -> list[Named]:
    """Return the pictures that the files show with a valid key or signature, each once."""
    limits = session.settings.public_url, session.settings.max_prompt_length
    found = [one.named for file in files for _, one in find_urls(read_text(file), *limits)]
    opened = [one for one in found if session.access.opens(one)]
    return list({one.pictures[0].key: one for one in opened}.values())


def _draw(session: Session, named: Named) -> str:
    """Draw a picture that is not cached yet; return `drawn`, `there`, or why it failed."""
    try:
        for request in named.pictures:
            if picture := session.cache.get(request.key, request):
                picture.close()
                return "there"
        session.pipeline.draw(named.request)
    except GaveUp as error:
        return explain(error)
    except Unavailable as error:
        return str(error)
    return "drawn"


def _draw_all(
    wanted: list[Named], draw: Callable[[Named], str], jobs: int, *, is_quiet: bool
) -> Outcomes:
    pool = ThreadPoolExecutor(jobs)
    try:
        waiting = {pool.submit(draw, named): named for named in wanted}
        completed = as_completed(waiting)
        with progress(completed, "Drawing", len(waiting), is_quiet=is_quiet) as done:
            return [(waiting[future], future.result()) for future in done]
    finally:
        # On Ctrl-C the drawings under way are finished and stored: they have been paid for.
        pool.shutdown(cancel_futures=True)


def _report(outcomes: Outcomes, *, as_json: bool) -> int:
    """Print the outcomes; return the exit status."""
    counts = {how: sum(outcome == how for _, outcome in outcomes) for how in ("drawn", "there")}
    failed = {one.request.prompt: how for one, how in outcomes if how not in counts}
    if as_json:
        say_json(counts | {"failed": failed})
    else:
        click.echo(f"{counts['drawn']} drawn, {counts['there']} there, {len(failed)} failed")
        for prompt, why in failed.items():
            say(f"  {' '.join(prompt.split())[:50]:<50}  {why}")
    return 1 if failed else 0
