"""`sign`: URLs that show one picture each and do not contain the access key."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path

import click

from access import MAX_EXPIRES_IN, Access, Unauthorised
from commands.arguments import AS_JSON, picture_options, read_request, read_text
from commands.documents import FoundUrl, replace_urls
from commands.left_keys import LeftKey, find_keys
from commands.output import say
from commands.rewriting import rewrite
from commands.session import Session, with_session
from config import Settings
from picture import EXTENSIONS, BadRequest
from web.links import Link


@click.command()
@click.argument("arguments", nargs=-1, required=True, metavar="PROMPT | FILE…")
@picture_options
@click.option(
    "--expires-in",
    type=click.IntRange(1, MAX_EXPIRES_IN),
    metavar="SECONDS",
    help="Let the URL expire.",
)
@click.option(
    "--extension",
    type=click.Choice(EXTENSIONS),
    help="End the path in an extension, for programs that want one.",
)
@click.option("--format", "form", type=click.Choice(["url", "markdown", "html"]), default="url")
@click.option("--in-place", is_flag=True, help="Sign every URL in FILE… that has the key.")
@AS_JSON
@with_session
def sign(
    session: Session,
    arguments: tuple[str, ...],
    expires_in: int | None,
    extension: str | None,
    form: str,
    in_place: bool,
    as_json: bool,
    **parameters: str | None,
) -> None:
    """Print a URL that shows one picture without the access key.

    With --in-place: replace `key=` by a signature in every URL of this service in Markdown
    and HTML files, and change nothing else. Exits 1 if a file still contains the key, and
    names the lines.
    """
    settings, access = session.settings, session.access
    if not access.can_sign:
        raise click.ClickException("Signing is off: set SIGNING_KEY.")
    if in_place:
        _sign_files([Path(name) for name in arguments], settings, access, expires_in, as_json)
        return
    if len(arguments) != 1:
        raise click.UsageError("Give one PROMPT, in quotes, or --in-place and files.")
    wanted = read_request(arguments[0], settings, parameters)
    base = settings.public_url or f"http://{settings.address}"
    signature = access.sign(wanted, access.shared, expires_in)
    link = Link(wanted, base + wanted.to_url(extension, **signature))
    click.echo(json.dumps(link.to_json()) if as_json else link.to_json()[form])


def _sign_files(
    files: list[Path], settings: Settings, access: Access, expires_in: int | None, as_json: bool
) -> None:
    limits = settings.public_url, settings.max_prompt_length

    def replacement(found: FoundUrl) -> str | None:
        with suppress(Unauthorised, BadRequest):
            caller = access.authorise({"key": found.credentials.get("key", "")})
            url = found.signed(access.sign(found.request, caller, expires_in))
            again = FoundUrl.read(url, settings.max_prompt_length)
            if again.request == found.request and "key" not in again.credentials:
                access.authorise(again.credentials, request=again.request)
                return url
        return None

    counts: dict[str, int] = {}
    is_clean = True
    for file in files:
        text = read_text(file)
        signed, counts[str(file)] = replace_urls(text, replacement, *limits)
        if signed != text:
            # Bytes that are not UTF-8 are written back as they were.
            rewrite(file, signed.encode("utf-8", "surrogateescape"))
        left = list(find_keys(signed, settings.all_access_keys, *limits))
        is_clean = is_clean and not left
        _report(file, counts[str(file)], left, is_quiet=as_json)
    if as_json:
        click.echo(json.dumps(counts))
    sys.exit(0 if is_clean else 1)


def _report(file: Path, signed: int, left: list[LeftKey], *, is_quiet: bool) -> None:
    """Print the counts, and on stderr each line in which the access key is left."""
    elsewhere = sum(one.is_elsewhere for one in left)
    counts = {"left": len(left) - elsewhere, "left on other hosts": elsewhere}
    texts = [f"{signed} signed", *(f"{count} {what}" for what, count in counts.items() if count)]
    if not is_quiet:
        say(f"{file}: {', '.join(texts)}")
    for one in left:
        say(f"{file}:{one.line}: {one.reason}", err=True)
