"""Where pictures and what is known of them live: one contract, several implementations.

A `State` (state.py) holds rows, notes and locks; a `Store` (store.py) holds bytes. On one machine
they are SQLite and a folder. tests/test_storage.py runs one behaviour suite over every
implementation.
"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, Self, TypeVar

from picture import OPTIONS, ImageRequest, Problem


class Unavailable(Problem):
    """The state cannot be used at the moment. `reason`, its text, names no file and no key."""

    _code: ClassVar[str] = "cache_unavailable"

    def __init__(self, reason: str) -> None:
        super().__init__(self._code)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class IncompatibleSchema(Unavailable):
    """A newer version of the program has written this state; it is left as it is."""


class NoRoom(Unavailable):
    """A new picture could not be stored, for this reason, so none is drawn."""

    _code = "no_room"

    def __str__(self) -> str:
        return f"new pictures cannot be stored: {self.reason}"


class BeingDrawn(Unavailable):
    """The picture is being drawn, and cannot be deleted."""

    _code = "still_drawing"


class LockTimeout(Exception):
    """Others held the lock, or did the work, for longer than the caller would wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """All that is known of one picture. Sizes are pixels and bytes, `created` a Unix time.

    A picture lies either in the store, as `file`, or at an image host, at `url`. `digest` is
    the SHA-256 of its bytes in hex, None for an adopted file until its first hit, as is its size
    (`drawn_width`, `drawn_height`), whatever size was requested. The fields from `prompt` on are
    None where they are unknown.
    """

    key: str
    file: str | None = None
    url: str | None = None
    media_type: str
    bytes: int
    digest: str | None
    created: float
    prompt: str | None = None
    width: int | None = None
    height: int | None = None
    model: str | None = None
    seed: int | None = None
    quality: str | None = None
    style: str | None = None
    background: str | None = None
    negative_prompt: str | None = None
    optimized: str | None = None
    rewritten: str | None = None
    revised: str | None = None
    drawn_by: str | None = None
    drawn_width: int | None = None
    drawn_height: int | None = None

    @property
    def pixels(self) -> tuple[int, int] | None:
        """The size of the picture as it was drawn, if it is known."""
        if self.drawn_width is None or self.drawn_height is None:
            return None
        return self.drawn_width, self.drawn_height

    @property
    def request(self) -> ImageRequest | None:
        """The request that this picture answers, or None for an adopted or imported file."""
        if self.prompt is None or self.seed is None:
            return None
        options = {name: getattr(self, name) for name in OPTIONS}
        return ImageRequest(self.prompt, self.width, self.height, self.model, self.seed, **options)

    @property
    def final_prompt(self) -> str | None:
        """The prompt that was drawn, as far as it is known."""
        return self.revised or self.rewritten or self.optimized or self.prompt

    def to_json(self) -> dict[str, Any]:
        """Return what clients see of it."""
        return {name: getattr(self, name) for name in _SHOWN}


_SHOWN = (
    "key", "prompt", "width", "height", "model", "seed", *OPTIONS, "final_prompt", "drawn_by",
    "drawn_width", "drawn_height", "media_type", "bytes", "created",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Totals:
    """How many rows there are, and how many bytes the store holds for them."""

    entries: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Note:
    """A small fact that expires, stored as JSON under its kind and a key.

    Each kind is a frozen dataclass.
    """

    kind: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Raises TypeError, ValueError or KeyError for what another version has written."""
        return cls(**value)


N = TypeVar("N", bound=Note)


@dataclass(frozen=True, slots=True)
class Recalled(Generic[N]):
    """A note with its age and the time that is left of it, in seconds by the state's clock."""

    note: N
    age: float
    left: float


@dataclass(frozen=True, slots=True)
class Filter:
    """Rows of one model ("": of any), created from `since` on and before `until`, Unix times."""

    model: str = ""
    since: float = 0.0
    until: float = float("inf")


ALL = Filter()
