"""Settings: one frozen value, parsed once from the environment and `.env`, all faults at once.

Nothing else in the program reads `os.environ`. `load()` is what starts the service;
`parse()` is the same without the file system's `.env`, for tests and tools.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from dotenv import dotenv_values

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent
PLACEHOLDER = "{ORIGINAL_PROMPT}"
# A picture already in the cache must never wait for one that is being drawn: this many threads
# of every worker serve nothing but hits, /status and refusals.
THREADS_KEPT_FREE = 16
MAX_WEIGHT = 1_000_000
TEN_YEARS = 315_360_000

SECRETS = (
    "PROXY_ACCESS_KEY",
    "ADMIN_TOKEN",
    "AUTH_TOKEN",
    "TOKEN_MAP",
    "IMAGE_HOSTING_KEY",
    "IMAGE_HOSTING_AUTH_CODE",
    "LLM_OPTIMIZATION_TOKEN",
    "POLLINATIONS_TOKEN",
    "SIGNING_KEY",
)

HOSTING_PROVIDERS = ("smms", "picgo", "cloudflare_imgbed")
SEE_UPLOAD_URL = "https://s.ee/api/v1/file/upload"
POLLINATIONS_URL = "https://gen.pollinations.ai/image"
POLLINATIONS_LEGACY_URL = "https://image.pollinations.ai/prompt"


class SettingsError(Exception):
    """The settings cannot be used. `faults` holds a sentence for each, variable first."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        lines = "".join(f"\n  {fault}" for fault in faults)
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__(f"Prompt Image Proxy cannot start: {count} in its settings.{lines}")


@dataclass(frozen=True, slots=True)
class BackendSettings:
    """One OpenAI-compatible image backend; weight 0 drains it."""

    # No URL of ours is in a repr: a password, or a key in the query, may be part of it.
    url: str = field(repr=False)
    weight: float = 1.0
    token: str | None = field(default=None, repr=False)
    models: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LlmSettings:
    """The chat-completions API, and a template for each use that is switched on."""

    url: str = field(repr=False)
    model: str
    token: str | None = field(repr=False)
    optimize_template: str | None
    safety_template: str | None
    safety_attempts: int


