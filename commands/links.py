"""`links`: the URLs in documents, what they show, and why they do not."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from commands.arguments import FILES, read_text
from commands.document_faults import Examiner
from commands.documents import FoundUrl, documents, find_urls
from commands.output import say
from commands.service import AnyService, with_service


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
