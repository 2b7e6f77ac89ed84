"""A command's session: the settings, and the parts of the service built from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import update_wrapper
from pathlib import Path
from typing import Any, TypeVar

import click

from access import Access
from cache import Cache
from commands.console import counted
from config import Settings, SettingsError
from pipeline import Pipeline
from settings.parsers import printable_url
from storage import BeingDrawn, Unavailable
from storage.local.folder import owner_fault
from upstream.client import Upstream
from web.sentences import explain

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Session:
    """The parts of the service that a command works with."""

    settings: Settings
    access: Access
    cache: Cache
    pipeline: Pipeline
    upstream: Upstream

    def announce_cache(self) -> None:
        """Print on stderr which cache the command uses: the service may use another one.

        Ends the command where it would create files that the service cannot write.
        """
        settings = self.settings
        if fault := owner_fault(settings.cache_dir):
            raise click.ClickException(f"CACHE_DIR: {fault}.")
        found = ""
        with suppress(Unavailable):
            found = f" ({counted(self.cache.state.totals().entries)})"
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
    connect: Callable[[Settings], Upstream]
    # Below which files of deploy/ are installed.
    root: Path = Path("/")

    def settings(self) -> Settings:
        """Return the settings, and print their warnings on stderr. Raises SettingsError."""
        settings = self.load()
        for warning in settings.warnings:
            click.echo(f"Warning: {warning}", err=True)
        return settings

    def client_settings(self) -> Settings:
        """Return the settings of a machine that may run no service: faults count as not set."""
        try:
            return self.load()
        except SettingsError as error:
            if error.settings is None:
                raise
            return error.settings


def with_session(command: Callable[..., R]) -> Callable[..., R]:
    """Open a session before the command, pass it as the first argument, and close it after."""

    @click.pass_obj
    def run(door: Door, /, **arguments: Any) -> R:
        with errors_as_sentences(), door.open(door.settings()) as session:
            return command(session, **arguments)

    return update_wrapper(run, command)


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Let settings, a cache or a file that cannot be used end a command with a sentence."""
    try:
        yield
    except SettingsError as error:
        raise click.ClickException(str(error)) from error
    except BeingDrawn as error:
        raise click.ClickException(explain(error)) from error
    except Unavailable as error:
        raise click.ClickException(f"The cache cannot be used: {error}.") from error
    except OSError as error:
        if error.filename is None:  # of standard output, for click
            raise
        raise click.ClickException(f"{error.filename}: {error.strerror}.") from error
