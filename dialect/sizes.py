"""The sizes that a vendor accepts, as its error messages name them in prose; the nearest one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

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

# No picture has a longer side; a larger number counts pixels.
_MAX_SIDE = 16384
_MIN_SIDE = 64
_MAX_PIXELS = _MAX_SIDE**2
_MEGA = 1_000_000

_SIZE = re.compile(r"(?<!\d)(\d{2,5})\s?[x×*]\s?(\d{2,5})(?!\d)", re.I | re.A)
# Only with words like these are sizes in prose a list of the allowed ones.
_LISTED = re.compile(
    r"(?i)support|allowed|one of|must be|should be|valid|choose|accepts?|available|\buse\b"
    r"|支持|可选|仅限|必须|应为|可用"
)
_MULTIPLE = re.compile(
    r"(?ai)(?:divisible by|multiples? of)\s+([1-9]\d{0,3})\b|被\s?([1-9]\d{0,3})\s?整除"
    r"|([1-9]\d{0,3})\s?的整?数?倍|([1-9]\d{0,3})[ -](?:px |pixel )?multiple"
)
# A number, also as 655,360, 2^21, 0.5 megapixels, or the first side of a size.
_AMOUNT = r"(2\^\d{1,2}|\d[\d,.]{0,14})(?:\s?[x×*]\s?\d{2,5})?\s?(mega|mp\b|百万|)"
_GAP = r"[^\d\n.;。；]{0,40}"
_LEAST = re.compile(
    r"(?ai)(?:at least|\bmin(?:imum)?\b|no (?:less|fewer|smaller|lower) than"
    r"|not be (?:less|smaller|fewer|lower) than|(?:greater|more) than or equal to|>=|≥"
    rf"|至少|不[小少低]于|不能[小少低]于|最[小低少]|大于(?:或)?等于){_GAP}{_AMOUNT}"
)
_MOST = re.compile(
    r"(?ai)(?:at most|\bmax(?:imum)?\b|no (?:more|larger|greater|bigger|higher) than"
    r"|not be (?:more|larger|greater|bigger|higher) than|not exceed|exceeds?|up to"
    r"|(?:less|smaller) than or equal to|<=|≤|limit(?:ed)? (?:of|to|is)"
    rf"|不[能得可]?超过|不[能得]?大于|不高于|最[大高多]|至多|小于(?:或)?等于){_GAP}{_AMOUNT}"
)
_ABOVE = re.compile(
    rf"(?ai)(?:must|should) be (?:greater|larger|more|higher) than (?!or ){_AMOUNT}"
)
_BELOW = re.compile(rf"(?ai)(?:must|should) be (?:less|smaller|lower) than (?!or ){_AMOUNT}")
_UNIT = r"(?:px|pixels?|像素)?\s?"
_TO = rf"{_AMOUNT}\s?{_UNIT}(?:-|–|~|～|—|至|到|to|and|,)\s?{_AMOUNT}"
_RANGE = re.compile(
    rf"(?ai)(?:\bbetween|\brange|\bfrom|\bwithin|介于|范围|\bin \[){_GAP}{_TO}"
    rf"|(?<![\d,.]){_TO}\s?{_UNIT}之间"
)
# Of the longer side to the shorter: at most 3:1, or in [1/16, 16].
_MOST_RATIO = re.compile(
    r"(?ai)(?:ratio|edge|side|比)[^\d\n.;。；]{0,60}"
    r"(?:exceed|at most|\bmax|no (?:more|larger|greater) than|than or equal to|<=|≤|超过|大于)"
    r"[^\d\n.;。；]{0,20}([1-9]\d?)\s?[:：]\s?1\b"
    r"|(?:between|from|介于|\[)\s?1\s?[/:]\s?([1-9]\d?)\s?(?:,|to|and|至|到|~|～)\s?\2(?![\d.])"
)
_SHAPE = r"(?<![\d.:])([1-9]\d?(?:\.\d)?:[1-9]\d?(?:\.\d)?)(?![\d:])"
_RATIO = re.compile(_SHAPE, re.A)
# "Between 21:9 and 9:21" names the ends of a range.
_RATIO_RANGE = re.compile(
    rf"(?ai)(?:\bbetween|\bfrom|\brange|介于)[^\d\n.;。；]{{0,20}}{_SHAPE}"
    rf"\s?(?:-|–|~|～|to|and|至|到|和|与)\s?{_SHAPE}(?!\s?(?:,|and|or|、)\s?\d)"
)
_TOO_SMALL = re.compile(
    r"(?i)below.{0,40}minimum|less than.{0,20}minimum|too small|too low|too few pixels"
    r"|[过太]小|低于最[小低]|小于最小"
)
_TOO_LARGE = re.compile(
    r"(?i)(?:above|exceeds?|over|more than).{0,40}(?:maximum|budget|limit)"
    r"|too (?:large|big|high|many pixels)|[过太]大|超[过出]最大|高于最大"
)


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

        It is one of the `usual` within the limit, unless the vendor has named its own.
        """

        def shape(ratio: str) -> float:
            width, height = map(float, ratio.split(":"))
            return math.log(width / height)

        most = math.log(self.most_ratio or math.inf)
        allowed = self.ratios or [ratio for ratio in usual if abs(shape(ratio)) <= most]
        return min(allowed, key=lambda ratio: abs(shape(ratio) - math.log(size[0] / size[1])))

    def learn(self, text: str, sent: Size, ratio: str = "") -> SizeRule:
        """Return this rule with what an error message about the size `sent` adds to it.

        `ratio` is the aspect ratio that was sent, if one was.
        """
        listed = _listed_sizes(text, sent)
        if not set(listed) <= set(self.sizes):
            return replace(self, sizes=listed)
        found: dict[str, Any] = {**_limits(text)}
        ratios = _listed_ratios(text, ratio) or self.ratios
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
        if _TOO_SMALL.search(text):
            return replace(self, least_pixels=2 * pixels, guesses=self.guesses + 1)
        if _TOO_LARGE.search(text):
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


