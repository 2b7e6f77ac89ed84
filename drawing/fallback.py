"""Pollinations.ai, asked when no backend has drawn. Source: APIDOCS.md in its repository."""

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
from drawing.record import COOLING, Drawing, Image
from images.formats import media_type_of
from metrics import OFF, Metrics
from settings.servers import PollinationsSettings
from storage import Note, Unavailable
from upstream.client import Reply, Upstream, UpstreamError, Why

# It takes any other seed for 42, so that all of those would draw one picture.
SEEDS = 2**31
SAME_BYTES_TTL = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class FallbackPicture(Note):
    """What the fallback drew, under the digest of its bytes: for which prompt and picture.

    `prompt` is a digest. Both are empty for a placeholder: two prompts have got its bytes.
    """

    kind: ClassVar[str] = "fallback picture"

    prompt: str
    key: str


@dataclass(eq=False)
class Pollinations:
    """The supported service with a token, the legacy one without."""

    settings: PollinationsSettings
    upstream: Upstream
    cache: Cache
    timeout: float
    max_image_bytes: int
    metrics: Metrics = OFF
    name: ClassVar[str] = "pollinations"

    def __post_init__(self) -> None:
        settings = self.settings
        self.headers = {"Accept": "image/*"}
        if settings.token:
            self.headers["Authorization"] = f"Bearer {settings.token}"
        key = self.upstream.access(settings.url, self.headers)
        self.outages = Outages(self.cache.state, key, "The fallback", model=settings.model)
        self.metrics.backend_listed(self.name)

    def draw(self, drawing: Drawing) -> Image:
        """Draw the best prompt, unless it is cooling down. Raises NotDrawn and Unavailable."""
        known = self.outages.recall()
        if self.outages.wait(known):
            raise NotDrawn.failed(COOLING, COOLING)
        with counted(self.metrics, self.name, self.outages, known, drawing.request.key):
            try:
                return self._ask(drawing)
            except NotDrawn as error:
                has_timed_out = error.fault.why == Why.TIMED_OUT and not drawing.deadline.is_over
                if not (self.settings.token and has_timed_out):
                    raise
            # The supported service has it join the drawing under way, billed once.
            return self._ask(drawing)

    def _ask(self, drawing: Drawing) -> Image:
        try:
            reply = self.upstream.download(
                self._picture_url(drawing),
                home=self.settings.url,
                deadline=drawing.deadline.within(self.timeout),
                limit=self.max_image_bytes,
                headers=self.headers,
            )
        except UpstreamError as error:
            raise NotDrawn.failed(error.why, str(error)) from error
        image = self._image_in(reply, drawing.best_prompt)
        # The legacy service has some prompts share a picture, and says so.
        if reply.headers.get("X-Cache-Semantic") != "HIT":
            with suppress(Unavailable):
                self._check_bytes(image, drawing)
        return image

    def _picture_url(self, drawing: Drawing) -> str:
        """Return the URL of a picture: its path ends in the prompt."""
        request, path = drawing.request, quote(drawing.best_prompt, safe="")
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
        return f"{base}/{path}?" + (f"{own_query}&" if own_query else "") + sent

    def _image_in(self, reply: Reply, prompt: str) -> Image:
        """Return the picture in an answer. Raises NotDrawn."""
        # A rate limit can come as a 200 with a placeholder in place of a picture.
        if reply.status == 200 and "X-Error-Type" in reply.headers:
            fault = Fault(Outcome.FAILED, "rate limited", wait=retry_after(reply.headers))
            raise NotDrawn(fault, "sent a placeholder")
        media_type = media_type_of(reply.body)
        if reply.status == 200 and media_type:
            return Image(reply.body, media_type, self.name)
        answer = Answer.of(reply, (prompt,), (self.settings.token or "",))
        why = "not a picture" if reply.status == 200 else "down"
        fault = answer.fault or Fault(Outcome.FAILED, why)
        if reply.status == 402 and answer.error and "queue full" in answer.error.text.lower():
            fault = replace(fault, why="rate limited")
        raise NotDrawn(fault, f"{fault.why} (HTTP {reply.status})")

    def _check_bytes(self, image: Image, drawing: Drawing) -> None:
        """Raise NotDrawn if another prompt has got these bytes; its picture is then deleted."""
        state, digest = self.cache.state, _digest(image.data)
        prompt = drawing.best_prompt.strip().lower()
        mine = FallbackPicture(_digest(prompt.encode()), drawing.request.key)
        if state.exchange(None, mine, digest, SAME_BYTES_TTL):
            return
        found = state.recall(FallbackPicture, digest)
        if found is None or found.note.prompt == mine.prompt:
            return
        if key := found.note.key:
            with suppress(Unavailable):
                row = state.find(key)
                # It may not be stored yet: the next one with these bytes tries again.
                if row and (row.drawn_by != self.name or self.cache.delete(key)):
                    key = ""
            state.try_remember(FallbackPicture("", key), digest, SAME_BYTES_TTL)
        raise NotDrawn.failed("rate limited", "sent the same picture for two prompts")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
