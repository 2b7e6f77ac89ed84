"""Lessons from a server's rejections, per model: parameters to drop, values, names, sizes.

Most 400s of image backends concern a parameter, not the prompt. Later requests are sent as the
server wants them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Self

from dialect import blame
from dialect.blame import ESSENTIAL, SIZE_FIELDS
from dialect.error_text import FREE_TEXT, ErrorText
from dialect.sizes import ASPECT_RATIOS, CHAT_RATIOS, Size, SizeRule, listed_ratios, nearest_ratio
from storage import Note, Recalled, Unavailable
from storage.state import State

# A server may be upgraded, or another one may move in at its URL.
LEARNED_TTL = 86400.0
# One odd value after the other, of seeds for instance, must not make the note grow for ever.
_MAX_WRONG = 50
_MAX_DEMANDS = 20
# Other names of the same field; a rejection that mentions one asks for it.
_OTHER_NAMES = {"max_tokens": "max_completion_tokens"}


@dataclass(frozen=True, slots=True)
class Learned(Note):
    """The parameters and sizes that one model of one server accepts.

    `dropped`: parameters it does not know; `wrong`: values that it rejected, as `name=value`;
    `renamed`: pairs of our name and the server's; `size_field`: the field for the size (`size`,
    `image_size`, `width`, `aspect_ratio`, `image_config` or `none`); `ratios`: the aspect ratios
    that it named, if it did; `wants_base64`: its URLs cannot be fetched; `forced`: fields that must
    have a certain value; `headers`: headers that it wants.
    """

    kind: ClassVar[str] = "learned"

    dropped: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    size_field: str = "size"
    sizes: SizeRule = field(default_factory=SizeRule)
    ratios: tuple[str, ...] = ()
    wants_base64: bool = False
    forced: tuple[tuple[str, Any], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()

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
            forced=tuple((name, wanted) for name, wanted in value["forced"]),
            headers=tuple((str(name), str(wanted)) for name, wanted in value["headers"]),
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
            if name in ESSENTIAL or self._takes(name, value)
        }
        for name, value in self.forced:
            # A client's own value comes first: it is left out only if it is wrong.
            if self._takes(name, value) and not (name in FREE_TEXT and name in sent):
                sent[name] = value
        if self.wants_base64 and "response_format" not in self.dropped:
            sent["response_format"] = "b64_json"
        return sent | (self._size_fields(size) if size else {})

    def _takes(self, name: str, value: Any) -> bool:
        return name not in self.dropped and f"{name}={value}" not in self.wrong

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
                return {"aspect_ratio": nearest_ratio(size, self.ratios or ASPECT_RATIOS)}
            case "image_config":
                ratio = nearest_ratio(size, self.ratios or CHAT_RATIOS)
                return {"image_config": {"aspect_ratio": ratio}}
        return {}

    def learn(self, error: ErrorText, sent: Mapping[str, Any], size: Size | None) -> Learned:
        """Return this note with what a rejection of the fields `sent` teaches, if anything.

        If an error names several fields, the one named most explicitly is blamed. An error that
        repeats the client's words teaches nothing, or one client could mislead all others.
        """
        if not teaches(error):
            return self
        demanded = self._learn_demands(error, sent)
        if demanded != self:
            return demanded
        names = dict(self.renamed)
        strengths = {
            name: blame.strength(error, names.get(name, name))
            for name in _droppable(sent, names)
            # A size that is fitted is not dropped; one that was configured is.
            if not (size and name in SIZE_FIELDS)
        }
        blamed = max(strengths, key=lambda name: strengths[name], default="")
        of_size = blame.size_strength(error, sent) if size else 0
        if size and of_size and of_size >= strengths.get(blamed, 0):
            return self._learn_size(error, sent, size)
        if not strengths.get(blamed):
            return self
        return self._learn_field(error, blamed, sent[names.get(blamed, blamed)])

    def _learn_demands(self, error: ErrorText, sent: Mapping[str, Any]) -> Learned:
        forced = dict(self.forced)
        for name, value in blame.demanded_fields(error):
            # What a client wrote is merely wrong, and may be so because of its other words.
            if self._takes(name, value) and not (name in FREE_TEXT and name in sent):
                forced[name] = value
        headers = dict(self.headers) | dict(blame.demanded_headers(error))
        return replace(
            self,
            forced=tuple(forced.items())[:_MAX_DEMANDS],
            headers=tuple(headers.items())[:_MAX_DEMANDS],
        )

    def _learn_field(self, error: ErrorText, name: str, value: Any) -> Learned:
        other = _OTHER_NAMES.get(name)
        if other and other not in dict(self.renamed).values() and blame.mentions(error, other):
            return replace(self, renamed=(*self.renamed, (name, other)))
        if name == "response_format" and self.wants_base64:
            return replace(self, wants_base64=False, dropped=(*self.dropped, name))
        if name == "modalities" and name not in dict(self.forced):
            # Models that speak no text want pictures alone.
            return replace(self, forced=(*self.forced, (name, ["image"])))
        if blame.is_unknown(error, name, str(value)):
            return replace(self, dropped=(*self.dropped, name))
        return self._with_wrong(f"{name}={value}")

    def _learn_size(self, error: ErrorText, sent: Mapping[str, Any], size: Size) -> Learned:
        """Fit the size, send it in another field, or omit it: the first that has not been tried."""
        ratios = listed_ratios(error.text)
        if self.size_field in ("aspect_ratio", "image_config"):
            named = replace(self, ratios=ratios or self.ratios)
            is_news = named._size_fields(size) != self._size_fields(size)
            return named if is_news else replace(self, size_field="none")
        fitted = self.sizes.fit(size)
        sizes = self.sizes.learn(error.text, fitted)
        if sizes.fit(size) != fitted:
            return replace(self, sizes=sizes)
        if wanted := blame.wanted_field(error, sent):
            return replace(self, size_field=wanted, ratios=ratios or self.ratios)
        if blame.is_unknown(error, "size", "{}x{}".format(*fitted)):
            # The error suggests no field. Vendors without sizes may take shapes, as xAI does.
            return replace(self, size_field="aspect_ratio")
        return replace(self, sizes=self.sizes.without_guesses())._with_wrong(_as_wrong(size))

    def _with_wrong(self, value: str) -> Learned:
        return replace(self, wrong=(*self.wrong, value)[-_MAX_WRONG:])


def teaches(error: ErrorText) -> bool:
    """Return whether an error is about the request, so that another form of it may be taken."""
    # OpenRouter answers 404 where no provider of the model speaks the modalities.
    is_rejection = error.status in (400, 422)
    return not error.is_echo and (
        is_rejection or (error.status == 404 and blame.mentions(error, "modalities"))
    )


def _as_wrong(size: Size) -> str:
    return f"size={size[0]}x{size[1]}"


def _droppable(sent: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """Return our names of the optional fields that were sent."""
    ours = {theirs: our for our, theirs in names.items()}
    found = [ours.get(name, name) for name in sent]
    return [name for name in found if name not in ESSENTIAL]
