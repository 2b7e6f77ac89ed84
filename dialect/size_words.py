"""The sizes, multiples and limits that an error message names, in prose of any vendor."""

from __future__ import annotations

import re
from collections.abc import Iterator

# No picture has a longer side; a larger number counts pixels.
MAX_SIDE = 16384
_MIN_SIDE = 64
_MAX_PIXELS = MAX_SIDE**2
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
_RATIO = re.compile(r"(?a)(?<![\d.:])([1-9]\d?(?:\.\d)?:[1-9]\d?(?:\.\d)?)(?![\d:])")
TOO_SMALL = re.compile(
    r"(?i)below.{0,40}minimum|less than.{0,20}minimum|too small|too low|too few pixels"
    r"|[过太]小|低于最[小低]|小于最小"
)
TOO_LARGE = re.compile(
    r"(?i)(?:above|exceeds?|over|more than).{0,40}(?:maximum|budget|limit)"
    r"|too (?:large|big|high|many pixels)|[过太]大|超[过出]最大|高于最大"
)


def limits(text: str) -> dict[str, int]:
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
            found.setdefault(f"{end}_side" if amount <= MAX_SIDE else f"{end}_pixels", amount)
    for name, pattern in (("multiple", _MULTIPLE), ("most_ratio", _MOST_RATIO)):
        if match := pattern.search(text):
            found[name] = int(next(filter(None, match.groups())))
    return found


def listed_sizes(text: str, sent: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Return the sizes that a message allows, without the one sent and those that are limits."""
    found = dict.fromkeys((int(width), int(height)) for width, height in _SIZE.findall(text))
    found.pop(sent, None)
    sizes = tuple(size for size in found if min(size) >= _MIN_SIDE and max(size) <= MAX_SIDE)
    limits = sum(1 for pattern in (_LEAST, _MOST) for _ in pattern.finditer(text))
    is_list = _LISTED.search(text) and not any(_ranges(text)) and limits < len(sizes)
    return sizes if is_list else ()


def listed_ratios(text: str) -> tuple[str, ...]:
    """Return the aspect ratios that an error message names as allowed, if it names several."""
    found = tuple(dict.fromkeys(_RATIO.findall(text)))
    return found if len(found) > 1 else ()


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
