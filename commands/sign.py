"""`sign`: URLs that show one picture each and do not contain the access key."""

import json
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click

from access import MAX_EXPIRES_IN
from commands.console import AS_JSON, picture_options, say
from commands.documents import DocumentFault, Examiner, FoundUrl, documents, read, rewrite, split
from commands.services import AnyService, with_service
from picture import EXTENSIONS, BadRequest, ImageRequest, to_paste


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
    if in_place:
        keys = (*service.keys, *old_keys)
        examiner = Examiner(service.why_closed, service.public_url, keys)
        signing = _Signing(service, examiner, resign, old_keys, expires_in)
        files = documents(map(Path, arguments))
        sys.exit(_sign_files(files, signing, is_dry=dry_run, as_json=as_json))
    if len(arguments) != 1:
        raise click.UsageError("Give one PROMPT, in quotes, or --in-place and files.")
    wanted = ImageRequest.from_text(arguments[0], max_prompt_length=sys.maxsize, **parameters)
    link = to_paste(wanted, service.sign(wanted, expires_in, extension))
    click.echo(json.dumps(link) if as_json else link[form])


@dataclass(frozen=True, slots=True)
class _Signing:
    service: AnyService
    examiner: Examiner
    resign: bool
    old_keys: tuple[str, ...]
    expires_in: int | None

    def sign_text(self, text: str) -> tuple[str, list[tuple[int, str]]]:
        """Return the signed text, and each new URL with its line, counted from 1."""
        parts, changed, line = [], [], 1
        for url, rest in split(text):
            signed = self._signed(url)
            changed += [] if signed == url else [(line, signed)]
            parts += [signed, rest]
            line += rest.count("\n")
        return "".join(parts), changed

    def _signed(self, url: str) -> str:
        """Return the signed URL where it opens the same picture, else the URL as it is."""
        with suppress(BadRequest, ValueError):
            found = FoundUrl.read(url)
            if not (found.credentials and url.startswith(self.examiner.base)):
                return url
            credentials = self.service.sign_found(
                found,
                resign=self.resign,
                old_keys=self.old_keys,
                expires_in=self.expires_in or _seconds_left(found),
            )
            if credentials is None:
                return url
            again = FoundUrl.read(found.signed(credentials))
            is_same = again.pictures == found.pictures
            if is_same and "key" not in again.credentials and not self.service.why_closed(again):
                return again.url
        return url


def _seconds_left(found: FoundUrl) -> int | None:
    """Return how long a signature is valid, None if it does not expire or has expired."""
    exp = found.credentials.get("exp", "")
    left = int(exp) - int(time.time()) if exp.isdecimal() and "sig" in found.credentials else 0
    return min(left, MAX_EXPIRES_IN) if left > 0 else None


def _sign_files(files: list[Path], signing: _Signing, *, is_dry: bool, as_json: bool) -> int:
    """Sign the URLs in files, print what is left, and return the exit status."""
    counts: dict[str, int] = {}
    has_faults = False
    for file in files:
        text = read(file)
        signed, changed = signing.sign_text(text)
        if changed and not is_dry:
            rewrite(file, signed)
        found = signing.examiner.examine(signed)
        faults = [(line, one) for line, one in found if isinstance(one, DocumentFault)]
        has_faults |= bool(faults)
        counts[str(file)] = len(changed)
        if not as_json and (changed or faults or len(files) == 1):
            kinds = {"to sign" if is_dry else "signed": len(changed)}
            kinds |= Counter(fault.kind for _, fault in faults)
            say(f"{file}: {', '.join(f'{number} {kind}' for kind, number in kinds.items())}")
        for line, url in changed if is_dry and not as_json else ():
            say(f"{file}:{line}: {url}")
        for line, fault in faults:
            say(f"{file}:{line}: {fault.reason}", err=True)
    if as_json:
        click.echo(json.dumps(counts))
    return 1 if has_faults else 0