@dataclass(frozen=True, slots=True)
class HostingSettings:
    """An image host: `provider` is one of HOSTING_PROVIDERS, `url` where it takes uploads."""

    provider: str
    url: str = field(repr=False)
    key: str | None = field(repr=False)
    auth_code: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class PollinationsSettings:
    """`url` is what `/{prompt}` is appended to."""

    url: str = field(repr=False)
    token: str | None = field(repr=False)
    model: str | None


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be configured. Times are seconds, sizes bytes."""

    backends: tuple[BackendSettings, ...]
    access_key: str = field(repr=False)
    admin_token: str | None = field(repr=False)
    blocked_retry_attempts: int
    host: str
    port: int
    workers: int
    threads: int
    cache_dir: Path
    cache_max_bytes: int
    cache_control: str
    blocked_ttl: float
    nginx_cache_seconds: int
    backend_timeout: float
    llm_timeout: float
    upload_timeout: float
    generation_deadline: float
    max_image_bytes: int
    max_prompt_length: int
    llm: LlmSettings | None
    hosting: HostingSettings | None
    pollinations: PollinationsSettings | None
    signing_keys: tuple[str, ...] = field(repr=False)
    public_url: str | None
    error_images: bool
    log_level: str

    def secrets(self) -> tuple[str, ...]:
        """Return every secret there is, longest first, for the log to leave out."""
        held = {
            self.access_key,
            self.admin_token,
            *self.signing_keys,
            *(b.token for b in self.backends),
        }
        if self.hosting:
            held |= {self.hosting.key, self.hosting.auth_code}
        for api in (self.llm, self.pollinations):
            held.add(api.token if api else None)
        for server in (*self.backends, self.llm, self.hosting, self.pollinations):
            held |= _url_secrets(server.url) if server else set()
        return tuple(sorted((secret for secret in held if secret), key=len, reverse=True))


def _url_secrets(url: str) -> set[str | None]:
    """Return the password of a URL, or the user who stands alone, as written and decoded."""
    user, _, password = urlsplit(url).netloc.rpartition("@")[0].partition(":")
    return {password or user, unquote(password or user)}


# --- parsers: text in, value out, ValueError with what is wrong and what to write ---------------


def integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # int() alone would take '１２', '1_000' and ' 5 '.
        if not re.fullmatch(r"-?[0-9]{1,18}", text) or not low <= int(text) <= high:
            raise ValueError(f"{text!r} is not usable; write an integer from {low} to {high}")
        return int(text)

    return parse


def seconds(low: float, high: int = 86400) -> Callable[[str], float]:
    # No more than a day for a time-out: above 24 days a socket raises OverflowError.
    def parse(text: str) -> float:
        is_number = re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text)
        if not is_number or not low <= float(text) <= high:
            raise ValueError(f"{text!r} is not usable; write seconds, from {low:g} to {high}")
        return float(text)

    return parse


def boolean(text: str) -> bool:
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise ValueError(f"{text!r} is neither true nor false; write true or false")


def one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        for choice in choices:
            if text.lower() == choice.lower():
                return choice
        raise ValueError(f"{text!r} is not known; write one of {', '.join(choices)}")

    return parse


def address(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:%-]+", text):
        raise ValueError(f"{text!r} is not an address; write one such as 0.0.0.0 or ::")
    return text


def header_value(text: str) -> str:
    if not text.isascii() or not text.isprintable():
        raise ValueError("holds what no HTTP header can carry; write printable ASCII only")
    return text


def base_url(text: str) -> str:
    """Return the URL without a trailing slash in its path; the query stays (Azure has one)."""
    try:
        parts = urlsplit(text)
        port_is_usable = parts.port is None or parts.port > 0
    except ValueError:
        raise ValueError(f"{_start_of(text)!r} … is not a URL; write https://host/path") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_usable:
        raise ValueError(
            f"{_start_of(text)!r} … has no http:// or https:// and host; write https://host/path"
        )
    if re.search(r"[\s\x00-\x1f\x7f]", text):
        raise ValueError(f"{_start_of(text)!r} … holds white space; write https://host/path")
    return parts._replace(path=parts.path.rstrip("/"), fragment="").geturl()


def base_urls(text: str) -> tuple[str, ...]:
    urls = tuple(dict.fromkeys(base_url(part.strip()) for part in text.split(",") if part.strip()))
    if not urls:
        raise ValueError("names no backend; write one or more URLs with commas between them")
    return urls


def signing_keys(text: str) -> tuple[str, ...]:
    keys = tuple(key.strip() for key in text.split(","))
    if not all(keys):
        raise ValueError("holds an empty key; write one or more with commas between them")
    return keys


def json_object(text: str) -> dict[str, Any]:
    # The text may hold tokens: the sentence says where it breaks, never what stands there.
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f" at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f'is not JSON{where}; write {{"https://backend/v1": …}}') from None
    if not isinstance(value, dict):
        raise ValueError('is JSON but not an object; write {"https://backend/v1": …}')
    return value


def printable_url(url: str) -> str:
    """Return the URL without what may be secret in it: user, password, query and fragment."""
    return re.sub(r"//[^/?#]*@", "//", re.split(r"[?#]", url, maxsplit=1)[0])


def _start_of(text: str) -> str:
    """Return scheme and host of what should be a URL: a password may be anywhere else in it."""
    scheme, separator, rest = text.rpartition("://")
    return scheme + separator + re.split(r"[/:?#\s]", rest.rpartition("@")[2], maxsplit=1)[0]


def _weight(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"is not a number; write a number from 0 to {MAX_WEIGHT}")
    if not 0 <= value <= MAX_WEIGHT:  # NaN fails too
        raise ValueError(f"{value} is not usable; write a number from 0 to {MAX_WEIGHT}")
    return float(value)


def _token(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("is not a token; write a text in quotes")
    return header_value(value.strip())


def _models(value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value.values()):
        raise ValueError('is not a map of models; write {"model": "mapped model"}')
    return value


# --- the reader: one variable after another, every fault kept -----------------------------------


# What gunicorn.conf.py found when the service started, or at its last good reload. Workers are
# forked after that, and build the app from it.
in_service: Settings | None = None


class _Reader:
    def __init__(self, values: Mapping[str, str]) -> None:
        self.values = dict(values)
        self.faults: list[str] = []

    def fault(self, name: str, sentence: str | Exception) -> None:
        self.faults.append(f"{name}: {sentence}")

    def is_set(self, name: str) -> bool:
        return bool(self.values.get(name, "").strip())

    def get(self, name: str, parse: Callable[[str], T], default: T) -> T:
        if not self.is_set(name):
            return default
        try:
            return parse(self.values[name].strip())
        except ValueError as error:
            self.fault(name, error)
            return default

    def required(self, name: str, parse: Callable[[str], T], default: T, why: str) -> T:
        # A secret that should come from a file has its fault there.
        is_in_file = name in SECRETS and self.is_set(f"{name}_FILE")
        if not self.is_set(name) and not is_in_file:
            self.fault(name, f"is not set; {why}")
        return self.get(name, parse, default)

    def per_backend(
        self, name: str, urls: tuple[str, ...], parse: Callable[[Any], T]
    ) -> dict[str, T]:
        """Read a JSON map whose keys are the backends' URLs, a trailing slash more or less."""
        found: dict[str, T] = {}
        written: dict[str, Any] = {}
        for key, value in self.get(name, json_object, written).items():
            try:
                url = base_url(key.strip())
            except ValueError:
                # Not shown: whoever turns the map round has written a token there.
                self.fault(name, 'has a key that is no URL; write {"https://backend/v1": …}')
                continue
            try:
                if urls and url not in urls:
                    raise ValueError("is not a backend; write a URL that BACKEND_API_URLS holds")
                found[url] = parse(value)
            except ValueError as error:
                self.fault(name, f"{printable_url(url)!r}: {error}")
        return found

    def read_secret_files(self) -> None:
        """Replace each `NAME_FILE` of a secret by what its file holds."""
        for name in SECRETS:
            if not self.is_set(f"{name}_FILE"):
                continue
            if self.is_set(name):
                self.fault(f"{name}_FILE", f"{name} is set too; write one of the two")
                continue
            text = self.text_file(f"{name}_FILE")
            if text is not None and not text.strip():
                self.fault(f"{name}_FILE", "names an empty file; put the secret into it")
            self.values[name] = text or ""

    def text_file(self, name: str) -> str | None:
        """Return what the file holds that the variable names, or None after a fault."""
        try:
            # -sig: editors on Windows begin a file with a mark that would be part of the secret.
            return Path(self.values[name].strip()).read_text("utf-8-sig")
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not a text in UTF-8"
            self.fault(name, f"cannot be read ({why}); write the path of a text file")
            return None

    def template(self, prefix: str, default_file: str) -> str:
        """Read a prompt template: from a file, else inline, else our own."""
        name = f"{prefix}_TEMPLATE"
        text: str | None
        if self.is_set(f"{name}_FILE"):
            name = f"{name}_FILE"
            text = self.text_file(name)
            if text is None:
                return PLACEHOLDER
        elif self.is_set(name):
            text = self.values[name].replace("\\n", "\n")
        else:
            text = (ROOT / "prompts" / default_file).read_text("utf-8")
        if PLACEHOLDER not in text:
            self.fault(name, f"has no {PLACEHOLDER}; write it where the prompt belongs")
        return text


