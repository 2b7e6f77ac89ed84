"""The end of a drawing: the picture is converted, then uploaded or stored as a file."""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cache import Cache, NotKept
from dialect.judging import Fault, Outcome
from drawing.cooldowns import Cooldown, Outages
from drawing.record import Drawing, Image, Stage
from hosting import ImageHost, UploadFailed
from images.formats import EXTENSIONS, Inconvertible
from metrics import OFF, Metrics
from storage import Row, Unavailable

if TYPE_CHECKING:
    from images.convert import Converter  # needs Pillow

log = logging.getLogger("prompt_image_proxy.storing")

# The key of the cooldown of the image host; there is at most one.
HOST_KEY = "image host"


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture just drawn; `row` is None if it could not be cached.

    `source` is backend, rewritten or fallback, or cache if another process drew it meanwhile.
    """

    source: str
    stages: tuple[Stage, ...]
    row: Row | None
    image: Image | None = None
    hosted_url: str | None = None


class Storing:
    """Stores pictures: at the image host if it accepts them, otherwise in the cache."""

    def __init__(
        self,
        cache: Cache,
        host: ImageHost | None,
        upload_timeout: float,
        converter: Converter | None = None,
        metrics: Metrics = OFF,
    ) -> None:
        self.cache = cache
        self.host = host
        self.upload_timeout = upload_timeout
        self.converter = converter
        self.metrics = metrics
        self._unconverted: set[str] = set()
        self._outages = Outages(cache.state, HOST_KEY, "The image host", is_avoided=False)

    def reserve(self) -> AbstractContextManager[None]:
        """Raise NoRoom or Unavailable unless a picture drawn in the block could be stored.

        Room in the cache matters only without an image host, or while uploads to it fail.
        """
        is_hosted = self.host is not None and not self._outages.recall().seconds
        return self.cache.reserve(is_hosted=is_hosted)

    def store(self, drawing: Drawing, image: Image) -> Drawn:
        """Store the picture of a drawing. One that cannot be stored can still be delivered."""
        drawing, image = self._convert(drawing, image)
        drawing, hosted_url = self._upload(drawing, image)
        row = None
        with suppress(NotKept):
            row = self.cache.put(
                drawing.key,
                image.data,
                image.media_type,
                url=hosted_url,
                request=drawing.request,
                optimized=drawing.optimized,
                rewritten=drawing.rewritten,
                revised=image.revised_prompt,
                drawn_by=image.drawn_by,
            )
        return Drawn(drawing.source, drawing.stages, row, image, hosted_url)

    def _convert(self, drawing: Drawing, image: Image) -> tuple[Drawing, Image]:
        """Return the picture in the configured format, or unchanged if it cannot be converted."""
        if not self.converter or not self.converter.is_needed(image.data, image.media_type):
            return drawing, image
        began = time.monotonic()
        try:
            data, media_type = self.converter.convert(image.data, image.media_type)
        except Inconvertible as error:
            if str(error) not in self._unconverted:
                self._unconverted.add(str(error))
                detail = f"the picture {error}; stored unchanged (logged once per reason)"
                log.warning("Could not convert %s: %s", drawing, detail)
            return drawing.after(Stage.since(began, "convert", "failed")), image
        converted = replace(image, data=data, media_type=media_type)
        return drawing.after(Stage.since(began, "convert", "ok")), converted

    def _upload(self, drawing: Drawing, image: Image) -> tuple[Drawing, str | None]:
        """Return the picture's URL at the image host, or None to store it as a file."""
        if not self.host:
            return drawing, None
        began, known = time.monotonic(), Cooldown()
        with suppress(Unavailable):
            known = self._outages.recall()
        name = f"{drawing.key[:32]}.{EXTENSIONS[image.media_type]}"
        deadline = drawing.deadline.within(self.upload_timeout)
        try:
            with self.metrics.upload():
                url = self.host.upload(image.data, name, image.media_type, deadline)
        except UploadFailed as error:
            fault = Fault(Outcome.FAILED, "upload failed")
            self._outages.count(known, fault, f"{error}; pictures are stored as files", drawing.key)
            return drawing.after(Stage.since(began, "upload", "failed")), None
        self._outages.end(known)
        return drawing.after(Stage.since(began, "upload", "ok")), url
