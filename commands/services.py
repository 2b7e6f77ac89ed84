"""Where a command signs and draws: with the settings in this folder, or on a server."""

import time
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property, wraps
from typing import Any

import click

from access import COMMAND_LINE, Access, Unauthorised
from commands.console import Command, announce_cache, built, load_settings
from commands.documents import FoundUrl
from drawing.reservation import Reservation
from picture import PARAMETERS, BadRequest, ImageRequest, Problem
from pipeline import Services
from settings.parsers import url_without_query
from settings.table import THREADS_KEPT_FREE
from upstream.client import Deadline, Reply, Upstream, UpstreamError
from web.sentences import SENTENCES, explain

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
        except Problem as error:
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
        Raises BadRequest, and Forbidden where links cannot be signed.
        """
        if not (resign or "key" in found.credentials):
            return None
        try:
            caller = self.access.authorise(found.credentials, pictures=found.pictures)
        except Unauthorised:
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
        """Draw a picture, and return False if it is cached. Raises Problem."""
        for request in found.pictures:
            if picture := self.services.cache.get(request.key, request):
                picture.close()
                return False
        reservation = Reservation(self.services.cache.state, COMMAND_LINE)
        self.services.pipeline.draw(found.request, reservation)
        return True


def drawn_on(created: float) -> str:
    return f"drawn {datetime.fromtimestamp(created, UTC):%Y-%m-%d %H:%M}"


_ANSWER_SECONDS, _DRAWING_SECONDS = 60.0, 600.0
_MAX_WAIT = 30
_SHOWN = (200, 206, 302)
_EXPIRED = SENTENCES["signature_expired"].en


class _Invalid(click.ClickException):
    """The service does not accept a picture's parameters."""


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
    def keys(self) -> tuple[str]:
        return (self.access_key or str(click.prompt("Access key", hide_input=True, err=True)),)

    def announce_cache(self) -> None:
        click.echo(f"Cache: that of {self.public_url}", err=True)

    def why_closed(self, found: FoundUrl) -> str | None:
        """Return why a URL does not show its picture, or None if it does."""
        status = self._ask("HEAD", found.address).status
        # The other errors come after the credentials have been accepted.
        if status in (*_SHOWN, 422, 429) or status >= 500:
            return None
        return _detail(self._get(found))

    def sign(
        self, request: ImageRequest, expires_in: int | None, extension: str | None = None
    ) -> str:
        """Have the service sign a picture's URL."""
        body = {name: getattr(request, name) for name in PARAMETERS}
        body |= {"description": request.prompt, "expires_in": expires_in, "extension": extension}
        # As WSGI will decode it.
        headers = {"Authorization": f"Bearer {self.keys[0]}".encode().decode("latin-1")}
        reply = self._ask("POST", f"{self.public_url}/sign", headers=headers, json=body)
        if reply.status == 200 and (url := _text(reply, "url")):
            return url
        raise (_Invalid if reply.status == 400 else click.ClickException)(_detail(reply))

    def sign_found(
        self, found: FoundUrl, *, resign: bool, old_keys: tuple[str, ...], expires_in: int | None
    ) -> dict[str, str | int] | None:
        """Return a signature in place of a URL's credentials, or None to leave them.

        It counts for our access key. With `resign`, signatures that the service accepts, or would
        if they had not expired, and old keys are replaced, too.
        """
        key = found.credentials.get("key")
        if not (resign and key in old_keys):
            may_sign = key in self.keys or (resign and "sig" in found.credentials)
            if not may_sign or self.why_closed(found) not in (None, _EXPIRED):
                return None
        with suppress(_Invalid):  # examining the document says so
            return dict(FoundUrl.read(self.sign(found.request, expires_in)).credentials)
        return None

    def describe(self, found: FoundUrl) -> str:
        """Return when a URL's picture was drawn."""
        reply = self._ask("HEAD", found.address)
        if reply.status == 302:
            return "at an image host"
        if "Last-Modified" in reply.headers:
            return drawn_on(parsedate_to_datetime(reply.headers["Last-Modified"]).timestamp())
        return NOT_DRAWN

    def draw(self, found: FoundUrl) -> bool:
        """Draw a picture, and return False if it is cached. Raises ClickException."""
        if self.describe(found) != NOT_DRAWN:
            return False
        reply = self._get(found)
        if reply.status not in _SHOWN:
            raise click.ClickException(_detail(reply))
        return True

    def _get(self, found: FoundUrl) -> Reply:
        """Ask for a URL's picture, or for its error as JSON. One byte of the picture is enough."""
        headers = {"Accept": "application/json", "Range": "bytes=0-0"}
        return self._ask("GET", found.address, _DRAWING_SECONDS, headers=headers)

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
    return _text(reply, "detail") or f"The service answers HTTP {reply.status}."


def _text(reply: Reply, name: str) -> str | None:
    """Return a text in the JSON object that a service answers with, or None."""
    try:
        text = reply.json()[name]
    except (UpstreamError, KeyError, TypeError):
        return None
    return text if isinstance(text, str) else None


AnyService = LocalService | RemoteService


def with_service(command: Command) -> Command:
    """Pass the service as the first argument, and add the option --server."""

    @click.option(
        "--server",
        metavar="URL",
        type=_server_url,
        help="A service elsewhere, which draws and signs. The access key is PROXY_ACCESS_KEY"
        " in the environment or .env; without it, you are asked.",
    )
    @wraps(command)
    def run(server: str | None, **arguments: Any) -> None:
        settings = load_settings(of_client=bool(server))
        if server is None:
            with built(settings) as services:
                command(LocalService(services), **arguments)
            return
        # The rest may need what a client's machine has not got.
        with closing(Upstream(settings.network)) as upstream:
            command(RemoteService(server, upstream, settings.access_key), **arguments)

    return run


def _server_url(text: str) -> str:
    try:
        return url_without_query(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
