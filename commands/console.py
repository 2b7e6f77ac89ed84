"""What commands share: the parts of the service, options, and output.

Text of strangers, such as prompts, cannot command the terminal.
"""

import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from functools import wraps
from pathlib import Path
from typing import Any

import click

import config
from config import Settings, SettingsError
from picture import PARAMETERS, Problem
from pipeline import Services
from settings.parsers import is_unicode, printable_url
from settings.redaction import RedactingFormatter, printable_lines
from storage import BeingDrawn, Unavailable
from storage.local.folder import owner_fault
from web.sentences import explain


def say(text: str, *, err: bool = False) -> None:
    """Print lines, with control characters escaped."""
    click.echo(printable_lines(text), err=err)


def say_json(value: Any) -> None:
    """Print JSON on one line; json.dumps escapes every control character but one."""
    click.echo(json.dumps(value).replace("\x7f", "\\u007f"))


class Commands(click.Group):
    """A group of commands whose errors end them with a printable sentence."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError:  # repeats the administrator's own words
            raise
        except (click.ClickException, SettingsError, Problem, OSError) as error:
            if isinstance(error, OSError) and error.filename is None:  # of standard output
                raise
            raise click.ClickException(printable_lines(sentence(error))) from error


def sentence(error: Exception) -> str:
    """Return what a command says of an error."""
    match error:
        case click.ClickException():
            return error.format_message()
        case BeingDrawn():
            return explain(error)
        case Unavailable():
            return f"The cache cannot be used: {error}."
        case Problem():
            return explain(error)
        case OSError():
            return f"{error.filename}: {error.strerror}."
    return str(error)


Command = Callable[..., None]

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


def picture_options(command: Command) -> Command:
    """Add an option for each parameter of a picture's URL."""
    for name in reversed(PARAMETERS):
        option = f"--{name.replace('_', '-')}"
        command = click.option(option, name, help=_HELP[name])(command)
    return command


def valid_text(text: str) -> str:
    """Return an option's text, which the index could not look for in another encoding."""
    if not is_unicode(text):
        raise click.BadParameter("write valid UTF-8")
    return text


def counted(pictures: int) -> str:
    return f"{pictures} picture{'' if pictures == 1 else 's'}"


def progress(items: Iterable[Any], label: str, length: int, *, is_quiet: bool) -> Any:
    """Return click's progress bar over `items`, on stderr."""
    return click.progressbar(
        items, length=length, label=label, show_pos=True, file=sys.stderr, hidden=is_quiet
    )


def count_outcomes(
    outcomes: Iterable[str], counts: Counter[str], label: str, length: int, *, as_json: bool
) -> int:
    """Add outcomes to `counts`, with a progress bar, print them, and return the exit status.

    An outcome that is not in `counts` describes a problem, and is counted as unusable.
    """
    problems = []
    with progress(outcomes, label, length, is_quiet=as_json) as done:
        for outcome in done:
            counts[outcome if outcome in counts else "unusable"] += 1
            problems += [] if outcome in counts else [outcome]
    for problem in problems:
        say(problem, err=True)
    text = ", ".join(f"{count} {outcome.replace('_', ' ')}" for outcome, count in counts.items())
    click.echo(json.dumps(counts) if as_json else text)
    return 1 if problems else 0


def load_settings(*, of_client: bool = False) -> Settings:
    """Return the settings, and print their warnings on stderr. Raises SettingsError.

    A client's machine may run no service: faults count as not set, and nothing is printed.
    """
    try:
        settings = config.load()
    except SettingsError as error:
        if not of_client or error.settings is None:
            raise
        return error.settings
    for warning in () if of_client else settings.warnings:
        click.echo(f"Warning: {warning}", err=True)
    return settings


def built(settings: Settings) -> closing[Services]:
    """Build the parts of the service, to be closed after.

    Where no handler is set, Python prints warnings on stderr by a last one, which redacts them now.
    """
    handler = logging.lastResort
    assert handler
    handler.setFormatter(RedactingFormatter(settings.secrets()))
    make_services: Callable[[Settings], Services] = click.get_current_context().obj
    return closing(make_services(settings))


def with_cache(command: Command) -> Command:
    """Pass the parts of the service as the first argument, and say which cache is used."""

    @wraps(command)
    def run(**arguments: Any) -> None:
        with built(load_settings()) as services:
            announce_cache(services)
            command(services, **arguments)

    return run


def announce_cache(services: Services) -> None:
    """Print on stderr which cache the command uses: the service may use another one.

    Ends the command where it would create files that the service cannot write.
    """
    settings = services.settings
    if fault := owner_fault(settings.cache_dir):
        raise click.ClickException(f"CACHE_DIR: {fault}.")
    found = ""
    with suppress(Unavailable):
        found = f" ({counted(services.cache.state.totals().entries)})"
    places = [str(settings.cache_dir.absolute())]
    if settings.database_url:
        places = [printable_url(settings.database_url)]
        places += [settings.storage.url] if settings.storage else []
    click.echo(f"Cache: {' and '.join(places)}{found}", err=True)