def _limits(text: str) -> dict[str, int]:
    """Return the limits that a message names, by the names of SizeRule's fields.

    Messages say "pixels" of sides and of areas: a number's magnitude tells which is meant.
    """
    ends = [pair for low, high in _ranges(text) for pair in (("least", low), ("most", high))]
    for end, pattern, extra in (
        *(("least", _LEAST, 0), ("least", _ABOVE, 1)),
        *(("most", _MOST, 0), ("most", _BELOW, -1)),
    ):
        ends += [(end, _amount(*match) + extra) for match in pattern.findall(text)]
    found: dict[str, int] = {}
    for end, amount in ends:
        if _MIN_SIDE <= amount <= _MAX_PIXELS:
            found.setdefault(f"{end}_side" if amount <= _MAX_SIDE else f"{end}_pixels", amount)
    for name, pattern in (("multiple", _MULTIPLE), ("most_ratio", _MOST_RATIO)):
        if match := pattern.search(text):
            found[name] = int(next(filter(None, match.groups())))
    return found


def _listed_sizes(text: str, sent: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Return the sizes that a message allows, without the one sent and those that are limits."""
    found = dict.fromkeys((int(width), int(height)) for width, height in _SIZE.findall(text))
    found.pop(sent, None)
    sizes = tuple(size for size in found if min(size) >= _MIN_SIDE and max(size) <= _MAX_SIDE)
    bounds = sum(1 for pattern in (_LEAST, _MOST) for _ in pattern.finditer(text))
    is_list = _LISTED.search(text) and not any(_ranges(text)) and bounds < len(sizes)
    return sizes if is_list else ()


def _listed_ratios(text: str, sent: str) -> tuple[str, ...]:
    """Return the aspect ratios that a message allows if it names several, without the one sent."""
    found = dict.fromkeys(_RATIO.findall(_RATIO_RANGE.sub("", text)))
    found.pop(sent, None)
    return tuple(found) if len(found) > 1 else ()


def _ranges(text: str) -> Iterator[tuple[int, int]]:
    for match in _RANGE.finditer(text):
        digits = [group for group in match.groups() if group is not None]
        low, high = _amount(digits[0], digits[1]), _amount(digits[2], digits[3])
        if _MIN_SIDE <= low < high:
            yield low, high


def _amount(digits: str, unit: str) -> int:
    """Return a number as an integer, 0 if it is not a number."""
    if digits.startswith("2^"):
        return min(_MAX_PIXELS + 1, int(2 ** int(digits[2:])))
    if unit:
        whole = re.match(r"\d{1,6}(\.\d{1,6})?", digits.replace(",", ""))
        return int(float(whole[0]) * _MEGA) if whole else 0
    return int(digits.replace(",", "").partition(".")[0] or 0)
