"""Lessons from a server's rejections, per model: parameters to drop, values, names, sizes.

Most 400s of image backends concern a parameter, not the prompt. Later requests are sent as the
server wants them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Self

from dialect.error_text import ErrorText
from dialect.sizes import ASPECT_RATIOS, Size, SizeRule, listed_ratios, nearest_ratio
from storage import Note, Recalled, State, Unavailable

# A server may be upgraded, or another one may move in at its URL.
LEARNED_TTL = 86400.0
# One odd value after the other, of seeds for instance, must not make the note grow for ever.
_MAX_WRONG = 50
# Never dropped: a request without them is pointless.
_ESSENTIAL = frozenset(("prompt", "messages", "model"))
# Other names of the same field; a rejection that mentions one asks for it.
_OTHER_NAMES = {"max_tokens": "max_completion_tokens"}
# Words of a rejection; the mere name of a parameter proves nothing.
_REJECTION = re.compile(
    r"unknown|unsupported|not.{0,3}support|unrecogni[sz]ed|unexpected|invalid|cannot find|extra "
    r"|not permitted|not allowed|not one of|not (?:a )?valid|must|should|have to be|need"
    r"|too (?:large|small|big|high|low)|required|missing|instead|divisible|multiples? of|less than"
    r"|greater than|at (?:least|most)|minimum|maximum|exceed|longest|out of range|incorrect"
    r"|不支持|无效|非法|不合法|不正确|错误|必须|应[为该]|未知|不能|不允许|超[出过]|范围|需|至少|最[大小]|不[小大]于",
    re.IGNORECASE,
)
# The parameter as such is unknown, whatever its value.
_FIELD = r"(?:parameter|argument|field|propert|option|key\b|keys\b|key\(|name\b|input)"
_UNKNOWN_FIELD = re.compile(
    rf"(?:unknown|unrecogni[sz]ed|unexpected|unsupported|extra|additional)[ _](?:\w+ |){_FIELD}"
    rf"|{_FIELD}.{{0,20}}not.{{0,3}}(?:supported|permitted|allowed)"
    rf"|not.{{0,3}}support.{{0,20}}{_FIELD}|cannot find|should not exist"
    rf"|not a (?:valid|recogni[sz]ed|known|supported) {_FIELD}|invalid {_FIELD} name"
    r"|unsupported_?params?|未知的?(?:参数|字段)|不支持的?(?:参数|字段)|参数.{0,20}不支持|不支持.{0,20}参数|多余",
    re.IGNORECASE,
)
# These words also mean an unknown parameter, unless the message quotes the value.
_UNKNOWN = re.compile(r"unknown|unrecogni[sz]ed|unexpected|not permitted", re.IGNORECASE)
SIZE_FIELDS = ("size", "image_size", "width", "height", "aspect_ratio")
_SIZE_WORDS = re.compile(
    r"\b(?:size|resolution|width|height|longest edge|dimensions?|pixels?|aspect.?ratio)\b"
    r"|ensure this value|input should be|尺寸|分辨率|像素|大小|长宽|宽高|宽度|高度|比例",
    re.IGNORECASE | re.ASCII,
)
_ADVICE = re.compile(r"instead|\buse\b|required|missing|provide|specify|请使用|缺少|必填", re.I)


@dataclass(frozen=True, slots=True)
class Learned(Note):
    """The parameters and sizes that one model of one server accepts.

    `dropped`: parameters it does not know; `wrong`: values that it rejected, as `name=value`;
    `renamed`: pairs of our name and the server's; `size_field`: the field for the size (`size`,
    `image_size`, `width`, `aspect_ratio`, or `none`); `wants_base64`: its URLs cannot be fetched.
    """

    kind: ClassVar[str] = "learned"

    dropped: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    size_field: str = "size"
    sizes: SizeRule = field(default_factory=SizeRule)
    ratios: tuple[str, ...] = ASPECT_RATIOS
    wants_base64: bool = False

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        sizes = dict(value["sizes"])
        sizes["sizes"] = tuple((int(w), int(h)) for w, h in sizes["sizes"])
        return cls(
            dropped=tuple(value["dropped"]),
            wrong=tuple(value["wrong"]),
            renamed=tuple((ours, theirs) for ours, theirs in value["renamed"]),
            size_field=str(value["size_field"]),
            sizes=SizeRule(**sizes),
            ratios=tuple(value["ratios"]),
            wants_base64=bool(value["wants_base64"]),
        )

    def store(self, state: State, key: str, before: Recalled[Learned] | None) -> None:
        """Store what was learned, unless another process has stored its own lesson meanwhile.

        The expiry stays the same: a new lesson does not prolong older ones.
        """
        with suppress(Unavailable):
            state.exchange(before, self, key, before.left if before else LEARNED_TTL)

    def describe(self) -> dict[str, Any]:
        """Return what has been learned, for /status.

        Anyone may read it, so it does not contain rejected values, which clients wrote.
        """
        known, plain = asdict(self), asdict(Learned())
        limits, none = known.pop("sizes"), plain.pop("sizes")
        found = {name: value for name, value in known.items() if value != plain[name]}
        found |= {name: value for name, value in limits.items() if value != none[name]}
        if self.wrong:
            found["wrong"] = sorted({value.partition("=")[0] for value in self.wrong})
        return found

    def fields(self, body: Mapping[str, Any], size: Size | None) -> dict[str, Any]:
        """Return the fields to send for `body` and a size in pixels."""
        names = dict(self.renamed)
        sent = {
            names.get(name, name): value
            for name, value in body.items()
            if name in _ESSENTIAL
            or (name not in self.dropped and f"{name}={value}" not in self.wrong)
        }
        if self.wants_base64 and "response_format" not in self.dropped:
            sent["response_format"] = "b64_json"
        return sent | (self._size_fields(size) if size else {})

    def _size_fields(self, size: Size) -> dict[str, Any]:
        if _as_wrong(size) in self.wrong:
            return {}
        width, height = self.sizes.fit(size)
        match self.size_field:
            case "size" | "image_size":
                return {self.size_field: f"{width}x{height}"}
            case "width":
                return {"width": width, "height": height}
            case "aspect_ratio":
                return {"aspect_ratio": nearest_ratio(size, self.ratios)}
        return {}

    def learn(self, error: ErrorText, sent: Mapping[str, Any], size: Size | None) -> Learned:
        """Return this note with what a rejection of the fields `sent` teaches, if anything.

        If an error names several fields, the one named most explicitly is blamed.
        """
        names = dict(self.renamed)
        strengths = {
            name: _strength(error, names.get(name, name))
            for name in _droppable(sent, names)
            # A size that is fitted is not dropped; one that was configured is.
            if not (size and name in SIZE_FIELDS)
        }
        blamed = max(strengths, key=lambda name: strengths[name], default="")
        of_size = _size_strength(error, sent) if size else 0
        if size and of_size and of_size >= strengths.get(blamed, 0):
            return self._learn_size(error, sent, size)
        if not strengths.get(blamed):
            return self
        return self._learn_field(error, blamed, sent[names.get(blamed, blamed)])

    def _learn_field(self, error: ErrorText, name: str, value: Any) -> Learned:
        other = _OTHER_NAMES.get(name)
        if other and other not in dict(self.renamed).values() and _mentions(error, other):
            return replace(self, renamed=(*self.renamed, (name, other)))
        if name == "response_format" and self.wants_base64:
            return replace(self, wants_base64=False, dropped=(*self.dropped, name))
        if _is_unknown(error, str(value)):
            return replace(self, dropped=(*self.dropped, name))
        return self._with_wrong(f"{name}={value}")

    def _learn_size(self, error: ErrorText, sent: Mapping[str, Any], size: Size) -> Learned:
        """Fit the size, send it in another field, or omit it: the first that has not been tried."""
        ratios = listed_ratios(error.text)
        if "aspect_ratio" in sent:
            is_news = ratios and sent["aspect_ratio"] not in ratios
            return replace(self, ratios=ratios) if is_news else replace(self, size_field="none")
        fitted = self.sizes.fit(size)
        sizes = self.sizes.learn(error.text, fitted)
        if sizes.fit(size) != fitted:
            return replace(self, sizes=sizes)
        if wanted := _wanted_field(error, sent):
            return replace(self, size_field=wanted, ratios=ratios or self.ratios)
        if _is_unknown(error, "{}x{}".format(*fitted)):
            # The error suggests no field. Vendors without sizes may take shapes, as xAI does.
            return replace(self, size_field="aspect_ratio")
        return replace(self, sizes=self.sizes.without_guesses())._with_wrong(_as_wrong(size))

    def _with_wrong(self, value: str) -> Learned:
        return replace(self, wrong=(*self.wrong, value)[-_MAX_WRONG:])


def _as_wrong(size: Size) -> str:
    return f"size={size[0]}x{size[1]}"


def _wanted_field(error: ErrorText, sent: Mapping[str, Any]) -> str | None:
    """Return the size field that the error asks for instead of the one sent, if any."""
    unsent = [name for name in SIZE_FIELDS if name not in sent and _mentions(error, name)]
    blames_sent = any(name in sent and _mentions(error, name) for name in SIZE_FIELDS)
    is_advice = _ADVICE.search(error.text) or _is_unknown(error, "")
    if not unsent or (blames_sent and not is_advice):
        return None
    return "width" if unsent[0] == "height" else unsent[0]


def _droppable(sent: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """Return our names of the optional fields that were sent."""
    ours = {theirs: our for our, theirs in names.items()}
    found = [ours.get(name, name) for name in sent]
    return [name for name in found if name not in _ESSENTIAL]


def _strength(error: ErrorText, name: str) -> int:
    """Return how explicitly an error blames a field: 3 by `param`, 2 quoted, 1 named, 0 not."""
    if name in error.params:
        return 3
    if not _REJECTION.search(error.text):
        return 0
    if re.search(rf"[\"'`“‘「\[]{re.escape(name)}\\?[\"'`”’」\]]", error.text):
        return 2
    # A single letter ("n") is a word of many sentences; it is a field only in quotes.
    return int(len(name) > 1 and _mentions(error, name))


def _size_strength(error: ErrorText, sent: Mapping[str, Any]) -> int:
    """Return how explicitly an error blames the size, on the scale of `_strength`."""
    fields = [name for name in SIZE_FIELDS if name in sent]
    strength = max((_strength(error, name) for name in fields), default=0)
    if strength or not _REJECTION.search(error.text):
        return strength
    is_named = any(_mentions(error, name) for name in SIZE_FIELDS)
    if not fields:
        return int(is_named and bool(_ADVICE.search(error.text)))
    has_value = _mentions(error, str(sent[fields[0]]))
    return int(is_named or has_value or bool(_SIZE_WORDS.search(error.text)))


def _is_unknown(error: ErrorText, value: str) -> bool:
    """Return whether the field itself is rejected, rather than its value."""
    if _UNKNOWN_FIELD.search(error.text):
        return True
    return bool(_UNKNOWN.search(error.text)) and not (value and _mentions(error, value))


def _mentions(error: ErrorText, name: str) -> bool:
    # ASCII: a Chinese sentence has no spaces around a name.
    return bool(re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", error.text, re.ASCII))
