"""Pictures in another format or in fewer bytes, and thumbnails. Only this module imports Pillow.

Metadata is dropped: EXIF, prompts, content credentials. Orientation and colour profile are
applied to the pixels, which are sRGB afterwards.
"""

import io
import math
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import IO

from PIL import Image, ImageCms, ImageOps

from images.formats import Inconvertible

# Encoders make about ten. Each is a pass over all pixels.
MAX_SCANS = 100
# Of any kind: tables and scans, and 255 at most for a colour profile.
MAX_SEGMENTS = 1000
# Of EXIF and the like. Pillow joins them, which takes 8 s for 40,000.
MAX_DIRECTORIES = 2
MAX_EXIF = 2**16
# Each may name all of the EXIF data as its value, which Pillow copies.
MAX_EXIF_ENTRIES = 500

# Among the pixels FF is escaped by 00. The others left out have no contents.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
_SCAN, _END = b"\xff\xda", b"\xff\xd9"
_DIRECTORY = re.compile(rb"(?s)\xff(?:\xe1..Exif\0\0|\xe2..MPF\0)")


def check_jpeg(data: bytes) -> None:
    """Count the scans and the metadata of a complete JPEG. Raises Inconvertible."""
    found = list(islice(_markers(data), MAX_SEGMENTS + 1))
    if sum(marker[0] == _SCAN for marker in found) > MAX_SCANS:
        raise Inconvertible(f"has over {MAX_SCANS} scans")
    directories = [start for one in found if (start := _DIRECTORY.match(data, one.start()))]
    if len(found) > MAX_SEGMENTS or len(directories) > MAX_DIRECTORIES:
        raise Inconvertible("has too much metadata")
    for start in directories:
        check_exif(data[start.end() : start.end() + MAX_EXIF])


def _markers(data: bytes) -> Iterator[re.Match[bytes]]:
    """Find the segments up to the end marker; like libjpeg, skip what stands between them."""
    position = 2
    while (found := _MARKER.search(data, position)) and found[0] != _END:
        yield found
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2])


