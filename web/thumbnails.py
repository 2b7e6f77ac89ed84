"""Thumbnails for the gallery: made on first use, and stored beside their pictures."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace

from cache import Picture
from images.formats import Inconvertible
from storage.local.folder import THUMBNAIL, Folder


def shrink(picture: Picture, folder: Folder) -> Picture:
    """Return the thumbnail of a cached picture, whose file is closed then.

    It is stored in a folder of this machine, which deletes it with its picture. Without Pillow,
    and for a picture that is hosted or cannot be converted, returns the picture itself.
    """
    if picture.file is None:  # hosted
        return picture
    row, name = picture.row, f"{picture.row.file}{THUMBNAIL}"
    try:
        if not (folder.directory / name).exists():
            from images.convert import thumbnail  # needs Pillow, which need not be installed

            folder.write(name, thumbnail(picture.file, row.media_type), row.created)
        file = folder.open(name)
    except (ImportError, Inconvertible, OSError):
        picture.file.seek(0)
        return picture
    picture.close()
    size = os.fstat(file.fileno()).st_size
    digest = hashlib.sha256(name.encode()).hexdigest()
    return Picture(replace(row, media_type="image/webp", bytes=size, digest=digest), file)
