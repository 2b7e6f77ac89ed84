"""GET /status: the state of backends, cache and options, and why each failed; no secrets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from backends import Backends
from cache import Cache
from config import Settings
from dialect.learning import Learned
from drawing.backend import Backend
from drawing.cooldowns import Cooldown, LastError
from drawing.fallback import Pollinations
from drawing.storing import HOST_KEY
from llm import Llm
from settings.parsers import printable_url
from settings.redaction import redacted
from storage import Recalled, Totals, Unavailable

# Of a vendor's error.
MAX_TEXT = 300


@dataclass
class Notes:
    """What the state knows of servers and models, by their keys."""

    cooldowns: dict[str, Cooldown] = field(default_factory=dict)
    learned: dict[str, Recalled[Learned]] = field(default_factory=dict)
    errors: dict[str, Recalled[LastError]] = field(default_factory=dict)

    def cooldown(self, key: str) -> Cooldown:
        return self.cooldowns.get(key, Cooldown())


class Status:
    """Describes the service from its settings and the notes that all workers share."""

    def __init__(
        self,
        version: str,
        settings: Settings,
        cache: Cache,
        backends: Backends,
        llm: Llm | None,
        fallback: Pollinations | None,
    ) -> None:
        self.version = version
        self.settings = settings
        self.cache = cache
        self.backends = backends
        self.llm = llm
        self.fallback = fallback
        self.secrets = settings.secrets()

    def describe(self, *, for_admin: bool = False) -> dict[str, Any]:
        """Return the whole answer, in a handful of calls of the state.

        The administrator also sees each server's last error, in its own words.
        """
        state, fault = self.cache.state, None
        notes, totals, drew = Notes(), None, dict[str, float]()
        try:
            notes, totals = self._recall(for_admin=for_admin), state.totals()
            drew = state.last_drawn([backend.name for backend in self.backends.all])
        except Unavailable as error:
            fault = str(error)
        # While the image host takes the pictures, it does not matter whether the store could.
        is_hosted = bool(self.settings.hosting) and not notes.cooldown(HOST_KEY).seconds
        fault = fault or self.cache.fault(is_hosted=is_hosted)
        backends = [self._backend(b, notes, drew.get(b.name)) for b in self.backends.all]
        is_ready = any(backend["state"] == "ready" for backend in backends)
        return {
            "status": "ok" if is_ready and not fault else "degraded",
            "version": self.version,
            "backends": backends,
            "cache": self._cache(totals, fault),
            **self._options(notes),
        }

    def _cache(self, totals: Totals | None, fault: str | None) -> dict[str, Any]:
        return {
            "mode": self._mode(),
            "entries": totals.entries if totals else None,
            "bytes": totals.bytes if totals else None,
            "max_bytes": self.cache.max_bytes,
            "fault": fault,
        }

    def _mode(self) -> str:
        """Return where new pictures are stored."""
        if self.settings.hosting:
            return "hosted"
        return "objects" if self.settings.storage else "file"

    def _options(self, notes: Notes) -> dict[str, Any]:
        """Return the stages that can be switched off."""
        llm, hosting = self.settings.llm, self.settings.hosting
        fallback, own = self.settings.pollinations, self.fallback
        return {
            "administration": {"enabled": self.settings.admin_token is not None},
            "image_hosting": {
                "enabled": hosting is not None,
                "provider": hosting.provider if hosting else None,
                **self._failures(HOST_KEY, notes),
            },
            "llm_optimization": {
                "enabled": bool(llm and llm.optimize_template),
                "model": llm.model if llm else None,
                **(self._failures(self.llm.outages.key, notes) if self.llm else {}),
            },
            "de_nsfw": {
                "enabled": bool(llm and llm.safety_template),
                "max_attempts": llm.safety_attempts if llm else 0,
            },
            "fallback": {
                "enabled": fallback is not None,
                "url": printable_url(fallback.url) if fallback else None,
                "model": fallback.model if fallback else None,
                **(_readiness(own.outages.key, notes) if own else {}),
                **(self._failures(own.outages.key, notes) if own else {}),
            },
        }

    def _recall(self, *, for_admin: bool) -> Notes:
        state = self.cache.state
        servers = [HOST_KEY, *(one.outages.key for one in (self.llm, self.fallback) if one)]
        servers += [backend.endpoint.outage_key() for backend in self.backends.all]
        models = [(one.endpoint, name) for one in self.backends.all for name in _models(one)]
        outages = [*servers, *(endpoint.outage_key(name) for endpoint, name in models)]
        return Notes(
            Cooldown.recall_all(state, outages),
            state.recall_all(Learned, [endpoint.note_key(name) for endpoint, name in models]),
            state.recall_all(LastError, servers if for_admin else ()),
        )

    def _backend(self, backend: Backend, notes: Notes, drew: float | None) -> dict[str, Any]:
        key = backend.endpoint.outage_key()
        found = {"url": backend.name, "weight": backend.weight} | _readiness(key, notes)
        found |= {} if backend.weight else {"state": "drained"}
        found |= {"last_drew": None if drew is None else _iso(drew)} | self._failures(key, notes)
        models = {name or "": _model(backend, name, notes) for name in _models(backend)}
        known = {model: about for model, about in models.items() if about}
        return found | ({"models": known} if known else {})

    def _failures(self, key: str, notes: Notes) -> dict[str, Any]:
        return _last_failure(key, notes) | self._last_error(key, notes)

    def _last_error(self, key: str, notes: Notes) -> dict[str, Any]:
        """Return the last error of a server in its own words, if it was asked for."""
        found = notes.errors.get(key)
        if found is None:
            return {}
        error = found.note
        said = {"at": _iso(error.at), "why": error.why, "model": error.model}
        return {"last_error": said | {"text": vendor_words(error.text, self.secrets)}}


def vendor_words(text: str, secrets: Iterable[str]) -> str:
    """Return what a server said, for the administrator: short, printable, without secrets."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return redacted(printable, secrets)[:MAX_TEXT]


def _models(backend: Backend) -> Iterable[str | None]:
    """Return None for a backend's default model, and the names of those it maps."""
    return (None, *dict.fromkeys(backend.settings.models.values()))


def _model(backend: Backend, name: str | None, notes: Notes) -> dict[str, Any]:
    """Describe a model that is cooling down or of which something was learned; else empty."""
    learned = notes.learned.get(backend.endpoint.note_key(name))
    key = backend.endpoint.outage_key(name)
    wait = notes.cooldown(key).seconds
    found: dict[str, Any] = {"learned": learned.note.describe()} if learned else {}
    found |= {"ready_in": round(wait, 1)} if wait else {}
    return found | _last_failure(key, notes)


def _readiness(key: str, notes: Notes) -> dict[str, Any]:
    """Return whether a server is ready or cooling down, and how long the latter takes."""
    wait = notes.cooldown(key).seconds
    return {"state": "cooling", "ready_in": round(wait, 1)} if wait else {"state": "ready"}


def _last_failure(key: str, notes: Notes) -> dict[str, Any]:
    """Return why and when a server last failed, if it did recently."""
    known = notes.cooldown(key)
    return {"why": known.why, "last_failed": _iso(known.failed_at)} if known.why else {}


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