def check_exif(exif: bytes) -> None:
    """Count the entries of the first directory of EXIF data. Raises Inconvertible."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = "<" if exif.startswith(b"II") else ">"
    try:
        (offset,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, offset)
    except struct.error:
        return  # Pillow ignores such data
    if len(exif) > MAX_EXIF or entries > MAX_EXIF_ENTRIES:
        raise Inconvertible("has too much metadata")


MAX_PIXELS = 50_000_000
# Where a picture is still too large at this quality, it is scaled down.
LEAST_QUALITY = 40
QUALITY_STEP = 10
# PNG has no quality: a picture that is too large gets a palette instead.
PALETTE = 256
THUMBNAIL_SIDE = 320
THUMBNAIL_QUALITY = 80

# Pillow refuses twice as many pixels, after the header and before it allocates any memory.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
# Pillow would import its formats when the first picture is converted: by then an upgrade may have
# replaced them on disk.
Image.init()
# Conversions in a process run one after another, which bounds their memory.
_turn = threading.Lock()

# Pillow raises these for damaged and unusual files.
_UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


@dataclass
class Converter:
    """Converts pictures to `picture_format` (original, webp, jpeg, png), in `max_bytes` at most.

    With `original`, only pictures that are too large are converted: WebP stays WebP, and of the
    others transparent ones become WebP, opaque ones JPEG. `quality` is that of WebP and JPEG;
    `max_bytes` is at least 1,000, in which any picture fits once it is small enough.
    """

    picture_format: str
    quality: int
    max_bytes: int | None

    def is_needed(self, data: bytes, media_type: str) -> bool:
        """Return whether a picture has another format than the wanted one, or is too large."""
        wanted = ("original", media_type.removeprefix("image/"))
        return self.picture_format not in wanted or not self._fits(data)

    def convert(self, data: bytes, media_type: str) -> tuple[bytes, str]:
        """Return the converted picture and its media type. Raises Inconvertible."""
        with _pillow():
            opened = _open(io.BytesIO(data), media_type)
            if getattr(opened, "is_animated", False):
                raise Inconvertible("is animated")
            image, name = _normalise(opened), self.picture_format
            if name == "original":
                is_webp = media_type == "image/webp" or image.mode == "RGBA"
                name = "webp" if is_webp else "jpeg"
            return self._encode(image, name), f"image/{name}"

    def _fits(self, data: bytes) -> bool:
        return self.max_bytes is None or len(data) <= self.max_bytes

    def _encode(self, image: Image.Image, name: str) -> bytes:
        """Encode in at most `max_bytes`: in less detail, and if that is not enough, smaller."""
        least = min(self.quality, LEAST_QUALITY)
        qualities = (*range(self.quality, least, -QUALITY_STEP), least)
        for detail in (2**24, PALETTE) if name == "png" else qualities:
            data = _encode(image, name, detail)
            if self._fits(data):
                return data
        factor = 1.0
        while self.max_bytes and not self._fits(data):
            factor *= min(0.9, 0.97 * math.sqrt(self.max_bytes / len(data)))
            width, height = (max(1, round(side * factor)) for side in image.size)
            smaller = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
            data = _encode(smaller, name, detail)
        return data


def thumbnail(file: IO[bytes], media_type: str) -> bytes:
    """Return a picture as WebP of at most 320 by 320 pixels. Raises Inconvertible.

    Of an animation it is the first frame.
    """
    side = THUMBNAIL_SIDE
    with _pillow():
        opened = _open(file, media_type)
        opened.draft(None, (2 * side, 2 * side))  # spares a JPEG most of the decoding
        image = _normalise(opened)
        image.thumbnail((side, side))
        return _encode(image, "webp", THUMBNAIL_QUALITY)


@contextmanager
def _pillow() -> Iterator[None]:
    """Use Pillow, one thread at a time, and turn its exceptions into Inconvertible.

    Its warnings are mostly about metadata, and are ignored.
    """
    with _turn, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except Image.DecompressionBombError as error:
            raise Inconvertible("has over 50 megapixels") from error
        except _UNREADABLE as error:
            raise Inconvertible(f"cannot be read or written ({type(error).__name__})") from error


def _open(file: IO[bytes], media_type: str) -> Image.Image:
    """Read the header, with the decoder of that format alone: Pillow has many more."""
    if media_type == "image/jpeg":
        check_jpeg(file.read())
        file.seek(0)
    return Image.open(file, formats=[media_type.removeprefix("image/")])


def _normalise(image: Image.Image) -> Image.Image:
    """Return upright pixels in sRGB, RGBA if any of them is transparent and RGB otherwise."""
    profile = image.info.get("icc_profile")
    image.load()  # in a PNG, metadata may follow the pixels
    image.info.pop("Raw profile type exif", None)
    check_exif(image.info.get("exif", b""))
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # greyscale of 16 bits, which convert() would clip
        image = image.point(lambda value: value / 256).convert("L")
    if image.has_transparency_data:
        image = _in_mode("RGBA", image)
    elif image.mode not in ("L", "CMYK"):
        image = _in_mode("RGB", image)
    image = _in_srgb(image, profile)
    image.info.clear()
    is_opaque = image.mode == "RGBA" and image.getchannel("A").getextrema() == (255, 255)
    return image.convert("RGB") if is_opaque else image


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return RGB or RGBA; a profile that is damaged or of another colour space is ignored."""
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    if profile:
        with suppress(ImageCms.PyCMSError):
            source, srgb = io.BytesIO(profile), ImageCms.createProfile("sRGB")
            if converted := ImageCms.profileToProfile(image, source, srgb, outputMode=mode):
                return converted
    return _in_mode(mode, image)


def _in_mode(mode: str, image: Image.Image) -> Image.Image:
    # convert() would copy a picture of this mode too: up to 200 MB.
    return image if image.mode == mode else image.convert(mode)


def _encode(image: Image.Image, name: str, detail: int) -> bytes:
    """Encode RGB or RGBA; `detail` is the quality or, for PNG, the number of colours."""
    if name == "jpeg" and image.mode == "RGBA":
        transparent, image = image, Image.new("RGB", image.size, "white")
        image.paste(transparent, mask=transparent)
    if name == "png" and detail <= PALETTE:
        # Median cut, the default for RGB, looks a little better but can take 20 seconds.
        colours = min(detail, image.width * image.height)
        image = image.quantize(colours, Image.Quantize.FASTOCTREE)
    buffer = io.BytesIO()
    # Not optimised or progressive: Pillow would then hold the GIL for the whole JPEG.
    image.save(buffer, name, quality=detail)
    return buffer.getvalue()
