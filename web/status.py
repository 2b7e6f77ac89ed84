"""GET /status: what works, what does not and why, without any secret."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from backends import Backends
from cache import Cache
from config import Settings
from dialect.learning import Learned
from drawing.backend import Backend
from drawing.cooldowns import Cooldown, Cooldowns
from drawing.storing import HOST_KEY
from llm import Llm
from settings.parsers import printable_url
from storage import Note, Unavailable
from storage.memory import Memory


class Status:
    """Describes the service from its settings and the notes that all workers share."""

    def __init__(
        self, version: str, settings: Settings, cache: Cache, backends: Backends, llm: Llm | None
    ) -> None:
        self.version = version
        self.settings = settings
        self.cache = cache
        self.backends = backends
        self.llm = llm

    def describe(self) -> dict[str, Any]:
        """Return the whole answer, in three calls of the state."""
        memory, totals = Memory(self.cache.state, self._wanted()), self.cache.totals()
        drew = self._last_drawn()
        backends = [self._backend(b, memory, drew.get(b.name)) for b in self.backends.all]
        is_ready = any(backend["state"] == "ready" for backend in backends)
        fault = self.cache.fault(is_hosted=self.settings.hosting is not None)
        is_ok = is_ready and totals is not None and fault is None
        return {
            "status": "ok" if is_ok else "degraded",
            "version": self.version,
            "backends": backends,
            "cache": {
                "mode": self._mode(),
                "fault": fault,
                "entries": totals.entries if totals else None,
                "bytes": totals.bytes if totals else None,
                "max_bytes": self.cache.max_bytes,
            },
            **self._options(memory),
        }

    def _mode(self) -> str:
        """Return where new pictures are stored."""
        if self.settings.hosting:
            return "hosted"
        return "objects" if self.settings.storage else "file"

    def _options(self, memory: Memory) -> dict[str, Any]:
        """Return the stages that can be switched off."""
        llm, hosting = self.settings.llm, self.settings.hosting
        fallback = self.settings.pollinations
        return {
            "administration": {"enabled": self.settings.admin_token is not None},
            "image_hosting": {
                "enabled": hosting is not None,
                "provider": hosting.provider if hosting else None,
                **self._series(HOST_KEY, memory),
            },
            "llm_optimization": {
                "enabled": bool(llm and llm.optimize_template),
                "model": llm.model if llm else None,
                **(self._series(self.llm.endpoint.note_key(), memory) if self.llm else {}),
            },
            "de_nsfw": {
                "enabled": bool(llm and llm.safety_template),
                "max_attempts": llm.safety_attempts if llm else 0,
            },
            "fallback": {
                "enabled": fallback is not None,
                "url": printable_url(fallback.url) if fallback else None,
                "model": fallback.model if fallback else None,
            },
        }

    def _wanted(self) -> list[tuple[type[Note], str]]:
        wanted: list[tuple[type[Note], str]] = []
        for backend in self.backends.all:
            wanted.append((Cooldown, backend.endpoint.note_key()))
            for model in _models(backend):
                key = backend.endpoint.note_key(model)
                wanted += [(Cooldown, key), (Learned, key)]
        wanted.append((Cooldown, HOST_KEY))
        return wanted + (self.llm.wanted("") if self.llm else [])

    def _last_drawn(self) -> dict[str, float]:
        with suppress(Unavailable):
            return self.cache.state.last_drawn([backend.name for backend in self.backends.all])
        return {}

    def _backend(self, backend: Backend, memory: Memory, drew: float | None) -> dict[str, Any]:
        key = backend.endpoint.note_key()
        wait = Cooldowns.left(memory, key)
        state = "drained" if not backend.weight else "cooling" if wait else "ready"
        found: dict[str, Any] = {"url": backend.name, "weight": backend.weight, "state": state}
        found |= {"ready_in": round(wait, 1)} if wait else {}
        found |= {"last_drew": None if drew is None else _iso(drew)} | self._series(key, memory)
        models = {model or "": self._model(backend, model, memory) for model in _models(backend)}
        known = {model: about for model, about in models.items() if about}
        return found | ({"models": known} if known else {})

    def _model(self, backend: Backend, model: str | None, memory: Memory) -> dict[str, Any]:
        """Return what was learned about a model and how long it is avoided, if anything."""
        key = backend.endpoint.note_key(model)
        learned = memory.get(Learned, key)
        wait = Cooldowns.left(memory, key)
        found: dict[str, Any] = {"learned": learned.note.describe()} if learned else {}
        found |= {"ready_in": round(wait, 1)} if wait else {}
        return found | self._series(key, memory)

    def _series(self, key: str, memory: Memory) -> dict[str, Any]:
        """Return why and when a server last failed, if it did recently."""
        recalled = memory.get(Cooldown, key)
        if recalled is None or not recalled.note.why:
            return {}
        return {"why": recalled.note.why, "last_failed": _iso(recalled.note.failed_at)}


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")


def _models(backend: Backend) -> list[str | None]:
    """Return the models that a backend is known by: its default and those that it maps."""
    return [None, *dict.fromkeys(backend.settings.models.values())]
