"""The sizes, multiples and limits that an error message names, in prose of any vendor."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# No picture has a longer side; a larger number counts pixels.
MAX_SIDE = 16384
_MIN_SIDE = 64
_MAX_PIXELS = MAX_SIDE**2
_MEGA = 1_000_000

_SIZE = re.compile(r"(?<!\d)(\d{2,5})\s?[x×*]\s?(\d{2,5})(?!\d)", re.I | re.A)
# Only with words like these are sizes in prose a list of the allowed ones.
_LISTED = re.compile(
    r"support|allowed|one of|must be|should be|valid|choose|accepts?|available|\buse\b"
    r"|支持|可选|仅限|必须|应为|可用",
    re.I,
)
_MULTIPLE = re.compile(
    r"(?:divisible by|multiples? of)\s+(\d{1,4})\b|被\s?(\d{1,4})\s?整除|(\d{1,4})\s?的整?数?倍"
    r"|(\d{1,4})[ -](?:px |pixel )?multiple",
    re.I | re.A,
)
# A number, also as 655,360, 2^21, 0.5 megapixels, or the first side of a size.
_AMOUNT = r"(2\^\d{1,2}|\d[\d,.]{0,14})(?:\s?[x×*]\s?\d{2,5})?\s?(mega|mp\b|百万|)"
_GAP = r"[^\d\n.;。；]{0,40}"
_LEAST = re.compile(
    r"(?:at least|\bmin(?:imum)?\b|no (?:less|fewer|smaller|lower) than"
    r"|not be (?:less|smaller|fewer|lower) than|(?:greater|more) than or equal to|>=|≥"
    rf"|至少|不[小少低]于|不能[小少低]于|最[小低少]|大于(?:或)?等于){_GAP}{_AMOUNT}",
    re.I | re.A,
)
_MOST = re.compile(
    r"(?:at most|\bmax(?:imum)?\b|no (?:more|larger|greater|bigger|higher) than"
    r"|not be (?:more|larger|greater|bigger|higher) than|not exceed|exceeds?|up to"
    r"|(?:less|smaller) than or equal to|<=|≤|limit(?:ed)? (?:of|to|is)"
    rf"|不[能得可]?超过|不[能得]?大于|不高于|最[大高多]|至多|小于(?:或)?等于){_GAP}{_AMOUNT}",
    re.I | re.A,
)
_ABOVE = re.compile(
    rf"(?:must|should) be (?:greater|larger|more|higher) than (?!or ){_AMOUNT}", re.I | re.A
)
_BELOW = re.compile(
    rf"(?:must|should) be (?:less|smaller|lower) than (?!or ){_AMOUNT}", re.I | re.A
)
_UNIT = r"(?:px|pixels?|像素)?\s?"
_TO = rf"{_AMOUNT}\s?{_UNIT}(?:-|–|~|～|—|至|到|to|and|,)\s?{_AMOUNT}"
_RANGE = re.compile(
    rf"(?:\bbetween|\brange|\bfrom|\bwithin|介于|范围|\bin \[){_GAP}{_TO}"
    rf"|(?<![\d,.]){_TO}\s?{_UNIT}之间",
    re.I | re.A,
)
# Of the longer side to the shorter: at most 3:1, or in [1/16, 16].
_MOST_RATIO = re.compile(
    r"(?:ratio|edge|side|比)[^\d\n.;。；]{0,60}"
    r"(?:exceed|at most|\bmax|no (?:more|larger|greater) than|than or equal to|<=|≤|超过|大于)"
    r"[^\d\n.;。；]{0,20}(\d{1,2})\s?[:：]\s?1\b"
    r"|(?:between|from|介于|\[)\s?1\s?[/:]\s?(\d{1,2})\s?(?:,|to|and|至|到|~|～)\s?\2(?![\d.])",
    re.I | re.A,
)
_TOO_SMALL = re.compile(
    r"below.{0,40}minimum|less than.{0,20}minimum|too small|too low|too few pixels"
    r"|[过太]小|低于最[小低]|小于最小",
    re.I,
)
_TOO_LARGE = re.compile(
    r"(?:above|exceeds?|over|more than).{0,40}(?:maximum|budget|limit)"
    r"|too (?:large|big|high|many pixels)|[过太]大|超[过出]最大|高于最大",
    re.I,
)


@dataclass(slots=True)
class Limits:
    """The limits that a message names; 0 for those it does not."""

    multiple: int = 0
    least_side: int = 0
    most_side: int = 0
    least_pixels: int = 0
    most_pixels: int = 0
    most_ratio: int = 0

    def add_least(self, amount: int) -> None:
        if _MIN_SIDE <= amount <= MAX_SIDE:
            self.least_side = self.least_side or amount
        elif MAX_SIDE < amount <= _MAX_PIXELS:
            self.least_pixels = self.least_pixels or amount

    def add_most(self, amount: int) -> None:
        if _MIN_SIDE <= amount <= MAX_SIDE:
            self.most_side = self.most_side or amount
        elif MAX_SIDE < amount <= _MAX_PIXELS:
            self.most_pixels = self.most_pixels or amount


def read(text: str) -> Limits:
    """Return the limits that a message names.

    Messages say "pixels" of sides and of areas: a number's magnitude tells which is meant.
    """
    found = Limits(multiple=_multiple(text), most_ratio=_most_ratio(text))
    for low, high in _ranges(text):
        found.add_least(low)
        found.add_most(high)
    for pattern, extra in ((_LEAST, 0), (_ABOVE, 1)):
        for match in pattern.finditer(text):
            found.add_least(_amount(match[1], match[2]) + extra)
    for pattern, extra in ((_MOST, 0), (_BELOW, -1)):
        for match in pattern.finditer(text):
            found.add_most(_amount(match[1], match[2]) + extra)
    return found


def listed_sizes(text: str, sent: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Return the sizes that a message allows, without the one sent and those that are limits."""
    found = dict.fromkeys((int(width), int(height)) for width, height in _SIZE.findall(text))
    found.pop(sent, None)
    sizes = tuple(size for size in found if min(size) >= _MIN_SIDE and max(size) <= MAX_SIDE)
    limits = sum(1 for pattern in (_LEAST, _MOST) for _ in pattern.finditer(text))
    is_list = _LISTED.search(text) and not any(_ranges(text)) and limits < len(sizes)
    return sizes if is_list else ()


def is_too_small(text: str) -> bool:
    return bool(_TOO_SMALL.search(text))


def is_too_large(text: str) -> bool:
    return bool(_TOO_LARGE.search(text))


def _multiple(text: str) -> int:
    found = _MULTIPLE.search(text)
    multiple = int(next(filter(None, found.groups()))) if found else 0
    return multiple if 1 < multiple <= 1024 else 0


def _most_ratio(text: str) -> int:
    """Return the greatest ratio of the longer side to the shorter, 0 if the text names none."""
    found = _MOST_RATIO.search(text)
    return int(found[1] or found[2]) if found else 0


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
