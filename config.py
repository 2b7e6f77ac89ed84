"""Settings: one frozen value, parsed once from the environment and `.env`.

Invalid settings are all reported together, and the service does not start. Nothing else in the
program reads `os.environ`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit

from settings import parsers as v
from settings import servers
from settings.buckets import ObjectSettings, read_storage
from settings.dotenv import Dotenv, process_environment
from settings.extras import check_extra
from settings.keys import MAX_PER_DAY, KeySettings, read_access_keys
from settings.network import NetworkSettings, read_network
from settings.reader import Reader
from settings.servers import BackendSettings, HostingSettings, LlmSettings, PollinationsSettings

T = TypeVar("T")

# Threads of each worker that only serve cached pictures, /status and refusals, so that a cache
# hit never waits for a drawing.
THREADS_KEPT_FREE = 16
TEN_YEARS = 315_360_000
PICTURE_FORMATS = ("original", "webp", "jpeg", "png")

# Each can also be read from a file: NAME_FILE.
SECRETS = (
    "PROXY_ACCESS_KEY",
    "ACCESS_KEYS",
    "ADMIN_TOKEN",
    "AUTH_TOKEN",
    "TOKEN_MAP",
    "IMAGE_HOSTING_KEY",
    "IMAGE_HOSTING_AUTH_CODE",
    "LLM_OPTIMIZATION_TOKEN",
    "POLLINATIONS_TOKEN",
    "SIGNING_KEY",
    "BACKEND_PROXIES",
    "DATABASE_URL",
    "S3_ACCESS_KEY_ID",
    "S3_SECRET_ACCESS_KEY",
)

MIN_SECRET_LENGTH = 16


class SettingsError(Exception):
    """The settings are invalid. `faults` holds a sentence for each fault, variable first.

    `settings` has the default in place of each faulty one, if the others could be read.
    """

    def __init__(self, faults: list[str], settings: Settings | None = None) -> None:
        self.faults = faults
        self.settings = settings
        super().__init__("Invalid settings:" + "".join(f"\n  {fault}" for fault in faults))


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # unlike cpu_count it knows a container's limit
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _setting(
    parse: Callable[[str], T], default: T, *, is_secret: bool = False, extra: str | None = None
) -> T:
    """Declare a field of Settings whose variable is its name in capitals.

    `extra` is what has to be installed where the value is not the default.
    """

    def checked(text: str) -> T:
        value = parse(text)
        if extra and value != default:
            check_extra(extra)
        return value

    declared: Any = field(default=default, repr=not is_secret, metadata={"parse": checked})
    return declared  # type: ignore[no-any-return] # a Field, as dataclasses want it


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be configured. Times are seconds, sizes bytes."""

    backends: tuple[BackendSettings, ...]
    models: tuple[str, ...]  # those that clients are offered; others are drawn too
    blocked_retry_attempts: int = _setting(v.integer(0, 100), 2)

    access_key: str | None = field(repr=False)  # PROXY_ACCESS_KEY
    access_keys: tuple[KeySettings, ...] = ()
    drawings_per_day: int | None = _setting(v.integer(0, MAX_PER_DAY), None)
    admin_token: str | None = _setting(str, None, is_secret=True)
    signing_keys: tuple[str, ...] = field(repr=False)  # SIGNING_KEY
    public_url: str | None = _setting(v.url_without_query, None)
    error_images: bool = _setting(v.boolean, True)

    host: str = _setting(v.host, "127.0.0.1")
    port: int = _setting(v.integer(1, 65535), 8080)
    workers: int = _setting(v.integer(1, 256), _usable_cores())
    threads: int = _setting(v.integer(THREADS_KEPT_FREE + 1, 4096), 512)
    drawings: int = _setting(v.integer(1, 1024), 64)
    log_level: str = _setting(v.one_of("DEBUG", "INFO", "WARNING", "ERROR"), "INFO")

    cache_dir: Path
    cache_max_bytes: int = _setting(v.integer(0, 10**18 - 1), 10 * 2**30)
    cache_control: str = _setting(v.header_value, "public, max-age=31536000, immutable")
    blocked_ttl: float = _setting(v.seconds(0, TEN_YEARS), 86400.0)
    nginx_cache_seconds: int = _setting(v.integer(0, 31536000), 10)
    database_url: str | None = _setting(v.database_url, None, is_secret=True, extra="cluster")
    storage: ObjectSettings | None  # STORAGE_URL, S3_…

    picture_format: str = _setting(v.one_of(*PICTURE_FORMATS), "original", extra="formats")
    picture_quality: int = _setting(v.integer(1, 100), 90)
    picture_max_bytes: int | None = _setting(v.integer(1000, 2**31), None, extra="formats")
    metrics: bool = _setting(v.boolean, False, extra="metrics")

    backend_timeout: float = _setting(v.seconds(0.1), 120.0)
    llm_timeout: float = _setting(v.seconds(0.1), 30.0)
    upload_timeout: float = _setting(v.seconds(0.1), 30.0)
    answer_within: float | None = _setting(v.seconds(0.1), None)
    generation_deadline: float = _setting(v.seconds(0.1), 180.0)
    max_image_bytes: int = _setting(v.integer(1, 2**31), 32 * 2**20)
    max_prompt_length: int = _setting(v.integer(1, 1_000_000), 4000)

    llm: LlmSettings | None
    hosting: HostingSettings | None
    pollinations: PollinationsSettings | None
    network: NetworkSettings
    dotenv_warnings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def fingerprint(self) -> str:
        """A digest of the settings under which a failure or a refusal is remembered.

        With other backends, tokens or rewriting the picture may be drawn, and is tried at once.
        """
        backends = [
            (b.url, b.token, sorted(b.models.items()), json.dumps(b.params, sort_keys=True))
            for b in self.backends
            if b.weight
        ]
        return hashlib.sha256(repr((backends, self.llm and astuple(self.llm))).encode()).hexdigest()

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence for each probable mistake, variable first."""
        # Vendors' tokens are not among them: some are placeholders.
        own = [("PROXY_ACCESS_KEY", self.access_key), ("ADMIN_TOKEN", self.admin_token)]
        own += [("ACCESS_KEYS", named.key) for named in self.access_keys]
        own += [("SIGNING_KEY", key) for key in self.signing_keys]
        weak = dict.fromkeys(name for name, key in own if key and len(key) < MIN_SECRET_LENGTH)
        found = []
        if weak:
            advice = "make a longer one with `openssl rand -hex 24`"
            found.append(f"{', '.join(weak)}: under {MIN_SECRET_LENGTH} characters; {advice}")
        if self.access_key and not self.signing_keys:
            found.append("SIGNING_KEY: is not set; signed links end when PROXY_ACCESS_KEY changes")
        return (*found, *self.dotenv_warnings)

    @property
    def all_access_keys(self) -> tuple[str, ...]:
        shared = (self.access_key,) if self.access_key else ()
        return (*shared, *(named.key for named in self.access_keys))

    def secrets(self) -> tuple[str, ...]:
        """Return every secret in the settings, longest first, for redaction."""
        held = {*self.all_access_keys, self.admin_token, *self.signing_keys}
        held |= {*self.network.secrets(), *(self.storage.secrets() if self.storage else ())}
        held |= self.hosting.secrets() if self.hosting else set()
        for api in (*self.backends, self.llm, self.pollinations):
            held.add(api.token if api else None)
        for server in (*self.backends, self.llm, self.hosting, self.pollinations):
            held |= _url_secrets(server.url) if server else set()
        held |= _database_secrets(self.database_url) if self.database_url else set()
        return tuple(sorted((secret for secret in held if secret), key=len, reverse=True))


def _url_secrets(url: str) -> set[str | None]:
    """Return a URL's password, or a user without one, as written and decoded."""
    user, _, password = urlsplit(url).netloc.rpartition("@")[0].partition(":")
    return {password or user, unquote(password or user)}