def parse(values: Mapping[str, str]) -> Settings:
    """Parse settings from `values` (variable → text; blank means not set).

    Raises SettingsError with every fault found.
    """
    reader = _Reader(values)
    reader.read_secret_files()
    get = reader.get
    settings = Settings(
        backends=_read_backends(reader),
        access_key=reader.required(
            "PROXY_ACCESS_KEY", str, "", "write a long random text, which clients send as ?key="
        ),
        admin_token=get("ADMIN_TOKEN", str, None),
        blocked_retry_attempts=get("BLOCKED_RETRY_ATTEMPTS", integer(0, 100), 2),
        host=get("HOST", address, "127.0.0.1"),
        port=get("PORT", integer(1, 65535), 8080),
        workers=get("WORKERS", integer(1, 256), len(os.sched_getaffinity(0))),
        threads=get("THREADS", integer(THREADS_KEPT_FREE + 1, 4096), 128),
        cache_dir=_read_cache_dir(reader),
        cache_max_bytes=get("CACHE_MAX_BYTES", integer(0, 10**18 - 1), 10 * 2**30),
        cache_control=get("CACHE_CONTROL", header_value, "public, max-age=31536000, immutable"),
        blocked_ttl=get("BLOCKED_TTL", seconds(0, TEN_YEARS), 86400.0),
        nginx_cache_seconds=get("NGINX_CACHE_SECONDS", integer(0, 31536000), 10),
        backend_timeout=get("BACKEND_TIMEOUT", seconds(0.1), 120.0),
        llm_timeout=get("LLM_TIMEOUT", seconds(0.1), 30.0),
        upload_timeout=get("UPLOAD_TIMEOUT", seconds(0.1), 30.0),
        generation_deadline=get("GENERATION_DEADLINE", seconds(0.1), 180.0),
        max_image_bytes=get("MAX_IMAGE_BYTES", integer(1, 2**31), 32 * 2**20),
        max_prompt_length=get("MAX_PROMPT_LENGTH", integer(1, 1_000_000), 4000),
        llm=_read_llm(reader),
        hosting=_read_hosting(reader),
        pollinations=_read_pollinations(reader),
        signing_keys=get("SIGNING_KEY", signing_keys, ()),
        public_url=get("PUBLIC_URL", base_url, None),
        error_images=get("ERROR_IMAGES", boolean, True),
        log_level=get("LOG_LEVEL", one_of("DEBUG", "INFO", "WARNING", "ERROR"), "INFO"),
    )
    if reader.faults:
        raise SettingsError(reader.faults)
    return settings


