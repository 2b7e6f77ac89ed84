"""Thumbnails for the gallery: made on first use, and stored beside their pictures."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import replace
from io import FileIO
from typing import BinaryIO

from cache import Picture
from images.formats import Inconvertible
from storage import Row
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
        if picture.file is None:  # hosted
            return picture
        name = f"{picture.row.file}{THUMBNAIL}"
        thumbnail = self._open(name) or self._make(name, picture.file, picture.row)
        if thumbnail is None:
            return picture
        picture.close()
        size = os.fstat(thumbnail.fileno()).st_size
        digest = hashlib.sha256(name.encode()).hexdigest()
        row = replace(picture.row, media_type="image/webp", bytes=size, digest=digest)
        return Picture(row, thumbnail)

    def _open(self, name: str) -> FileIO | None:
        with suppress(OSError):
            return self.folder.open(name)
        return None

    def _make(self, name: str, source: BinaryIO, row: Row) -> FileIO | None:
        try:
            from images.convert import thumbnail  # needs Pillow, which need not be installed

            self.folder.write(name, thumbnail(source, row.media_type), row.created)
        except (ImportError, Inconvertible, OSError):
            source.seek(0)
            return None
        return self._open(name)
