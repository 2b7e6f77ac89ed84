"""What commands read and print: text of strangers, such as prompts, cannot command the terminal."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from config import Settings
from picture import PARAMETERS, BadRequest, ImageRequest
from settings.redaction import RedactingFormatter, printable_lines
from web.sentences import explain

log = logging.getLogger("prompt_image_proxy")


def say(text: str, *, err: bool = False) -> None:
    """Print lines, with control characters escaped."""
    click.echo(printable_lines(text), err=err)


def say_json(value: Any) -> None:
    """Print JSON on one line; json.dumps escapes every control character but one."""
    click.echo(json.dumps(value).replace("\x7f", "\\u007f"))


class Commands(click.Group):
    """A group of commands whose errors are printable."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError:  # repeats the administrator's own words
            raise
        except click.ClickException as error:
            raise click.ClickException(printable_lines(error.format_message())) from error


@contextmanager
def logging_to_stderr(settings: Settings) -> Iterator[None]:
    """Print the program's warnings on stderr, redacted and printable."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter(settings.secrets()))
    handler.setLevel(logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])

FILES = click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path)
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_HELP = {
    "width": "Pixels, 1 to 4096.",
    "height": "Pixels, 1 to 4096.",
    "model": "The backend's model.",
    "seed": "An integer of at most 18 digits, 42 by default.",
    "quality": "In the backend's own words, such as high.",
    "style": "In the backend's own words, such as vivid.",
    "background": "In the backend's own words, such as transparent.",
    "negative_prompt": "What to leave out.",
}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def picture_options(command: Command) -> Command:
    """Add an option for each parameter of a picture's URL."""
    for name in reversed(PARAMETERS):
        option = f"--{name.replace('_', '-')}"
        command = click.option(option, name, help=_HELP[name])(command)
    return command


def counted(pictures: int) -> str:
    return f"{pictures} picture{'' if pictures == 1 else 's'}"


def progress(items: Iterable[T], label: str, length: int, *, is_quiet: bool) -> Any:
    """Return click's progress bar over `items`, on stderr."""
    return click.progressbar(
        items, length=length, label=label, show_pos=True, file=sys.stderr, hidden=is_quiet
    )


def echo_counts(counts: Mapping[str, int], *, as_json: bool) -> None:
    """Print a sentence such as `2 copied, 1 there`, or JSON."""
    text = ", ".join(f"{count} {outcome.replace('_', ' ')}" for outcome, count in counts.items())
    click.echo(json.dumps(counts) if as_json else text)


def read_text(file: Path) -> str:
    """Return a file's text; bytes that are not UTF-8 survive writing it back."""
    try:
        return file.read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise click.ClickException(f"{file} cannot be read: {error.strerror}.") from error


def read_request(
    prompt: str, max_prompt_length: int, parameters: dict[str, str | None]
) -> ImageRequest:
    """Return the picture that a command's arguments name."""
    try:
        return ImageRequest.from_text(prompt, max_prompt_length=max_prompt_length, **parameters)
    except BadRequest as error:
        raise click.ClickException(explain(error)) from error


def age(context: click.Context, option: click.Parameter, text: str | None) -> float | None:
    """Return the seconds of an age such as 30d, for click's `callback`."""
    if text is None:
        return None
    number, unit = text[:-1], text[-1:]
    if not (number.isascii() and number.isdecimal() and len(number) <= 6 and unit in _UNITS):
        raise click.BadParameter("write a number and s, m, h, d or w, such as 30d")
    return float(int(number) * _UNITS[unit])


def valid_text(context: click.Context, option: click.Parameter, text: str | None) -> str | None:
    """Return a text that is valid Unicode, for click's `callback`."""
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        raise click.BadParameter("write valid UTF-8") from None
    return text
