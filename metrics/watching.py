"""Parts of the program that look like before while every call is seen."""

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


Tell = Callable[[Call], None]


def watched(method: str, function: Callable[..., T], tell: Tell) -> Callable[..., T]:
    """Return `function`, which calls `tell` before it returns or raises."""

    def call(*arguments: Any, **named: Any) -> T:
        began = time.perf_counter()
        try:
            result = function(*arguments, **named)
        except BaseException as error:
            tell(Call(method, arguments, None, error, time.perf_counter() - began))
            raise
        tell(Call(method, arguments, result, None, time.perf_counter() - began))
        return result

    return call


class Watched:
    """Stands for `part`, and tells of each call of these methods."""

    def __init__(self, part: Any, methods: Iterable[str], tell: Tell) -> None:
        self._part = part
        for name in methods:
            setattr(self, name, watched(name, getattr(part, name), tell))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)


def methods_of(protocol: type) -> set[str]:
    """Return the names of the methods that a protocol declares."""
    own = vars(protocol).items()
    return {name for name, value in own if callable(value) and not name.startswith("_")}
