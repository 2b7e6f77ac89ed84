"""Lessons from a server's rejections, per model: parameters to drop, values, sizes.

Most 400s of image backends concern a parameter, not the prompt. Later requests are sent as the
server wants them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from operator import itemgetter
from typing import Any, ClassVar, Self

from dialect import blame
from dialect.blame import ESSENTIAL, SIZE_FIELDS
from dialect.error_text import FREE_TEXT, ErrorText
from dialect.sizes import ASPECT_RATIOS, CHAT_RATIOS, Size, SizeRule
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
    `forced`: fields that must have a certain value; `headers`: headers that it wants;
    `size_field`: the field for the size (`size`, `image_size`, `width`, `aspect_ratio`,
    `image_config` or `none`).
    """

    kind: ClassVar[str] = "learned"

    dropped: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    forced: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    size_field: str = "size"
    sizes: SizeRule = field(default_factory=SizeRule)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        lists = {name: tuple(value[name]) for name in ("dropped", "wrong")}
        return cls(**(value | lists | {"sizes": SizeRule.from_json(value["sizes"])}))

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
        known |= known.pop("sizes")
        plain |= plain.pop("sizes")
        found = {name: value for name, value in known.items() if value != plain[name]}
        if self.wrong:
            found["wrong"] = sorted({value.partition("=")[0] for value in self.wrong})
        return found

    def fields(self, body: Mapping[str, Any], size: Size | None) -> dict[str, Any]:
        """Return the fields to send for `body` and a size in pixels."""
        sent = {
            name: value
            for name, value in body.items()
            if name in ESSENTIAL or self._takes(name, value)
        }
        for name, value in self.forced.items():
            # A client's own value comes first: it is left out only if it is wrong.
            if self._takes(name, value) and not (name in FREE_TEXT and name in sent):
                sent[name] = value
        for name, value in (self._size_fields(size) if size else {}).items():
            # What `image_config` has in the body stays beside the shape.
            own = sent.get(name)
            sent[name] = value | own if isinstance(own, dict) else value
        return sent

    def forcing(self, fields: Mapping[str, Any]) -> Learned:
        """Return this note with fields that must have these values."""
        forced = {**self.forced, **fields}
        return replace(self, forced=dict(islice(forced.items(), _MAX_DEMANDS)))

    def learn(self, error: ErrorText, sent: Mapping[str, Any], size: Size | None) -> Learned:
        """Return this note with what a rejection of the fields `sent` teaches, if anything.

        If an error names several fields, the one named most explicitly is blamed. An error that
        repeats the client's words teaches nothing, or one client could mislead all others.
        """
        # OpenRouter answers 404 where no provider of the model speaks the modalities.
        is_of_modalities = error.status == 404 and blame.mentions(error, "modalities")
        if error.is_echo or not (error.status in (400, 422) or is_of_modalities):
            return self
        demanded = self._learn_demands(error, sent)
        if demanded != self:
            return demanded
        strengths = {
            name: blame.strength(error, name)
            for name in sent
            # A size that is fitted is not dropped; one that was configured is.
            if name not in ESSENTIAL and not (size and name in SIZE_FIELDS)
        }
        blamed, strength = max(strengths.items(), key=itemgetter(1), default=("", 0))
        of_size = blame.size_strength(error, sent) if size else 0
        if size and of_size and of_size >= strength:
            return self._learn_size(error, sent, size)
        return self._learn_field(error, blamed, sent[blamed]) if strength else self

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
                return {"aspect_ratio": self.sizes.nearest_ratio(size, ASPECT_RATIOS)}
            case "image_config":
                ratio = self.sizes.nearest_ratio(size, CHAT_RATIOS)
                return {"image_config": {"aspect_ratio": ratio}}
        return {}

    def _learn_demands(self, error: ErrorText, sent: Mapping[str, Any]) -> Learned:
        # What a client wrote is merely wrong, and may be so because of its other words.
        demanded = {
            name: value
            for name, value in blame.demanded_fields(error).items()
            if self._takes(name, value) and not (name in FREE_TEXT and name in sent)
        }
        headers = {**self.headers, **blame.demanded_headers(error)}
        return replace(self.forcing(demanded), headers=dict(islice(headers.items(), _MAX_DEMANDS)))

    def _learn_field(self, error: ErrorText, name: str, value: Any) -> Learned:
        dropped = replace(self, dropped=(*self.dropped, name))
        other = _OTHER_NAMES.get(name)
        if other and blame.mentions(error, other):
            return dropped.forcing({other: value})
        if name == "modalities" and name not in self.forced:
            # Models that speak no text want pictures alone.
            return self.forcing({"modalities": ["image"]})
        is_unknown = blame.is_unknown(error, name, str(value))
        return dropped if is_unknown else self._with_wrong(f"{name}={value}")

    def _learn_size(self, error: ErrorText, sent: Mapping[str, Any], size: Size) -> Learned:
        """Fit the size, send it in another field, or omit it: the first that has not been tried."""
        fitted = self.sizes.fit(size)
        fields = self._size_fields(size)
        ratio = fields.get("image_config", fields).get("aspect_ratio", "")
        fitting = replace(self, sizes=self.sizes.learn(error.text, fitted, ratio))
        if fitting._size_fields(size) != fields:
            return fitting
        if self.size_field in ("aspect_ratio", "image_config"):
            return replace(self, size_field="none")
        if wanted := blame.wanted_field(error, sent):
            return replace(fitting, size_field=wanted)
        if blame.is_unknown(error, "size", "{}x{}".format(*fitted)):
            # The error suggests no field. Vendors without sizes may take shapes, as xAI does.
            return replace(self, size_field="aspect_ratio")
        return replace(self, sizes=self.sizes.without_guesses())._with_wrong(_as_wrong(size))

    def _with_wrong(self, value: str) -> Learned:
        return replace(self, wrong=(*self.wrong, value)[-_MAX_WRONG:])


def _as_wrong(size: Size) -> str:
    return f"size={size[0]}x{size[1]}"
