"""What commands print: text of strangers, such as prompts, cannot command the terminal."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from config import RedactingFormatter, Settings
from settings.terminal import printable_lines

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
    handler.setFormatter(RedactingFormatter(settings))
    handler.setLevel(logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
