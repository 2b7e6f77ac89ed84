"""Stand-ins that behave like the parts they wrap, and report calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class Call(NamedTuple):
    """A call that has ended: its result or its error, and how long it took."""

    method: str
    arguments: tuple[Any, ...]
    result: Any
    error: BaseException | None
    seconds: float

    @property
    def outcome(self) -> str:
        return "failed" if self.error else "ok"


Report = Callable[[Call], None]


def watched(method: str, function: Callable[..., T], report: Report) -> Callable[..., T]:
    """Return a function that does the same, and reports each call before it returns or raises."""

    def call(*arguments: Any, **named: Any) -> T:
        began = time.perf_counter()
        try:
            result = function(*arguments, **named)
        except BaseException as error:
            report(Call(method, arguments, None, error, time.perf_counter() - began))
            raise
        report(Call(method, arguments, result, None, time.perf_counter() - began))
        return result

    return call


class Watched:
    """Behaves like `part`, and reports each call of these methods."""

    def __init__(self, part: Any, methods: Iterable[str], report: Report) -> None:
        self._part = part
        for name in methods:
            setattr(self, name, watched(name, getattr(part, name), report))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


def methods_of(protocol: type) -> set[str]:
    """Return the names of the methods that a protocol declares."""
    own = vars(protocol).items()
    return {name for name, value in own if callable(value) and not name.startswith("_")}
