"""Pollinations.ai, asked when no backend has drawn. Source: APIDOCS.md in its repository."""

from __future__ import annotations

from urllib.parse import quote, urlencode

from dialect.endpoint import Answer
from dialect.judging import Fault, Outcome
from drawing.backend import NotDrawn, counted
from drawing.record import Image
from images.formats import media_type_of
from metrics import OFF, Metrics
from picture import ImageRequest
from settings.servers import PollinationsSettings
from upstream.client import Deadline, Reply, Upstream, UpstreamError


class Pollinations:
    """The supported service with a token, the legacy one without. It has no cooldown."""

    name = "pollinations"

    def __init__(
        self,
        settings: PollinationsSettings,
        upstream: Upstream,
        *,
        timeout: float,
        max_image_bytes: int,
        metrics: Metrics = OFF,
    ) -> None:
        self.settings = settings
        self.upstream = upstream
        self.timeout = timeout
        self.max_image_bytes = max_image_bytes
        self.headers = {"Accept": "image/*"}
        if settings.token:
            self.headers["Authorization"] = f"Bearer {settings.token}"
        self.metrics = metrics
        metrics.backend_listed(self.name)

    def draw(self, prompt: str, request: ImageRequest, deadline: Deadline) -> Image:
        """Draw `prompt` at the size and seed of `request`. Raises NotDrawn."""
        with counted(self.metrics, self.name):
            return self._image_in(self._ask(prompt, request, deadline.within(self.timeout)))

    def _ask(self, prompt: str, request: ImageRequest, deadline: Deadline) -> Reply:
        try:
            return self.upstream.download(
                self._picture_url(prompt, request),
                home=self.settings.url,
                deadline=deadline,
                limit=self.max_image_bytes,
                headers=self.headers,
            )
        except UpstreamError as error:
            raise NotDrawn.failed(error.why, str(error)) from error

    def _picture_url(self, prompt: str, request: ImageRequest) -> str:
        """Return the URL of a picture: its path ends in the prompt."""
        width, height = request.pixels or (None, None)
        wanted = {
            "model": self.settings.model,
            "width": width,
            "height": height,
            "seed": request.seed,
            "nofeed": "true",
            "private": "true",
        }
        base, _, own_query = self.settings.url.partition("?")
        sent = urlencode({name: value for name, value in wanted.items() if value is not None})
        return f"{base}/{quote(prompt, safe='')}?" + (f"{own_query}&" if own_query else "") + sent

    def _image_in(self, reply: Reply) -> Image:
        if reply.status != 200:
            fault = Answer.of(reply).fault or Fault(Outcome.FAILED, "down")
            raise NotDrawn(fault, f"{fault.why} (HTTP {reply.status})")
        if "X-Error-Type" in reply.headers:
            # A rate limit can come as a 200 with a placeholder in place of a picture.
            raise NotDrawn.failed("rate limited", "sent a placeholder")
        media_type = media_type_of(reply.body)
        if media_type is None:
            raise NotDrawn.failed("not a picture", "its answer is not a complete picture")
        return Image(reply.body, media_type, self.name)
