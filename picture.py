"""The request for a picture, to and from its URL, and its cache key; errors for clients.

Every other module may import this one, which itself imports only settings/parsers.py.
"""

from __future__ import annotations

import hashlib
import html
import re
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from typing import Any
from urllib.parse import quote, unquote_plus, unquote_to_bytes, urlencode

from settings.parsers import MODEL, is_unicode

DEFAULT_SEED = 42
MAX_SIDE = 4096
# In the order of the cache key.
OPTIONS = ("quality", "style", "background", "negative_prompt")
PARAMETERS = ("width", "height", "model", "seed", *OPTIONS)
CREDENTIALS = ("key", "sig", "exp", "by")
_KNOWN = frozenset((*PARAMETERS, *CREDENTIALS, "size"))
_KNOWN_NAME = re.compile(rf"(?i)(?:^|[&;])\s*(?:{'|'.join(_KNOWN)})\s*(?:[=&;]|\Z)")
MAX_FIELDS = 100
MAX_OPTION = 200
# Characters of a URL: four bytes for each character of an option, and three for each byte.
MAX_ENCODED = 12 * MAX_OPTION
# At the end of a URL's path they are for programs that want one, and not part of the prompt.
EXTENSIONS = ("png", "jpg", "jpeg", "webp", "gif")


class Problem(Exception):
    """An error shown to clients: a code, and the parameters of its sentence.

    web/sentences.py holds the sentence of each code, in English and in Chinese.
    """

    def __init__(self, code: str, **parameters: Any) -> None:
        super().__init__(code)
        self.code = code
        self.parameters = parameters

    def __str__(self) -> str:
        """Return code and parameters, for a traceback, such as `prompt_too_long (limit=4000)`."""
        named = ", ".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"{self.code} ({named})" if named else self.code


class BadRequest(Problem):
    """An invalid request. `parameters["name"]`, if given, is the field to blame."""


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """A picture as requested: a stripped prompt, and None for each parameter not given."""

    prompt: str
    width: int | None = None
    height: int | None = None
    model: str | None = None
    seed: int = DEFAULT_SEED
    quality: str | None = None
    style: str | None = None
    background: str | None = None
    negative_prompt: str | None = None

    @classmethod
    def from_text(
        cls, description: str, max_prompt_length: int = 4000, **parameters: str | None
    ) -> ImageRequest:
        """Parse a description and PARAMETERS from a client. Raises BadRequest."""
        given = {name: text for name, text in parameters.items() if text is not None}
        values: dict[str, Any] = {name: _value(name, text) for name, text in given.items()}
        return cls(_prompt(description, max_prompt_length), **values)

    @classmethod
    def from_url(cls, path: str, query: str, max_prompt_length: int = 4000) -> Named:
        """Parse WSGI's PATH_INFO (percent-decoded, then decoded as Latin-1) and QUERY_STRING.

        Unknown parameters are ignored. Raises BadRequest.
        """
        try:
            asked, query = _split_query(query)
            # Flask would turn invalid bytes into U+FFFD, and two prompts would share one key.
            description = (path + asked).encode("latin-1").decode("utf-8").removeprefix("/prompt/")
        except UnicodeError:
            raise BadRequest("prompt_not_utf8", name="description") from None
        found = _parse_query(query)
        credentials = {name: found.pop(name) for name in CREDENTIALS if name in found}
        written = description.strip()
        prompt = _without_extension(written)
        request = cls.from_text(prompt, max_prompt_length, **found)
        literal = () if prompt == written else (replace(request, prompt=written),)
        return Named((*literal, request), credentials)

    def to_url(self, extension: str | None = None, /, **credentials: str | int) -> str:
        """Return the path and query from which `from_url` returns this value.

        `extension`, one of EXTENSIONS, is added for programs that want one, and `png` to a prompt
        that would otherwise lose its own. Everything but unreserved characters is percent-encoded,
        parentheses too, so that a Markdown link can hold the URL.
        """
        if extension is None and _without_extension(self.prompt) != self.prompt:
            extension = EXTENSIONS[0]
        path = quote(self.prompt, safe="") + (f".{extension}" if extension else "")
        given = {name: getattr(self, name) for name in PARAMETERS}
        query = {name: value for name, value in given.items() if value is not None}
        if self.seed == DEFAULT_SEED:
            del query["seed"]
        encoded = urlencode(query | credentials, quote_via=quote, safe="")
        return f"/prompt/{path}" + (f"?{encoded}" if encoded else "")

    @property
    def key(self) -> str:
        """The cache key, 64 hex digits.

        SHA-256 of `prompt|width|height|model|seed`, with the prompt lower-cased and `def` for
        each value not given, followed by `|name=value` for each of the OPTIONS given.
        """
        parts = (self.prompt.lower(), self.width, self.height, self.model, self.seed)
        text = "|".join("def" if part is None else str(part) for part in parts)
        text += "".join(f"|{name}={quote(value, safe='')}" for name, value in self.options.items())
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def keys_to_delete(self) -> list[str]:
        """The keys of the pictures that a URL with this prompt may show, its own last."""
        plain = replace(self, prompt=_without_extension(self.prompt))
        return list(dict.fromkeys((plain.key, self.key)))

    @property
    def options(self) -> dict[str, str]:
        """The OPTIONS that were given."""
        found = {name: getattr(self, name) for name in OPTIONS}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def pixels(self) -> tuple[int, int] | None:
        """Width and height to draw, or None if the backend may choose; a lone side is both."""
        if (first := self.width or self.height) is None:
            return None
        return first, self.height or first

    @property
    def size(self) -> str | None:
        """`pixels` as OpenAI writes them, `1024x768`."""
        return "{}x{}".format(*self.pixels) if self.pixels else None


