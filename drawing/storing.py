"""The end of a drawing: the picture is converted, then uploaded or stored as a file."""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cache import Cache, NotKept
from dialect.judging import Fault, Outcome
from drawing.cooldowns import Cooldown, Known, Outages
from drawing.record import Drawing, Image
from hosting import ImageHost, UploadFailed
from images.formats import EXTENSIONS, Inconvertible
from metrics import OFF, Metrics
from storage import Unavailable
from upstream.client import Deadline

if TYPE_CHECKING:
    from images.convert import Converter  # needs Pillow

log = logging.getLogger("prompt_image_proxy.storing")

# The key of the cooldown of the image host; there is at most one.
HOST_KEY = "image host"


@dataclass(eq=False)
class Storing:
    """Stores pictures: at the image host if it accepts them, otherwise in the cache."""

    cache: Cache
    host: ImageHost | None
    upload_timeout: float
    converter: Converter | None = None
    metrics: Metrics = OFF

    def __post_init__(self) -> None:
        self._unconverted = set[str]()
        self._outages = Outages(self.cache.state, HOST_KEY, "The image host", is_avoided=False)

    def reserve(self) -> AbstractContextManager[None]:
        """Raise NoRoom or Unavailable unless a picture drawn in the block could be stored.

        Room in the cache matters only without an image host, or while uploads to it fail.
        """
        is_hosted = self.host is not None and not self._outages.wait()
        return nullcontext() if is_hosted else self.cache.store.reserve()

    def store(self, drawing: Drawing, image: Image) -> None:
        """Store the picture of a drawing. One that cannot be stored can still be delivered."""
        if self.converter and self.converter.is_needed(image.data, image.media_type):
            image = drawing.image = self._convert(self.converter, drawing, image)
        if self.host:
            drawing.hosted_url = self._upload(self.host, drawing, image)
        with suppress(NotKept):
            drawing.row = self.cache.put(
                drawing.request.key,
                image.data,
                image.media_type,
                url=drawing.hosted_url,
                request=drawing.request,
                optimized=drawing.optimized,
                rewritten=drawing.rewritten,
                revised=image.revised_prompt,
                drawn_by=image.drawn_by,
            )

    def _convert(self, converter: Converter, drawing: Drawing, image: Image) -> Image:
        """Return the picture in the configured format, or unchanged if it cannot be converted."""
        began = time.monotonic()
        try:
            data, media_type = converter.convert(image.data, image.media_type)
        except Inconvertible as error:
            drawing.add("convert", began, "failed")
            if str(error) not in self._unconverted:
                self._unconverted.add(str(error))
                detail = f"the picture {error}; stored unchanged (logged once per reason)"
                log.warning("Could not convert %s: %s", drawing, detail)
            return image
        drawing.add("convert", began)
        return replace(image, data=data, media_type=media_type)

    def _upload(self, host: ImageHost, drawing: Drawing, image: Image) -> str | None:
        """Return the picture's URL at the image host, or None to store it as a file."""
        began = time.monotonic()
        known: Known = {HOST_KEY: Cooldown()}
        with suppress(Unavailable):
            known = self._outages.recall()
        name = f"{drawing.request.key[:32]}.{EXTENSIONS[image.media_type]}"
        # Whoever waits may leave at the drawing's own deadline, but the picture is paid for.
        deadline = Deadline.after(self.upload_timeout)
        try:
            with self.metrics.upload():
                url = host.upload(image.data, name, image.media_type, deadline)
        except UploadFailed as error:
            drawing.add("upload", began, "failed")
            fault, detail = Fault(Outcome.FAILED, "upload failed"), "pictures are stored as files"
            self._outages.count(known, fault, f"{error}; {detail}", drawing.request.key)
            return None
        drawing.add("upload", began)
        self._outages.end(known)
        return url