def _database_secrets(url: str) -> set[str | None]:
    """Return the password in a database's URL, as written and decoded. No user is a secret."""
    written = {urlsplit(url).netloc.rpartition("@")[0].partition(":")[2]}
    written |= set(re.findall(r"[?&](?:ssl)?password=([^&]*)", url))
    return {form for password in written for form in (password, unquote(password))}


def parse(values: Mapping[str, str], dotenv: Dotenv | None = None) -> Settings:
    """Parse settings from `values` (variable → text; blank means not set).

    Probable mistakes in `dotenv` become warnings. Raises SettingsError with every fault.
    """
    reader = Reader(values)
    reader.read_secret_files(SECRETS)
    reader.set_default("CACHE_DIR", "./image_file_cache")
    declared: dict[str, Any] = {
        setting.name: reader.get(setting.name.upper(), setting.metadata["parse"], setting.default)
        for setting in fields(Settings)
        if "parse" in setting.metadata
    }
    access_key = reader.get("PROXY_ACCESS_KEY", str, None)
    backends = servers.read_backends(reader)
    settings = Settings(
        backends=backends,
        models=servers.read_models(reader, backends),
        access_key=access_key,
        access_keys=read_access_keys(reader, access_key),
        signing_keys=reader.get("SIGNING_KEY", v.keys, ()),
        cache_dir=reader.get("CACHE_DIR", v.writable_folder, Path()),
        storage=read_storage(reader),
        llm=servers.read_llm(reader),
        hosting=servers.read_hosting(reader),
        pollinations=servers.read_pollinations(reader),
        network=read_network(reader, tuple(backend.url for backend in backends)),
        dotenv_warnings=tuple(dotenv.warnings(reader.names, SECRETS)) if dotenv else (),
        **declared,
    )
    if 0 < settings.cache_max_bytes < settings.max_image_bytes:
        sentence = f"is below MAX_IMAGE_BYTES ({settings.max_image_bytes}); write more, or 0"
        reader.fault("CACHE_MAX_BYTES", f"{settings.cache_max_bytes} {sentence}")
    _check_machines(reader, settings)
    if reader.faults:
        raise SettingsError(reader.faults, settings)
    return settings


