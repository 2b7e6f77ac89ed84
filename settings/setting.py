"""What the table says about one setting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A row of the table: how a setting is read and documented.

    `default` is text, which is parsed, or a value that no text stands for; `shown` explains it in
    Markdown. `extra` must be installed if the value is not the default. `heading` begins a section
    of the documents.
    """

    field: str
    parse: Callable[[str], Any]
    default: Any
    is_secret: bool = False
    extra: str | None = None
    shown: str = ""
    heading: str = ""
    is_by_backend: bool = False  # JSON; `parse` takes the value for each URL
    names: tuple[str, ...] = ()  # variables to read: the first that is set counts

    @property
    def name(self) -> str:
        """The variable that the documents name; curl's `https_proxy` is read as well."""
        return next(name for name in self.names if name.isupper())

    @property
    def all_names(self) -> tuple[str, ...]:
        return (*self.names, f"{self.name}_FILE") if self.is_secret else self.names

    @property
    def text(self) -> str:
        """The default as text; empty if it has none."""
        return self.default if isinstance(self.default, str) else ""

    @property
    def default_value(self) -> Any:
        return self.parse(self.default) if isinstance(self.default, str) else self.default


def setting(parse: Callable[[str], T], default: T | str, **more: Any) -> T:
    """Declare a setting as a field of a dataclass; `more` is as in `Setting`.

    Its variable is the field's name in capitals, unless `names` says otherwise.
    """
    declared: Any = field(repr=False, metadata={"parse": parse, "default": default, **more})
    return declared  # type: ignore[no-any-return] # a Field, as dataclasses want it


def by_backend(parse: Callable[[Any], T], **more: Any) -> Mapping[str, T]:
    """Declare a setting that is a JSON object of backends' URLs and values for `parse`."""
    parse_value: Any = parse
    return setting(parse_value, {}, is_by_backend=True, **more)


def rows(table: Any) -> list[Setting]:
    """Return the settings that a dataclass declares, in their order."""
    return [
        Setting(field=one.name, **{"names": (one.name.upper(),), **one.metadata})
        for one in fields(table)
    ]