def load() -> Settings:
    """Parse the process's environment and, for what that does not set, `.env` in its folder.

    Raises SettingsError with every fault found.
    """
    try:
        found = dotenv_values(".env", interpolate=False)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not a text in UTF-8"
        raise SettingsError([f".env: cannot be read ({why}); write a text file"]) from None
    in_file = {name: value or "" for name, value in found.items()}
    for name in SECRETS:
        # What the environment says of a secret, in either form, replaces both forms of the file.
        if name in os.environ or f"{name}_FILE" in os.environ:
            in_file.pop(name, None)
            in_file.pop(f"{name}_FILE", None)
    return parse({**in_file, **os.environ})


def _read_backends(reader: _Reader) -> tuple[BackendSettings, ...]:
    none: tuple[str, ...] = ()
    urls = reader.required(
        "BACKEND_API_URLS", base_urls, none, "write one or more URLs with commas between them"
    )
    weights = reader.per_backend("BACKEND_WEIGHTS", urls, _weight)
    tokens = reader.per_backend("TOKEN_MAP", urls, _token)
    models = reader.per_backend("MODEL_MAP", urls, _models)
    token = reader.get("AUTH_TOKEN", header_value, None)
    backends = tuple(
        BackendSettings(url, weights.get(url, 1.0), tokens.get(url, token), models.get(url, {}))
        for url in urls
    )
    if backends and not any(backend.weight for backend in backends):
        reader.fault("BACKEND_WEIGHTS", "drains every backend; leave one above 0")
    return backends


