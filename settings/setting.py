"""What the table says about one setting, and how its value is read from variables."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from settings.parsers import (
    base_url,
    check_extra,
    each,
    is_unicode,
    json_object,
    printable_url,
    text_file,
)

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


class Reader:
    """Parses variables, of which a blank one is not set, into the values of the table's fields.

    After a fault the default stands for the value, so that all faults are found; `faults` holds a
    sentence for each, variable first.
    """

    def __init__(self, table: Iterable[Setting], variables: Mapping[str, str]) -> None:
        self.faults: list[str] = []
        self.values: dict[str, Any] = {}
        self._texts = {name: text.strip() for name, text in variables.items() if text.strip()}
        for row in table:
            self.values[row.field] = self._value(row)

    def fault(self, name: str, sentence: str | Exception) -> None:
        self.faults.append(f"{name}: {sentence}")

    def require(self, name: str, advice: str) -> None:
        """Report a variable that is not set."""
        if name not in self._texts:
            self.fault(name, f"is not set; {advice}")

    def _value(self, row: Setting) -> Any:
        if row.is_secret:
            self._read_secret_file(row.name)
        name = next((name for name in row.names if name in self._texts), row.name)
        text = self._texts.get(name)
        if not text:
            return row.default_value
        try:
            value = self._by_backend(row, text) if row.is_by_backend else row.parse(text)
            if row.extra and value != row.default_value:
                check_extra(row.extra)
            if not isinstance(value, Path) and not is_unicode(text):
                raise ValueError("is not UTF-8; write it in UTF-8")
        except ValueError as error:
            for sentence in error.args:
                self.fault(name, sentence)
            return row.default_value
        return value

    def _by_backend(self, row: Setting, text: str) -> dict[str, Any]:
        backends = self.values["backend_api_urls"]

        def entry(key: str, value: Any) -> tuple[str, Any]:
            try:
                url = base_url(key.strip())
            except ValueError:
                # Not quoted: if key and value were swapped, it is a token.
                sentence = 'has a key that is not a URL; write {"https://backend/v1": …}'
                raise ValueError(sentence) from None
            try:
                if backends and url not in backends:
                    raise ValueError("is not a backend; write a URL from BACKEND_API_URLS")
                return url, row.parse(value)
            except ValueError as error:
                of_url = (f"{printable_url(url)!r}: {sentence}" for sentence in error.args)
                raise ValueError(*of_url) from None

        return dict(each(json_object(text), entry))

    def _read_secret_file(self, name: str) -> None:
        """Give a variable the contents of the file that `NAME_FILE` names, if that is set."""
        file = f"{name}_FILE"
        if file not in self._texts:
            return
        try:
            if name in self._texts:
                raise ValueError(f"{name} is set too; write only one of the two")
            self._texts[name] = text_file(self._texts[file]).strip()
            if not self._texts[name]:
                raise ValueError("names an empty file; put the secret into it")
        except ValueError as error:
            self.fault(file, error)
            self._texts.setdefault(name, "")  # it is not missing