def _check_machines(reader: Reader, settings: Settings) -> None:
    """Report settings under which a machine would miss what another has."""
    if settings.storage:
        advice = "STORAGE_URL needs it, so that every machine finds every picture"
        reader.require("DATABASE_URL", f"{advice}: write postgresql://user:password@host/database")
    if settings.database_url and not settings.hosting:
        advice = "DATABASE_URL needs it, so that every machine can read every picture"
        reader.require("STORAGE_URL", f"{advice}: write s3://bucket/prefix")
    if settings.database_url and (settings.cache_dir / "index.sqlite3").exists():
        # Its files would be taken for copies of what is in the bucket, and deleted one day.
        sentence = "holds the index of a single machine; write another folder, and import this one"
        reader.fault(
            "CACHE_DIR", f"{sentence} into it: .venv/bin/python -m commands cache import …"
        )


def load(*, is_flask_command: bool = False) -> Settings:
    """Parse the environment, and `.env` in the current folder for variables it does not set.

    Raises SettingsError with every fault.
    """
    try:
        dotenv = Dotenv.read()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        advice = "write a text file that the service's user may read"
        raise SettingsError([f".env: cannot be read ({reason}); {advice}"]) from None
    environment = process_environment(is_flask_command=is_flask_command)
    values = {**dotenv.values, **environment}
    for name in SECRETS:
        # A secret in the environment, in either form, overrides both forms in the file.
        forms = {name, f"{name}_FILE"}
        for form in forms - environment.keys() if forms & environment.keys() else ():
            values.pop(form, None)
    return parse(values, dotenv)


class RedactingFormatter(logging.Formatter):
    """Formats log records, tracebacks included, without the settings' secrets or a URL's."""

    def __init__(self, settings: Settings, fmt: str | None = None, datefmt: str | None = None):
        super().__init__(fmt, datefmt)
        # Replacing a shorter one would garble every line, and it protects nothing.
        self.secrets = [secret for secret in settings.secrets() if len(secret) >= 6]

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        for secret in self.secrets:
            text = text.replace(secret, "***").replace(quote(secret, safe=""), "***")
        return re.sub(r"([?&](?:key|sig|authCode)=)[^&\s'\"]*", r"\1***", text)
