"""The sizes that a vendor accepts, learned from its error messages, and the nearest one."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from dialect import size_words

Size = tuple[int, int]

# xAI, docs.x.ai, "aspect_ratio"; others take a subset and name it in their errors.
ASPECT_RATIOS = (
    "1:1", "3:4", "4:3", "9:16", "16:9", "2:3", "3:2",
    "9:19.5", "19.5:9", "9:20", "20:9", "1:2", "2:1",
)  # fmt: skip
# OpenRouter's and Gemini's, in `image_config`.
CHAT_RATIOS = ("1:1", "2:3", "3:2", "3:4", "4:3", "4:5", "5:4", "9:16", "16:9", "21:9")
# If a message names no number, twice (or half) the pixels are tried, at most so often.
MAX_GUESSES = 2


@dataclass(frozen=True, slots=True)
class SizeRule:
    """The sizes a vendor allows. Sides and pixels in pixels; 0 means no limit is known.

    `most_ratio` is that of the longer side to the shorter. `guesses`: the number of times that a
    limit was guessed because no message named it.
    """

    sizes: tuple[Size, ...] = ()
    multiple: int = 1
    least_side: int = 0
    most_side: int = 0
    least_pixels: int = 0
    most_pixels: int = 0
    most_ratio: int = 0
    guesses: int = 0

    def fit(self, size: Size) -> Size:
        """Return the nearest allowed size: by shape first, then by area."""
        candidates = self.sizes or self._candidates(size)
        return min(
            candidates, key=lambda found: (_shape_error(found, size), _area_error(found, size))
        )

    def learn(self, text: str, sent: Size) -> SizeRule:
        """Return this rule with what an error message about the size `sent` adds to it."""
        listed = size_words.listed_sizes(text, sent)
        if not set(listed) <= set(self.sizes):
            return replace(self, sizes=listed)
        found = size_words.read(text)
        named = replace(
            self,
            multiple=found.multiple or self.multiple,
            least_side=found.least_side or self.least_side,
            most_side=found.most_side or self.most_side,
            least_pixels=found.least_pixels or self.least_pixels,
            most_pixels=found.most_pixels or self.most_pixels,
            most_ratio=found.most_ratio or self.most_ratio,
        )
        return named._guess(text, sent) if named.fit(sent) == sent else named

    def without_guesses(self) -> SizeRule:
        """Return this rule without guesses, which did not help."""
        return replace(self, least_pixels=0, most_pixels=0, guesses=0) if self.guesses else self

    def _guess(self, text: str, sent: Size) -> SizeRule:
        pixels = sent[0] * sent[1]
        is_known = (self.least_pixels or self.most_pixels) and not self.guesses
        if is_known or self.guesses == MAX_GUESSES:
            return self
        if size_words.is_too_small(text):
            return replace(self, least_pixels=2 * pixels, guesses=self.guesses + 1)
        if size_words.is_too_large(text):
            return replace(self, most_pixels=pixels // 2, guesses=self.guesses + 1)
        return self

    def _candidates(self, size: Size) -> list[Size]:
        """Return sizes around the wanted shape, those within all limits if there are any."""
        size = self._shaped(size)
        scale = self._scale(size)
        short, long = (self._within(side * scale) for side in sorted(size))
        if self.least_pixels > short * long:
            short = self.least_pixels / long
        if self.most_pixels and self.most_pixels < short * long:
            long = self.most_pixels / short
        sides = (long, short) if size[0] > size[1] else (short, long)
        multiple = self._multiple(size)
        widths, heights = (_multiples_near(side, multiple) for side in sides)
        found = [(width, height) for width in widths for height in heights]
        return [candidate for candidate in found if self._allows(candidate)] or found

    def _shaped(self, size: Size) -> Size:
        """Return a size of the nearest shape that is allowed, and of the same area."""
        short, long = sorted(size)
        if not self.most_ratio or long <= short * self.most_ratio:
            return size
        short = math.ceil(math.sqrt(short * long / self.most_ratio))
        long = short * self.most_ratio
        return (long, short) if size[0] > size[1] else (short, long)

    def _within(self, side: float) -> float:
        return max(self.least_side, min(side, self.most_side or side))

    def _multiple(self, size: Size) -> int:
        """Return the divisor of both sides: 16 if the size is scaled and none is known."""
        pixels = size[0] * size[1]
        is_scaled = pixels < self.least_pixels or pixels > (self.most_pixels or pixels)
        return 16 if is_scaled and self.multiple == 1 else self.multiple

    def _scale(self, size: Size) -> float:
        pixels, scale = size[0] * size[1], 1.0
        if self.least_pixels:
            scale = max(scale, math.sqrt(self.least_pixels / pixels))
        if self.least_side:
            scale = max(scale, self.least_side / min(size))
        if self.most_pixels:
            scale = min(scale, math.sqrt(self.most_pixels / pixels))
        if self.most_side:
            scale = min(scale, self.most_side / max(size))
        return scale

    def _allows(self, size: Size) -> bool:
        pixels = size[0] * size[1]
        return (
            min(size) >= self.least_side
            and pixels >= self.least_pixels
            and max(size) <= (self.most_side or max(size))
            and pixels <= (self.most_pixels or pixels)
            and max(size) <= min(size) * (self.most_ratio or max(size))
        )


def _multiples_near(side: float, multiple: int) -> set[int]:
    steps = side / multiple
    return {multiple * max(1, step) for step in (math.floor(steps), math.ceil(steps))}


def nearest_ratio(size: Size, allowed: tuple[str, ...]) -> str:
    """Return the allowed aspect ratio, such as `16:9`, whose shape is nearest to `size`."""
    return min(allowed, key=lambda ratio: abs(math.log(_ratio(ratio) * size[1] / size[0])))


def listed_ratios(text: str) -> tuple[str, ...]:
    """Return the aspect ratios that an error message names as allowed, if it names several."""
    found = re.findall(r"(?<![\d.:])(\d{1,2}(?:\.\d)?:\d{1,2}(?:\.\d)?)(?![\d:])", text, re.ASCII)
    usable = tuple(dict.fromkeys(ratio for ratio in found if _ratio(ratio)))
    return usable if len(usable) > 1 else ()


def _ratio(text: str) -> float:
    width, _, height = text.partition(":")
    return float(width) / float(height) if float(height) else 0.0


def _shape_error(found: Size, wanted: Size) -> float:
    return round(abs(math.log(found[0] * wanted[1] / (found[1] * wanted[0]))), 6)


def _area_error(found: Size, wanted: Size) -> float:
    return abs(math.log(found[0] * found[1] / (wanted[0] * wanted[1])))
