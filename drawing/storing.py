"""The end of a drawing: the picture is converted, then uploaded or stored as a file."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cache import Cache, NotKept
from dialect.judging import Fault, Outcome
from drawing.backend import Image
from drawing.cooldowns import Cooldown, Cooldowns
from drawing.record import Journey, Stage
from hosting import ImageHost, UploadFailed
from images.formats import EXTENSIONS, Inconvertible
from metrics import OFF, Metrics
from storage import Note, Row
from storage.memory import Memory

if TYPE_CHECKING:
    from images.convert import Converter  # needs Pillow

log = logging.getLogger("prompt_image_proxy.keeping")

# The key of what is noted about the image host, of which there is one.
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


class Keeper:
    """Keeps pictures: at the image host, if there is one that takes them, or in the cache."""

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
        self._host_failures = Cooldowns("The image host", is_avoided=False)

    def wanted(self) -> list[tuple[type[Note], str]]:
        """Return the notes that keeping a picture reads."""
        return [(Cooldown, HOST_KEY)] if self.host else []

    def keep(self, journey: Journey, image: Image, memory: Memory) -> Drawn:
        """Keep the picture of a journey. One that cannot be kept can still be delivered."""
        journey, image = self._convert(journey, image)
        journey, hosted_url = self._upload(journey, image, memory)
        row = None
        with suppress(NotKept):
            row = self.cache.put(
                journey.request.key,
                image.data,
                image.media_type,
                url=hosted_url,
                request=journey.request,
                optimized=journey.optimized,
                rewritten=journey.rewritten,
                revised=image.revised_prompt,
                drawn_by=image.drawn_by,
            )
        return Drawn(journey.source, journey.stages, row, image, hosted_url)

    def _convert(self, journey: Journey, image: Image) -> tuple[Journey, Image]:
        """Return the picture in the format that is stored, or as it came where it must stay so."""
        if not self.converter or not self.converter.is_needed(image.data, image.media_type):
            return journey, image
        began = time.monotonic()
        try:
            data, media_type = self.converter.convert(image.data, image.media_type)
        except Inconvertible as error:
            if str(error) not in self._unconverted:
                self._unconverted.add(str(error))
                detail = f"the picture {error}; it is stored unchanged, as others like it will be"
                log.warning("Could not convert %s: %s", journey.label, detail)
            return journey.after(Stage.since(began, "convert", "failed")), image
        converted = replace(image, data=data, media_type=media_type)
        return journey.after(Stage.since(began, "convert", "ok")), converted

    def _upload(self, journey: Journey, image: Image, memory: Memory) -> tuple[Journey, str | None]:
        """Return the picture's URL at the image host, or None to store it as a file."""
        if not self.host:
            return journey, None
        key, began = journey.request.key, time.monotonic()
        name = f"{key[:32]}.{EXTENSIONS[image.media_type]}"
        deadline = journey.deadline.within(self.upload_timeout)
        try:
            with self.metrics.upload():
                url = self.host.upload(image.data, name, image.media_type, deadline)
        except UploadFailed as error:
            fault = Fault(Outcome.FAILED, "upload failed")
            detail = f"{error}; pictures are stored as files"
            self._host_failures.count(memory, HOST_KEY, fault, detail, key)
            return journey.after(Stage.since(began, "upload", "failed")), None
        self._host_failures.answered(memory, HOST_KEY)
        return journey.after(Stage.since(began, "upload", "ok")), url