@dataclass(frozen=True)
class Named:
    """A URL as read: the pictures that it may show, and the CREDENTIALS in it.

    The first picture that is in the cache is shown, otherwise the last one is drawn. There are two
    where the path ends in an extension: it may have been drawn, and signed, as part of the prompt.
    """

    pictures: tuple[ImageRequest, ...]
    credentials: dict[str, str]

    @property
    def request(self) -> ImageRequest:
        return self.pictures[-1]

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The keys of the pictures."""
        return tuple(one.key for one in self.pictures)


def to_paste(
    request: ImageRequest, url: str, drawn: tuple[int, int] | None = None
) -> dict[str, str]:
    """Return a picture's URL, also as Markdown and HTML to paste into documents.

    `drawn` is the size that it was drawn at, if it is known: browsers would squash a picture into
    another one.
    """
    alt = " ".join(request.prompt.split())
    escaped = re.sub(r"([\\`*_\[\]<>&!])", r"\\\1", alt)
    sides = drawn or request.pixels
    size = ' width="{}" height="{}"'.format(*sides) if sides else ""
    image = f'<img src="{html.escape(url)}" alt="{html.escape(alt)}"{size} loading="lazy">'
    return {"url": url, "markdown": f"![{escaped}]({url})", "html": image}


def _without_extension(prompt: str) -> str:
    stem, _, extension = prompt.rpartition(".")
    return stem.rstrip() if stem and extension.lower() in EXTENSIONS else prompt.rstrip()


def _split_query(query: str) -> tuple[str, str]:
    """Return the beginning of a query that belongs to the prompt, decoded like a path; the rest.

    In `/prompt/who is it??key=…` and `/prompt/what? why?key=…`, the query begins at the last `?`
    before which there is no parameter of ours, decoded or not and in any case: a credential never
    becomes part of a prompt.
    """
    if query.count("?") > MAX_FIELDS:
        raise BadRequest("too_many_parameters", limit=MAX_FIELDS)
    *parts, last = query.split("?")
    asked = list(takewhile(lambda part: not _KNOWN_NAME.search(unquote_plus(part)), parts))
    text = "".join(f"?{part}" for part in asked).encode("latin-1")
    return unquote_to_bytes(text).decode("latin-1"), "?".join([*parts[len(asked) :], last])


def _parse_query(query: str) -> dict[str, str]:
    """Return the known parameters; others are ignored. Raises BadRequest.

    `&amp;` separates parameters too, as in HTML that was copied.
    """
    if query.count("&") >= MAX_FIELDS:
        raise BadRequest("too_many_parameters", limit=MAX_FIELDS)
    pairs = re.sub("&(?:amp;)+", "&", query, flags=re.IGNORECASE).split("&")
    found: dict[str, str] = {}
    for pair in pairs:
        written, _, value = pair.partition("=")
        name = _decoded(written)
        if name in found:
            raise BadRequest("parameter_twice", name=name)
        if name in _KNOWN:
            found[name] = _decoded(value)
    sides = read_size(found.pop("size", ""))
    if sides and not found.keys() & {"width", "height"}:
        found["width"], found["height"] = sides
    return found


def _decoded(text: str) -> str:
    """Return a name or a value decoded; one too long for any, as it is: 64 KB would cost 5 ms."""
    if len(text) > MAX_ENCODED:
        return text
    try:
        return unquote_plus(text, errors="strict")
    except UnicodeDecodeError:
        raise BadRequest("parameter_not_utf8") from None


def read_size(text: str) -> tuple[str, str] | None:
    """Return width and height of a size such as `1024x768`; None if it is not one."""
    match = re.fullmatch(r"([0-9]{1,4})x([0-9]{1,4})", text)
    if not match or not all(1 <= int(side) <= MAX_SIDE for side in match.groups()):
        return None
    return match[1], match[2]


def _prompt(description: str, max_length: int) -> str:
    prompt = description.strip()
    if not prompt:
        raise BadRequest("prompt_empty", name="description")
    if len(prompt) > max_length:
        raise BadRequest("prompt_too_long", name="description", limit=max_length)
    if "\0" in prompt:
        raise BadRequest("prompt_has_nul", name="description")
    if not is_unicode(prompt):
        raise BadRequest("prompt_not_utf8", name="description")
    return prompt


def _value(name: str, text: str) -> int | str:
    """Parse one of the PARAMETERS. Raises BadRequest."""
    match name:
        case "width" | "height":
            # [0-9] first: int() alone would take '٣', '1_000' and ' 5 '.
            if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= MAX_SIDE:
                raise BadRequest("not_in_range", name=name, low=1, high=MAX_SIDE)
            return int(text)
        case "seed":
            if not re.fullmatch(r"-?[0-9]{1,18}", text):
                raise BadRequest("not_a_seed", name=name)
            return int(text)
        case "model":
            if not re.fullmatch(MODEL, text):
                raise BadRequest("not_a_model", name=name)
        case _:
            if not (1 <= len(text) <= MAX_OPTION and text.isprintable()):
                raise BadRequest("not_an_option", name=name)
    return text
