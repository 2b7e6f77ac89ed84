"""What commands work with: the settings, and the parts of the service that they describe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any, TypeVar

import click

from access import Access
from cache import Cache
from commands.arguments import counted
from config import Settings, SettingsError
from pipeline import Pipeline
from settings.parsers import printable_url
from storage import Unavailable

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Session:
    """The parts of the service that a command works with."""

    settings: Settings
    access: Access
    cache: Cache
    pipeline: Pipeline

    def announce_cache(self) -> None:
        """Say on stderr which cache a command works on: CACHE_DIR may be the service's only."""
        settings, totals = self.settings, self.cache.totals()
        found = f" ({counted(totals.entries)})" if totals else ""
        places = [str(settings.cache_dir.absolute())]
        if settings.database_url:
            places = [printable_url(settings.database_url)]
            places += [settings.storage.url] if settings.storage else []
        click.echo(f"Cache: {' and '.join(places)}{found}", err=True)


@dataclass(frozen=True, slots=True)
class Door:
    """Where a command gets its settings and its session: the object of click's context."""

    load: Callable[[], Settings]
    open: Callable[[Settings], AbstractContextManager[Session]]

    def settings(self) -> Settings:
        """Return the settings, with their warnings on stderr; end the command if they are wrong."""
        try:
            settings = self.load()
        except SettingsError as faults:
            raise click.ClickException(str(faults)) from None
        for warning in settings.warnings:
            click.echo(f"Warning: {warning}", err=True)
        return settings


def with_session(command: Callable[..., R]) -> Callable[..., R]:
    """Open a session before the command, pass it as the first argument, and close it after."""

    @click.pass_obj
    def run(door: Door, /, **arguments: Any) -> R:
        with door.open(door.settings()) as session:
            return command(session, **arguments)

    return update_wrapper(run, command)


@contextmanager
def cache_errors() -> Iterator[None]:
    """End the command with a sentence if the cache cannot be used."""
    try:
        yield
    except Unavailable as error:
        raise click.ClickException(f"The cache cannot be used: {error}.") from error
