"""Thumbnails for the gallery: made on first use, and stored beside their pictures."""

from __future__ import annotations

import hashlib
import io
from contextlib import suppress
from dataclasses import replace

from cache import Picture
from images.formats import Inconvertible
from storage.local.folder import THUMBNAIL, Folder


class Thumbnails:
    """Stores thumbnails in a folder of this machine, which deletes them with their pictures."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def shrink(self, picture: Picture) -> Picture:
        """Return the thumbnail of a cached picture, whose file is closed then.

        Without Pillow, and for a picture that is hosted or cannot be converted, returns the
        picture itself.
        """
        if picture.file is None and picture.data is None:  # hosted
            return picture
        data = self._find(picture) or self._make(picture)
        if data is None:
            return picture
        picture.close()
        digest = hashlib.sha256(data).hexdigest()
        row = replace(picture.row, media_type="image/webp", bytes=len(data), digest=digest)
        return Picture(row, None, data)

    def _find(self, picture: Picture) -> bytes | None:
        with suppress(OSError), self.folder.open(f"{picture.row.file}{THUMBNAIL}") as file:
            return file.readall()
        return None

    def _make(self, picture: Picture) -> bytes | None:
        source = picture.file or io.BytesIO(picture.data or b"")
        try:
            from images.convert import thumbnail  # needs Pillow, which need not be installed

            data = thumbnail(source, picture.row.media_type)
        except (ImportError, Inconvertible):
            source.seek(0)
            return None
        if picture.file:
            with suppress(OSError):  # It is made again next time.
                self.folder.write(f"{picture.row.file}{THUMBNAIL}", data, picture.row.created)
        return data
