"""`sign`: URLs that show one picture each and do not contain the access key."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import click

from access import MAX_EXPIRES_IN, Forbidden
from commands.console import AS_JSON, picture_options, read_request, read_text, say
from commands.document_faults import DocumentFault, Examiner
from commands.documents import FoundUrl, all_urls, documents, replace_urls, rewrite
from commands.services import AnyService, with_service
from picture import EXTENSIONS, BadRequest
from web.sentences import explain


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
@click.option("--resign", is_flag=True, help="With --in-place: replace signatures, too.")
@click.option(
    "--old-key",
    "old_keys",
    multiple=True,
    metavar="KEY",
    help="With --resign: replace what this key opened, as an access key or a signing key.",
)
@click.option("--dry-run", is_flag=True, help="With --in-place: print the new URLs only.")
@AS_JSON
@with_service
def sign(
    service: AnyService,
    arguments: tuple[str, ...],
    expires_in: int | None,
    extension: str | None,
    form: str,
    in_place: bool,
    resign: bool,
    old_keys: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    **parameters: str | None,
) -> None:
    """Print a URL that shows one picture without the access key.

    With --in-place: replace `key=` by a signature in every URL of this service in Markdown
    and HTML files and in the Markdown files of folders, and change nothing else. Exits 1 if a
    file still contains a key or a URL of this service that does not open, and names the lines.
    """
    if (not in_place and (resign or dry_run)) or (old_keys and not resign):
        raise click.UsageError("--resign and --dry-run need --in-place; --old-key needs --resign.")
    try:
        if in_place:
            signing = _Signing(service, resign, old_keys, expires_in)
            files = documents(map(Path, arguments))
            sys.exit(_sign_files(files, signing, is_dry=dry_run, as_json=as_json))
        if len(arguments) != 1:
            raise click.UsageError("Give one PROMPT, in quotes, or --in-place and files.")
        wanted = read_request(arguments[0], service.max_prompt_length, parameters)
        link = service.link(wanted, expires_in, extension).to_json()
    except Forbidden as error:
        raise click.ClickException(explain(error)) from error
    click.echo(json.dumps(link) if as_json else link[form])


@dataclass(frozen=True, slots=True)
class _Signing:
    service: AnyService
    resign: bool
    old_keys: tuple[str, ...]
    expires_in: int | None

    def sign(self, found: FoundUrl) -> str | None:
        """Return the signed URL where it opens the same picture, or None."""
        credentials = self.service.sign_found(
            found,
            resign=self.resign,
            old_keys=self.old_keys,
            expires_in=self.expires_in or _seconds_left(found),
        )
        if credentials is None:
            return None
        try:
            again = FoundUrl.read(found.signed(credentials), self.service.max_prompt_length)
        except BadRequest:
            return None
        is_same = again.named.pictures == found.named.pictures and "key" not in again.credentials
        return again.url if is_same and not self.service.why_closed(again) else None

    def sign_text(self, text: str) -> tuple[str, int, list[DocumentFault]]:
        """Return the signed text, how many URLs changed, and what is wrong with it then."""
        limits = self.service.public_url, self.service.max_prompt_length
        signed, count = replace_urls(text, self.sign, *limits)
        keys = (*self.service.keys, *self.old_keys)
        examiner = Examiner(self.service.why_closed, keys, *limits)
        return signed, count, list(examiner.find_faults(signed))


def _seconds_left(found: FoundUrl) -> int | None:
    """Return how long a signature is valid, None if it does not expire or has expired."""
    exp = found.credentials.get("exp", "")
    left = int(exp) - int(time.time()) if exp.isdecimal() and "sig" in found.credentials else 0
    return min(left, MAX_EXPIRES_IN) if left > 0 else None


def _sign_files(files: list[Path], signing: _Signing, *, is_dry: bool, as_json: bool) -> int:
    """Sign the URLs in files; return the exit status."""
    counts: dict[str, int] = {}
    is_clean = True
    for file in files:
        text = read_text(file)
        signed, count, faults = signing.sign_text(text)
        if signed != text and not is_dry:
            # Bytes that are not UTF-8 are written back as they were.
            rewrite(file, signed.encode("utf-8", "surrogateescape"))
        counts[str(file)] = count
        is_clean = is_clean and not faults
        if not as_json and (count or faults or len(files) == 1):
            kinds = {"to sign" if is_dry else "signed": count}
            kinds |= Counter(fault.kind for fault in faults)
            say(f"{file}: {', '.join(f'{number} {kind}' for kind, number in kinds.items())}")
        if is_dry and not as_json:
            _print_changes(file, text, signed)
        for fault in faults:
            say(f"{file}:{fault.line}: {fault.reason}", err=True)
    if as_json:
        click.echo(json.dumps(counts))
    return 0 if is_clean else 1


def _print_changes(file: Path, text: str, signed: str) -> None:
    lines = zip(text.split("\n"), signed.split("\n"), strict=True)
    for number, (old, new) in enumerate(lines, 1):
        for _, url in all_urls(new) if new != old else ():
            if url not in old:
                say(f"{file}:{number}: {url}")
