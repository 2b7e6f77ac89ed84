"""Settings: one frozen value, parsed once from the environment and `.env`.

Invalid settings are all reported together, and the service does not start.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

from settings import servers
from settings.dotenv import Dotenv
from settings.maps import SHARED_NAME
from settings.parsers import check_folder, text_file, url_host
from settings.proxies import NetworkSettings
from settings.redaction import printable, secrets_in
from settings.setting import Reader
from settings.table import ROWS, Table

MIN_SECRET_LENGTH = 16
# As the documents print them.
_EXAMPLE = re.compile("long.random.string", re.IGNORECASE)


class SettingsError(Exception):
    """The settings are invalid. `faults` holds a sentence for each fault, variable first.

    `settings` has the default in place of each faulty one, if the others could be read.
    """

    def __init__(self, faults: list[str], settings: Settings | None = None) -> None:
        self.faults = faults
        self.settings = settings
        super().__init__("Invalid settings:" + "".join(f"\n  {fault}" for fault in faults))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(Table):
    """The table, and what the parts of the program are built from."""

    backends: tuple[servers.BackendSettings, ...]
    llm: servers.LlmSettings | None
    hosting: servers.HostingSettings | None
    pollinations: servers.PollinationsSettings | None
    network: NetworkSettings
    storage: servers.ObjectSettings | None
    dotenv_warnings: tuple[str, ...] = field(default=(), compare=False)

    @property
    def address(self) -> str:
        """Where the service listens, `host:port`."""
        return f"{url_host(self.host)}:{self.port}"

    @property
    def fingerprint(self) -> str:
        """A digest of the settings under which a failure or a refusal is remembered.

        With other backends, tokens, proxies or rewriting the picture may be drawn, and is tried at
        once.
        """
        # How often they are asked changes nothing.
        alike = (replace(one, weight=1.0, concurrency=None) for one in self.backends if one.weight)
        backends = list(map(astuple, alike))
        parts = (backends, self.llm and astuple(self.llm), astuple(self.network))
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence for each probable mistake, variable first."""
        own = self._own_secrets()
        weak = dict.fromkeys(name for name, key in own if len(key) < MIN_SECRET_LENGTH)
        found = []
        if weak:
            advice = "make a longer one with `openssl rand -hex 24`"
            found.append(f"{', '.join(weak)}: under {MIN_SECRET_LENGTH} characters; {advice}")
        if self.access_key and not self.signing_keys:
            found.append("SIGNING_KEY: is not set; signed links end when PROXY_ACCESS_KEY changes")
        return (*found, *self.dotenv_warnings)

    def _own_secrets(self) -> Iterator[tuple[str, str]]:
        """Yield names and values. Vendors' tokens are not among them: some are placeholders."""
        single = [("PROXY_ACCESS_KEY", self.access_key), ("ADMIN_TOKEN", self.admin_token)]
        yield from ((name, value) for name, value in single if value)
        yield from (("ACCESS_KEYS", named.key) for named in self.access_keys)
        yield from (("SIGNING_KEY", key) for key in self.signing_keys)

    @property
    def all_access_keys(self) -> tuple[str, ...]:
        shared = (self.access_key,) if self.access_key else ()
        return (*shared, *(named.key for named in self.access_keys))

    def secrets(self) -> tuple[str, ...]:
        """Return every secret in the settings, longest first, for redaction."""
        held = {
            secret
            for row in ROWS
            for secret in secrets_in(getattr(self, row.field), is_secret=row.is_secret)
        }
        return tuple(sorted(held, key=len, reverse=True))


def parse(variables: Mapping[str, str], dotenv: Dotenv | None = None) -> Settings:
    """Parse settings from `variables`; blank means not set.

    Probable mistakes in `dotenv` become warnings. Raises SettingsError with every fault.
    """
    reader = Reader(ROWS, variables)
    table = Table(**reader.values)
    mapped = dict.fromkeys(name for models in table.model_map.values() for name in models)
    settings = Settings(
        **reader.values | {"models": table.models or tuple(mapped)},
        backends=servers.make_backends(table, reader),
        llm=servers.make_llm(table, reader),
        hosting=servers.make_hosting(table, reader),
        pollinations=servers.make_pollinations(table),
        network=servers.make_network(table, reader),
        storage=servers.make_objects("STORAGE_URL", table.storage_url, table, reader),
        dotenv_warnings=tuple(dotenv.warnings()) if dotenv else (),
    )
    _check(settings, reader)
    if reader.faults:
        # A line of .env, or its absence, may explain why a setting is missing or wrong.
        faults = [*reader.faults, *settings.dotenv_warnings]
        if dotenv and "BACKEND_API_URLS" not in variables and not Path(".env").exists():
            faults.append(f".env: is not in {printable(str(Path.cwd()))}; copy .env.example to it")
        raise SettingsError(faults, settings)
    return settings


def load() -> Settings:
    """Parse the environment, and `.env` in the current folder for variables it does not set.

    Raises SettingsError with every fault.
    """
    try:
        dotenv = Dotenv(text_file(".env") if Path(".env").exists() else "")
    except ValueError as error:
        raise SettingsError([f".env: {error}"]) from None
    return parse(dotenv.under_environment(), dotenv)


def _check(settings: Settings, reader: Reader) -> None:
    """Report settings that do not go together."""
    has_faulty_keys = any(fault.startswith("ACCESS_KEYS") for fault in reader.faults)
    if not settings.access_keys and not has_faulty_keys:
        advice = "write a long random string, which clients send as ?key="
        reader.require("PROXY_ACCESS_KEY", advice)
    names = {settings.access_key: SHARED_NAME}
    for own in settings.access_keys:
        if (first := names.setdefault(own.key, own.name)) != own.name:
            sentence = f"{own.name!r} has the same key as {first!r}; give each its own"
            reader.fault("ACCESS_KEYS", sentence)
    for name in dict.fromkeys(n for n, key in settings._own_secrets() if _EXAMPLE.search(key)):
        advice = "make one of your own with `openssl rand -hex 24`"
        reader.fault(name, f"is the example of the documents, which everybody knows; {advice}")
    if 0 < settings.cache_max_bytes < settings.max_image_bytes:
        sentence = f"is below MAX_IMAGE_BYTES ({settings.max_image_bytes}); write more, or 0"
        reader.fault("CACHE_MAX_BYTES", f"{settings.cache_max_bytes} {sentence}")
    _check_folder(settings, reader)
    _check_machines(settings, reader)


def _check_folder(settings: Settings, reader: Reader) -> None:
    try:
        check_folder(settings.cache_dir)
    except ValueError as error:
        reader.fault("CACHE_DIR", error)
        return
    if settings.database_url and (settings.cache_dir / "index.sqlite3").exists():
        # Its files would be taken for copies of what is in the bucket, and deleted one day.
        sentence = "holds the index of a single machine; write another folder, and import this one"
        command = ".venv/bin/python -m commands cache import …"
        reader.fault("CACHE_DIR", f"{sentence} into it: {command}")


def _check_machines(settings: Settings, reader: Reader) -> None:
    """Report settings under which a machine would miss what another has."""
    if settings.storage:
        advice = "STORAGE_URL needs it, so that every machine finds every picture"
        reader.require("DATABASE_URL", f"{advice}: write postgresql://user:password@host/database")
    if settings.database_url and not settings.hosting:
        advice = "DATABASE_URL needs it, so that every machine can read every picture"
        reader.require("STORAGE_URL", f"{advice}: write s3://bucket/prefix")
