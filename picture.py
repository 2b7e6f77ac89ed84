"""What a picture is: the request that names it.

Plain values that every other module may use; imports none of them.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlencode

DEFAULT_SEED = 42
MAX_SIDE = 4096


class BadRequest(Exception):
    """The request cannot be understood. Its text is one sentence that names the parameter."""


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """Which picture is wanted: a stripped prompt, a size in pixels or none, a model or none."""

    prompt: str
    width: int | None = None
    height: int | None = None
    model: str | None = None
    seed: int = DEFAULT_SEED

    @classmethod
    def from_text(
        cls,
        description: str,
        *,
        width: str | None = None,
        height: str | None = None,
        model: str | None = None,
        seed: str | None = None,
        max_prompt_length: int = 4000,
    ) -> ImageRequest:
        """Check what a client wrote and return its value. Raises BadRequest."""
        sides = _side("width", width), _side("height", height)
        # A lone side means a square, and must: both spellings have to make one key.
        both = (sides[0] or sides[1], sides[1] or sides[0])
        return cls(_prompt(description, max_prompt_length), *both, _model(model), _seed(seed))

    @classmethod
    def from_url(
        cls, path: str, query: str, max_prompt_length: int = 4000
    ) -> tuple[ImageRequest, dict[str, str]]:
        """Read `path` (a WSGI PATH_INFO: percent-decoded, one character a byte) and `query`.

        Returns the request and the other parameters of ours (the credentials).
        Unknown parameters are ignored. Raises BadRequest.
        """
        try:
            # Flask would turn invalid bytes into U+FFFD, and two prompts would share one key.
            description = path.encode("latin-1").decode("utf-8").removeprefix("/prompt/")
        except UnicodeError:
            raise BadRequest("The description is not valid UTF-8.") from None
        found = _parameters(query)
        own = {name: found.pop(name, None) for name in ("width", "height", "model", "seed")}
        return cls.from_text(description, max_prompt_length=max_prompt_length, **own), found

    def to_url(self, **credentials: str | int) -> str:
        """Return the path and query that `from_url` reads back into this value.

        Everything but unreserved characters is percent-encoded, parentheses too, so that the
        URL can stand in a Markdown link.
        """
        sizes = {"width": self.width, "height": self.height, "model": self.model}
        query: dict[str, str | int] = {k: v for k, v in sizes.items() if v is not None}
        if self.seed != DEFAULT_SEED:
            query["seed"] = self.seed
        encoded = urlencode(query | credentials, quote_via=quote, safe="")
        return f"/prompt/{quote(self.prompt, safe='')}" + (f"?{encoded}" if encoded else "")

    @property
    def key(self) -> str:
        """The cache key, 64 hex digits: SHA-256 of `prompt|width|height|model|seed`."""
        parts = (self.prompt.lower(), self.width, self.height, self.model, self.seed)
        text = "|".join("def" if part is None else str(part) for part in parts)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def size(self) -> str | None:
        """The size as OpenAI writes it, `1024x768`, or None where the backend may choose."""
        return f"{self.width}x{self.height}" if self.width and self.height else None


_OURS = frozenset(("key", "sig", "exp", "width", "height", "model", "seed"))


def _parameters(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=100)
    except UnicodeDecodeError:
        raise BadRequest("A parameter is not valid UTF-8.") from None
    except ValueError:
        raise BadRequest("There are more than 100 parameters.") from None
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found:
            raise BadRequest(f"The parameter {name} is given twice.")
        if name in _OURS:
            found[name] = value
    return found


def _prompt(description: str, max_length: int) -> str:
    prompt = description.strip()
    if not prompt:
        raise BadRequest("The description is empty.")
    if len(prompt) > max_length:
        raise BadRequest(f"The description is longer than {max_length} characters.")
    if "\0" in prompt:
        raise BadRequest("The description holds a NUL character.")
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise BadRequest("The description is not valid Unicode.")
    return prompt


def _side(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    # [0-9] first: int() alone would take '٣', '1_000' and ' 5 '.
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= MAX_SIDE:
        raise BadRequest(f"The parameter {name} must be an integer from 1 to {MAX_SIDE}.")
    return int(text)


def _seed(text: str | None) -> int:
    if text is None:
        return DEFAULT_SEED
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise BadRequest("The parameter seed must be an integer of at most 18 digits.")
    return int(text)


def _model(text: str | None) -> str | None:
    if text is not None and not re.fullmatch(r"[A-Za-z0-9._:/@+-]{1,100}", text):
        raise BadRequest("The parameter model must be 1 to 100 of A-Z a-z 0-9 . _ : / @ + -")
    return text
