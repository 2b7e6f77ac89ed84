"""Where a command signs and draws: with the settings in this folder, or on a server."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cached_property, update_wrapper
from typing import Any

import click

import config
from commands.documents import FoundUrl
from commands.session import (
    DRAWN,
    NOT_DRAWN,
    THERE,
    LocalService,
    MakeServices,
    R,
    built,
    drawn_on,
    load_settings,
)
from config import Settings, SettingsError
from picture import PARAMETERS, ImageRequest
from settings.parsers import url_without_query
from upstream.client import Deadline, Reply, Upstream, UpstreamError
from web.picture_link import Link
from web.sentences import SENTENCES

_ANSWER_SECONDS, _DRAWING_SECONDS = 60.0, 600.0
_MAX_WAIT = 30
_SHOWN = (200, 206, 302)
_EXPIRED = SENTENCES["signature_expired"].en


@dataclass
class RemoteService:
    """Asks a service over HTTP: POST /sign with an access key, and the URLs themselves.

    `public_url` is what the documents' URLs begin with. Without `access_key`, one is asked for when
    it is needed.
    """

    public_url: str
    upstream: Upstream
    access_key: str | None
    max_jobs = 32

    @cached_property
    def key(self) -> str:
        return self.access_key or str(click.prompt("Access key", hide_input=True, err=True))

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def announce_cache(self) -> None:
        click.echo(f"Cache: that of {self.public_url}", err=True)

    def why_closed(self, found: FoundUrl) -> str | None:
        """Return why a URL does not show its picture, or None if it does."""
        status = self._ask("HEAD", found.address).status
        # The other errors come after the credentials have been accepted.
        if status in (*_SHOWN, 422, 429) or status >= 500:
            return None
        return _detail(self._get(found))

    def link(self, request: ImageRequest, expires_in: int | None, extension: str | None) -> Link:
        """Have the service sign a picture's URL."""
        reply = self._sign(request, expires_in, extension)
        if reply.status != 200:
            raise click.ClickException(_detail(reply))
        return Link(request, reply.json()["url"])

    def sign_found(
        self, found: FoundUrl, *, resign: bool, old_keys: tuple[str, ...], expires_in: int | None
    ) -> dict[str, str | int] | None:
        """Return a signature in place of a URL's credentials, or None to leave them.

        It counts for our access key. With `resign`, signatures that the service accepts, or would
        if they had not expired, and old keys are replaced, too.
        """
        key = found.credentials.get("key")
        is_known = key == self.key or (resign and key in old_keys)
        if not is_known and resign and "sig" in found.credentials:
            is_known = self.why_closed(found) in (None, _EXPIRED)
        if not is_known:
            return None
        reply = self._sign(found.request, expires_in)
        if reply.status == 400:  # why_closed says what is wrong with it
            return None
        if reply.status != 200:
            raise click.ClickException(_detail(reply))
        return dict(FoundUrl.read(reply.json()["url"]).credentials)

    def describe(self, found: FoundUrl) -> str:
        """Return when a URL's picture was drawn."""
        reply = self._ask("HEAD", found.address)
        if reply.status == 302:
            return "at an image host"
        if "Last-Modified" in reply.headers:
            return drawn_on(parsedate_to_datetime(reply.headers["Last-Modified"]).timestamp())
        return NOT_DRAWN

    def draw(self, found: FoundUrl) -> str:
        """Draw a picture that is not cached yet; return DRAWN, THERE, or why it failed."""
        try:
            reply = self._get(found)
        except click.ClickException as error:
            return error.message
        if reply.status not in _SHOWN:
            return _detail(reply)
        return THERE if "hit" in reply.headers.get("Cache-Status", "") else DRAWN

    def _get(self, found: FoundUrl) -> Reply:
        """Ask for a URL's picture, or for its error as JSON. One byte of the picture is enough."""
        headers = {"Accept": "application/json", "Range": "bytes=0-0"}
        return self._ask("GET", found.address, _DRAWING_SECONDS, headers=headers)

    def _sign(
        self, request: ImageRequest, expires_in: int | None, extension: str | None = None
    ) -> Reply:
        body = {name: getattr(request, name) for name in PARAMETERS}
        body |= {"description": request.prompt, "expires_in": expires_in, "extension": extension}
        # As WSGI will decode it.
        headers = {"Authorization": f"Bearer {self.key}".encode().decode("latin-1")}
        return self._ask("POST", f"{self.public_url}/sign", headers=headers, json=body)

    def _ask(self, method: str, url: str, seconds: float = _ANSWER_SECONDS, **more: Any) -> Reply:
        """Send a request; repeat it when the service asks for a moment's patience.

        Its 429 and 503 come before anything is paid for.
        """
        deadline = Deadline.after(seconds)
        while True:
            try:
                reply = self.upstream.request(method, url, deadline=deadline, **more)
            except UpstreamError as error:
                raise click.ClickException(f"{self.public_url}: {error}.") from error
            wait = reply.headers.get("Retry-After", "") if reply.status in (429, 503) else ""
            if not wait.isdecimal() or int(wait) > min(_MAX_WAIT, deadline.remaining()):
                return reply
            time.sleep(int(wait))


def _detail(reply: Reply) -> str:
    """Return what an error says of itself, or its status."""
    try:
        detail = reply.json()["detail"]
    except (UpstreamError, KeyError, TypeError):
        detail = None
    return detail if isinstance(detail, str) else f"The service answers HTTP {reply.status}."


AnyService = LocalService | RemoteService


def with_service(command: Callable[..., R]) -> Callable[..., R]:
    """Pass the service as the first argument, and add the option --server."""

    @click.option(
        "--server",
        metavar="URL",
        callback=_server,
        help="A service elsewhere, which draws and signs. The access key is PROXY_ACCESS_KEY"
        " in the environment or .env; without it, you are asked.",
    )
    @click.pass_obj
    def run(make_services: MakeServices, /, server: str | None, **arguments: Any) -> R:
        settings = _client_settings() if server else load_settings()
        with built(make_services, settings) as services:
            if server is None:
                return command(LocalService(services), **arguments)
            service = RemoteService(server, services.upstream, settings.access_key)
            return command(service, **arguments)

    return update_wrapper(run, command)


def _client_settings() -> Settings:
    """Return the settings of a machine that may run no service: faults count as not set."""
    try:
        return config.load()
    except SettingsError as error:
        if error.settings is None:
            raise
        return error.settings


def _server(context: click.Context, option: click.Parameter, text: str | None) -> str | None:
    try:
        return text and url_without_query(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
