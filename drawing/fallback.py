"""Pollinations.ai, asked when no backend has drawn. Source: APIDOCS.md in its repository."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import ClassVar
from urllib.parse import quote, urlencode

from cache import Cache
from dialect.endpoint import Answer
from dialect.judging import Fault, Outcome, retry_after
from drawing.backend import NotDrawn, counted
from drawing.cooldowns import Outages
from drawing.record import COOLING, Image
from images.formats import media_type_of
from metrics import OFF, Metrics
from picture import ImageRequest
from settings.servers import PollinationsSettings
from storage import Note, Unavailable
from upstream.client import Deadline, Reply, Upstream, UpstreamError, Why

# It takes any other seed for 42, so that all of those would draw one picture.
SEEDS = 2**31
SAME_BYTES_TTL = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class FallbackPicture(Note):
    """What the fallback drew, under the digest of its bytes: for which prompt and picture.

    `prompt` is a digest, and empty for a placeholder: two different prompts have got its bytes.
    """

    kind: ClassVar[str] = "fallback picture"

    prompt: str
    key: str


class Pollinations:
    """The supported service with a token, the legacy one without."""

    name = "pollinations"

    def __init__(
        self,
        settings: PollinationsSettings,
        upstream: Upstream,
        cache: Cache,
        *,
        timeout: float,
        max_image_bytes: int,
        metrics: Metrics = OFF,
    ) -> None:
        self.settings = settings
        self.upstream = upstream
        self.cache = cache
        self.timeout = timeout
        self.max_image_bytes = max_image_bytes
        self.headers = {"Accept": "image/*"}
        if settings.token:
            self.headers["Authorization"] = f"Bearer {settings.token}"
        key = upstream.access(settings.url, self.headers)
        self.outages = Outages(cache.state, key, "The fallback", model=settings.model)
        self.metrics = metrics
        metrics.backend_listed(self.name)

    def ready_in(self) -> float:
        """Return the seconds until it may be asked, 0 if it may now. Raises Unavailable."""
        return self.outages.recall().seconds

    def draw(self, prompt: str, request: ImageRequest, deadline: Deadline) -> Image:
        """Draw `prompt` at the size and seed of `request`, unless it is cooling down.

        Raises NotDrawn and Unavailable.
        """
        known = self.outages.recall()
        if known.seconds:
            raise NotDrawn.failed(COOLING, COOLING)
        try:
            with counted(self.metrics, self.name):
                image = self._draw(prompt, request, deadline)
        except NotDrawn as error:
            if error.fault.outcome is Outcome.REFUSED:
                self.outages.note(error.fault, str(error))
                self.outages.end(known)
            else:
                self.outages.count(known, error.fault, str(error), request.key)
            raise
        self.outages.end(known)
        return image

    def _draw(self, prompt: str, request: ImageRequest, deadline: Deadline) -> Image:
        reply = self._reply(prompt, request, deadline)
        image = self._image_in(reply, prompt)
        # The legacy service has some prompts share a picture, and says so.
        if reply.headers.get("X-Cache-Semantic") != "HIT":
            with suppress(Unavailable):
                self._check_bytes(image, prompt, request)
        return image

    def _reply(self, prompt: str, request: ImageRequest, deadline: Deadline) -> Reply:
        """Return a 200; with a token, after a second attempt if the first one timed out.

        The supported service has the same request join the drawing under way, billed once.
        """
        url = self._picture_url(prompt, request)
        try:
            return self._get(url, prompt, deadline)
        except NotDrawn as error:
            has_timed_out = error.fault.why == Why.TIMED_OUT and not deadline.is_over
            if not (self.settings.token and has_timed_out):
                raise
        return self._get(url, prompt, deadline)

    def _get(self, url: str, prompt: str, deadline: Deadline) -> Reply:
        try:
            reply = self.upstream.download(
                url,
                home=self.settings.url,
                deadline=deadline.within(self.timeout),
                limit=self.max_image_bytes,
                headers=self.headers,
            )
        except UpstreamError as error:
            raise NotDrawn.failed(error.why, str(error)) from error
        if reply.status != 200:
            fault = self._fault_of(reply, prompt)
            raise NotDrawn(fault, f"{fault.why} (HTTP {reply.status})")
        return reply

    def _picture_url(self, prompt: str, request: ImageRequest) -> str:
        """Return the URL of a picture: its path ends in the prompt."""
        width, height = request.pixels or (None, None)
        wanted = {
            "model": self.settings.model,
            "width": width,
            "height": height,
            "seed": request.seed % SEEDS,
            "nofeed": "true",
            "private": "true",
        }
        base, _, own_query = self.settings.url.partition("?")
        sent = urlencode({name: value for name, value in wanted.items() if value is not None})
        return f"{base}/{quote(prompt, safe='')}?" + (f"{own_query}&" if own_query else "") + sent

    def _image_in(self, reply: Reply, prompt: str) -> Image:
        if "X-Error-Type" in reply.headers:
            raise _placeholder("sent a placeholder", retry_after(reply.headers))
        media_type = media_type_of(reply.body)
        if media_type is None:
            fault = Answer.of(reply, (prompt,)).fault or Fault(Outcome.FAILED, "not a picture")
            raise NotDrawn(fault, "its answer is not a complete picture")
        return Image(reply.body, media_type, self.name)

    def _fault_of(self, reply: Reply, prompt: str) -> Fault:
        answer = Answer.of(reply, (prompt,))
        fault = answer.fault or Fault(Outcome.FAILED, "down")
        if reply.status == 402 and answer.error and "queue full" in answer.error.text.lower():
            return replace(fault, why="rate limited")
        return fault

    def _check_bytes(self, image: Image, prompt: str, request: ImageRequest) -> None:
        """Raise NotDrawn if another prompt has got these bytes; its picture is then deleted."""
        digest = _digest(image.data)
        mine = FallbackPicture(_digest(prompt.strip().lower().encode()), request.key)
        if self.cache.state.exchange(None, mine, digest, SAME_BYTES_TTL):
            return
        found = self.cache.state.recall(FallbackPicture, digest)
        if found is None or found.note.prompt == mine.prompt:
            return
        if found.note.prompt:
            self.cache.state.try_remember(FallbackPicture("", ""), digest, SAME_BYTES_TTL)
            self._delete(found.note.key)
        raise _placeholder("sent the same picture for two prompts", None)

    def _delete(self, key: str) -> None:
        """Delete a placeholder that was taken for a picture, unless a backend drew it since."""
        with suppress(Unavailable):
            row = self.cache.state.find(key)
            if row and row.drawn_by == self.name:
                self.cache.delete(key)


def _placeholder(detail: str, wait: float | None) -> NotDrawn:
    """A rate limit can come as a 200 with a placeholder in place of a picture."""
    return NotDrawn(Fault(Outcome.FAILED, "rate limited", wait=wait), detail)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
