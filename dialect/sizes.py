"""The sizes that a vendor accepts, learned from its error messages, and the nearest one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Self

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

    `most_ratio` is that of the longer side to the shorter. `ratios`: the aspect ratios that it
    named, if it did. `guesses`: the number of times that a limit was guessed because no message
    named it.
    """

    sizes: tuple[Size, ...] = ()
    multiple: int = 1
    least_side: int = 0
    most_side: int = 0
    least_pixels: int = 0
    most_pixels: int = 0
    most_ratio: int = 0
    ratios: tuple[str, ...] = ()
    guesses: int = 0

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        sizes = tuple((int(width), int(height)) for width, height in value["sizes"])
        return cls(**(value | {"sizes": sizes, "ratios": tuple(value["ratios"])}))

    def fit(self, size: Size) -> Size:
        """Return the nearest allowed size: by shape first, then by area."""

        def distance(found: Size) -> tuple[float, float]:
            shape = found[0] * size[1] / (found[1] * size[0])
            area = found[0] * found[1] / (size[0] * size[1])
            return round(abs(math.log(shape)), 6), abs(math.log(area))

        return min(self.sizes or self._candidates(size), key=distance)

    def nearest_ratio(self, size: Size, usual: tuple[str, ...]) -> str:
        """Return the aspect ratio, such as `16:9`, whose shape is nearest to `size`.

        It is one of the `usual`, unless the vendor has named its own.
        """

        def distance(ratio: str) -> float:
            width, height = map(float, ratio.split(":"))
            return abs(math.log(width * size[1] / (height * size[0])))

        return min(self.ratios or usual, key=distance)

    def learn(self, text: str, sent: Size) -> SizeRule:
        """Return this rule with what an error message about the size `sent` adds to it."""
        listed = size_words.listed_sizes(text, sent)
        if not set(listed) <= set(self.sizes):
            return replace(self, sizes=listed)
        found: dict[str, Any] = {**size_words.limits(text)}
        ratios = size_words.listed_ratios(text) or self.ratios
        named = replace(self, **found, ratios=ratios)
        return named._guess(text, sent) if named.fit(sent) == sent else named

    def without_guesses(self) -> SizeRule:
        """Return this rule without guesses, which did not help."""
        return replace(self, least_pixels=0, most_pixels=0, guesses=0) if self.guesses else self

    def _guess(self, text: str, sent: Size) -> SizeRule:
        pixels = sent[0] * sent[1]
        is_known = (self.least_pixels or self.most_pixels) and not self.guesses
        if is_known or self.guesses == MAX_GUESSES:
            return self
        if size_words.TOO_SMALL.search(text):
            return replace(self, least_pixels=2 * pixels, guesses=self.guesses + 1)
        if size_words.TOO_LARGE.search(text):
            return replace(self, most_pixels=pixels // 2, guesses=self.guesses + 1)
        return self

    def _candidates(self, size: Size) -> list[Size]:
        """Return sizes around the wanted shape, those within all limits if there are any."""
        short, long = self._shaped(size)
        pixels = short * long
        most_side, most_pixels = self.most_side or math.inf, self.most_pixels or math.inf
        # 16, unless the divisor is known, where the vendor wants more or fewer pixels.
        is_scaled = not self.least_pixels <= pixels <= most_pixels
        multiple = 16 if is_scaled and self.multiple == 1 else self.multiple
        scale = max(1.0, math.sqrt(self.least_pixels / pixels), self.least_side / short)
        scale = min(scale, math.sqrt(most_pixels / pixels), most_side / long)
        short, long = (max(self.least_side, min(side * scale, most_side)) for side in (short, long))
        short = max(short, self.least_pixels / long)
        long = min(long, most_pixels / short)
        sides = (long, short) if size[0] > size[1] else (short, long)
        widths, heights = (_multiples_near(side, multiple) for side in sides)
        found = [(width, height) for width in widths for height in heights]
        return [candidate for candidate in found if self._allows(candidate)] or found

    def _shaped(self, size: Size) -> tuple[float, float]:
        """Return the short and the long side of the nearest shape that is allowed, same area."""
        short, long = sorted(size)
        if not self.most_ratio or long <= short * self.most_ratio:
            return short, long
        short = math.ceil(math.sqrt(short * long / self.most_ratio))
        return short, short * self.most_ratio

    def _allows(self, size: Size) -> bool:
        short, long = sorted(size)
        return (
            self.least_side <= short <= long <= (self.most_side or long)
            and self.least_pixels <= short * long <= (self.most_pixels or short * long)
            and long <= short * (self.most_ratio or long)
        )


def _multiples_near(side: float, multiple: int) -> set[int]:
    steps = side / multiple
    return {multiple * max(1, step) for step in (math.floor(steps), math.ceil(steps))}
