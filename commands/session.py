"""The service whose settings are in this folder, as commands work with it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import wraps
from typing import Any

import click

import config
from access import Access, Unauthorised
from commands.console import Command, counted
from commands.documents import FoundUrl
from config import Settings
from picture import BadRequest, ImageRequest
from pipeline import Services
from settings.parsers import printable_url
from settings.redaction import RedactingFormatter
from settings.table import THREADS_KEPT_FREE
from storage import Unavailable
from storage.local.folder import owner_fault
from web.sentences import explain


def load_settings() -> Settings:
    """Return the settings, and print their warnings on stderr. Raises SettingsError."""
    settings = config.load()
    for warning in settings.warnings:
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


NOT_DRAWN = "not drawn yet"


class LocalService:
    """Opens, signs and draws with the settings and the cache of this machine."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.access, self.settings = services.access, services.settings
        self.public_url = self.settings.public_url
        self.keys = self.settings.all_access_keys
        # Jobs beyond the waiting places would be rejected.
        self.max_jobs = self.settings.threads - THREADS_KEPT_FREE

    def announce_cache(self) -> None:
        announce_cache(self.services)

    def why_closed(self, found: FoundUrl) -> str | None:
        """Return why a URL does not show its picture, or None if it does."""
        try:
            self._check_length(found.request)
            self.access.authorise(found.credentials, pictures=found.pictures)
        except (Unauthorised, BadRequest) as error:
            return explain(error)
        return None

    def _check_length(self, request: ImageRequest) -> None:
        if len(request.prompt) > (limit := self.settings.max_prompt_length):
            raise BadRequest("prompt_too_long", limit=limit)

    def sign(self, request: ImageRequest, expires_in: int | None, extension: str | None) -> str:
        """Return a picture's URL, signed. Raises BadRequest and Forbidden."""
        self._check_length(request)
        base = self.public_url or f"http://{self.settings.address}"
        signed = self.access.sign(request, self.access.shared, expires_in)
        return base + request.to_url(extension, **signed)

    def sign_found(
        self, found: FoundUrl, *, resign: bool, old_keys: tuple[str, ...], expires_in: int | None
    ) -> dict[str, str | int] | None:
        """Return a signature in place of a URL's credentials, or None to leave them.

        It counts for the key by which the URL opens. With `resign`, signatures are replaced, too,
        and what the settings or an old key have ever accepted; the latter counts for the service.
        """
        if not (resign or "key" in found.credentials):
            return None
        try:
            caller = self.access.authorise(found.credentials, pictures=found.pictures)
        except (Unauthorised, BadRequest):
            if not (resign and self._was_accepted(found, old_keys)):
                return None
            caller = self.access.shared
        return self.access.sign(found.request, caller, expires_in)

    def _was_accepted(self, found: FoundUrl, old_keys: tuple[str, ...]) -> bool:
        """Return whether a URL has opened at some time, whatever has expired since.

        An old key may have been an access key, the origin of a signing key, or a signing key.
        """
        for key in (self.settings.access_key, *old_keys):
            signing_keys = (*self.settings.signing_keys, *old_keys)
            settings = replace(self.settings, access_key=key, signing_keys=signing_keys)
            past = Access(settings, lambda: -1.0)  # before anything expired
            try:
                past.authorise(found.credentials, pictures=found.pictures)
                return True
            except BadRequest:
                return False
            except Unauthorised as error:
                if error.code == "signer_removed":  # and the signature is right
                    return True
        return False

    def describe(self, found: FoundUrl) -> str:
        """Return when a URL's picture was drawn. Raises Unavailable."""
        for request in found.pictures:
            if row := self.services.cache.state.find(request.key):
                return drawn_on(row.created)
        return NOT_DRAWN

    def draw(self, found: FoundUrl) -> bool:
        """Draw a picture, and return False if it is cached. Raises GaveUp and Unavailable."""
        for request in found.pictures:
            if picture := self.services.cache.get(request.key, request):
                picture.close()
                return False
        self.services.pipeline.draw(found.request)
        return True


def drawn_on(created: float) -> str:
    return f"drawn {datetime.fromtimestamp(created, UTC):%Y-%m-%d %H:%M}"