def _read_cache_dir(reader: _Reader) -> Path:
    path = reader.get("CACHE_DIR", Path, Path("./image_file_cache"))
    try:
        # The folder itself, or what it will be made in.
        nearest = next(place for place in (path, *path.absolute().parents) if place.exists())
        if not nearest.is_dir():
            reader.fault("CACHE_DIR", f"{str(nearest)!r} is not a folder; write the path of one")
        elif not os.access(nearest, os.W_OK | os.X_OK, effective_ids=True):
            fault = f"{str(nearest)!r} is not ours to write to; write the path of a folder that is"
            reader.fault("CACHE_DIR", fault)
    except OSError as error:
        reader.fault("CACHE_DIR", f"cannot be used ({error.strerror}); write the path of a folder")
    return path.absolute()


def _read_llm(reader: _Reader) -> LlmSettings | None:
    optimizes = reader.get("LLM_OPTIMIZATION_ENABLED", boolean, False)
    makes_safe = reader.get("DE_NSFW_ENABLED", boolean, False)
    attempts = reader.get("DE_NSFW_MAX_ATTEMPTS", integer(1, 20), 2)
    token = reader.get("LLM_OPTIMIZATION_TOKEN", header_value, None)
    model = reader.get("LLM_OPTIMIZATION_MODEL", str, "gpt-4.1-mini")
    if not optimizes and not makes_safe:
        reader.get("LLM_OPTIMIZATION_API_URL", base_url, "")
        return None
    switch = "LLM_OPTIMIZATION_ENABLED" if optimizes else "DE_NSFW_ENABLED"
    return LlmSettings(
        url=reader.required(
            "LLM_OPTIMIZATION_API_URL", base_url, "", f"{switch} needs it: write https://host/v1"
        ),
        model=model,
        token=token,
        optimize_template=(
            reader.template("LLM_OPTIMIZATION", "optimize.txt") if optimizes else None
        ),
        safety_template=reader.template("DE_NSFW", "safety.txt") if makes_safe else None,
        safety_attempts=attempts,
    )


def _read_hosting(reader: _Reader) -> HostingSettings | None:
    enabled = reader.get("IMAGE_HOSTING_ENABLED", boolean, False)
    provider = reader.get("IMAGE_HOSTING_PROVIDER", one_of(*HOSTING_PROVIDERS), "")
    key = reader.get("IMAGE_HOSTING_KEY", header_value, None)
    code = reader.get("IMAGE_HOSTING_AUTH_CODE", str, None)
    url = reader.get("IMAGE_HOSTING_URL", base_url, SEE_UPLOAD_URL if provider == "smms" else "")
    if not enabled:
        return None
    if not reader.is_set("IMAGE_HOSTING_PROVIDER"):
        choices = ", ".join(HOSTING_PROVIDERS)
        reader.fault("IMAGE_HOSTING_PROVIDER", f"is not set; write one of {choices}")
    if provider in ("smms", "picgo") and not key:
        reader.required("IMAGE_HOSTING_KEY", str, "", f"{provider} needs it: write its API key")
    if provider in ("picgo", "cloudflare_imgbed") and not url:
        reader.required("IMAGE_HOSTING_URL", str, "", f"{provider} needs it: write https://host")
    return HostingSettings(provider, url, key, code)


def _read_pollinations(reader: _Reader) -> PollinationsSettings | None:
    enabled = reader.get("POLLINATIONS_ENABLED", boolean, True)
    token = reader.get("POLLINATIONS_TOKEN", header_value, None)
    model = reader.get("POLLINATIONS_MODEL", str, None)
    default = POLLINATIONS_URL if token else POLLINATIONS_LEGACY_URL
    url = reader.get("POLLINATIONS_URL", base_url, default)
    return PollinationsSettings(url, token, model) if enabled else None


class RedactingFormatter(logging.Formatter):
    """Formats log records, tracebacks too, without any secret of the settings or of a URL."""

    def __init__(self, settings: Settings, fmt: str | None = None, datefmt: str | None = None):
        super().__init__(fmt, datefmt)
        # A shorter one would garble every line, and is no secret anyway.
        self.secrets = [secret for secret in settings.secrets() if len(secret) >= 6]

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        for secret in self.secrets:
            text = text.replace(secret, "***").replace(quote(secret, safe=""), "***")
        return re.sub(r"([?&](?:key|sig|authCode)=)[^&\s'\"]*", r"\1***", text)
