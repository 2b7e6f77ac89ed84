"""The service whose settings are in this folder, for commands that read documents."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from access import Access, Unauthorised
from commands.documents import FoundUrl
from commands.session import Session
from drawing.record import GaveUp
from picture import BadRequest, ImageRequest
from settings.table import THREADS_KEPT_FREE
from storage import Unavailable
from web.picture_link import Link
from web.sentences import explain

DRAWN, THERE = "drawn", "there"
NOT_DRAWN = "not drawn yet"


class LocalService:
    """Opens, signs and draws with the settings and the cache of this machine."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.access = session.access
        self.settings = session.settings
        self.public_url = self.settings.public_url
        self.max_prompt_length = self.settings.max_prompt_length
        self.keys = self.settings.all_access_keys
        # Jobs beyond the waiting places would be rejected.
        self.max_jobs = self.settings.threads - THREADS_KEPT_FREE

    def announce_cache(self) -> None:
        self.session.announce_cache()

    def why_closed(self, found: FoundUrl) -> str | None:
        """Return why a URL does not show its picture, or None if it does."""
        try:
            self.access.authorise(found.credentials, pictures=found.named.pictures)
        except (Unauthorised, BadRequest) as error:
            return explain(error)
        return None

    def link(self, request: ImageRequest, expires_in: int | None, extension: str | None) -> Link:
        """Sign a picture's URL. Raises Forbidden."""
        base = self.public_url or f"http://{self.settings.address}"
        signed = self.access.sign(request, self.access.shared, expires_in)
        return Link(request, base + request.to_url(extension, **signed))

    def sign_found(
        self, found: FoundUrl, *, resign: bool, old_keys: tuple[str, ...], expires_in: int | None
    ) -> dict[str, str | int] | None:
        """Return a signature in place of a URL's credentials, or None to leave them.

        It counts for the key by which the URL opens. With `resign`, signatures are replaced, too,
        and what the settings or an old key have ever accepted; the latter counts for the service.
        """
        try:
            caller = self.access.authorise(found.credentials, pictures=found.named.pictures)
        except (Unauthorised, BadRequest):
            if not (resign and self._was_accepted(found, old_keys)):
                return None
            caller = self.access.shared
        if not (resign or "key" in found.credentials):
            return None
        return self.access.sign(found.request, caller, expires_in)

    def _was_accepted(self, found: FoundUrl, old_keys: tuple[str, ...]) -> bool:
        """Return whether a URL has opened at some time, whatever has expired since."""
        for access in self._past(old_keys):
            try:
                access.authorise(found.credentials, pictures=found.named.pictures)
                return True
            except BadRequest:
                return False
            except Unauthorised as error:
                if error.code == "signer_removed":  # and the signature is right
                    return True
        return False

    def _past(self, old_keys: tuple[str, ...]) -> Iterator[Access]:
        """Yield what accepts the current keys and each old one, as of before anything expired.

        An old key may have been an access key, the origin of a signing key, or a signing key.
        """
        for key in (self.settings.access_key, *old_keys):
            yield Access(
                key,
                named_keys=self.settings.access_keys,
                signing_keys=(*self.settings.signing_keys, *old_keys),
                clock=lambda: -1.0,
            )

    def describe(self, found: FoundUrl) -> str:
        """Return when a URL's picture was drawn. Raises Unavailable."""
        for request in found.named.pictures:
            if row := self.session.cache.state.find(request.key):
                return drawn_on(row.created)
        return NOT_DRAWN

    def draw(self, found: FoundUrl) -> str:
        """Draw a picture that is not cached yet; return DRAWN, THERE, or why it failed."""
        try:
            for request in found.named.pictures:
                if picture := self.session.cache.get(request.key, request):
                    picture.close()
                    return THERE
            self.session.pipeline.draw(found.request)
        except GaveUp as error:
            return explain(error)
        except Unavailable as error:
            return str(error)
        return DRAWN


def drawn_on(created: float) -> str:
    return f"drawn {datetime.fromtimestamp(created, UTC):%Y-%m-%d %H:%M}"
