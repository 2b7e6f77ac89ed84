"""GET /status: the state of backends, cache and options, and why each failed; no secrets."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
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
from storage import N, Recalled, Unavailable

# Of a vendor's error.
MAX_TEXT = 300


@dataclass
class Status:
    """Describes the service from its settings and the notes that all workers share."""

    version: str
    settings: Settings
    cache: Cache
    backends: Backends
    llm: Llm | None
    fallback: Pollinations | None

    def describe(self, *, for_admin: bool = False) -> dict[str, Any]:
        """Return the whole answer; the administrator also sees each server's last error."""
        totals, drew, fault = None, dict[str, float | None](), None
        try:
            totals = self.cache.state.totals()
            drew = {b.name: self.cache.state.last_drawn(b.name) for b in self.backends.all}
        except Unavailable as error:
            fault = str(error)
        backends = [self._backend(b, drew.get(b.name), for_admin) for b in self.backends.all]
        options = self._options(for_admin)
        # While the image host takes the pictures, it does not matter whether the store could.
        is_hosted = bool(self.settings.hosting) and self._server(HOST_KEY)["state"] == "ready"
        fault = fault or self.cache.state.fault or (None if is_hosted else self.cache.store.fault)
        is_ready = any(backend["state"] == "ready" for backend in backends)
        cache = {
            "mode": "objects" if self.settings.storage else "file",
            "entries": totals.entries if totals else None,
            "bytes": totals.bytes if totals else None,
            "max_bytes": self.cache.max_bytes,
            "fault": fault,
        }
        return {
            "status": "ok" if is_ready and not fault else "degraded",
            "version": self.version,
            "backends": backends,
            "cache": cache | ({"mode": "hosted"} if self.settings.hosting else {}),
            **options,
        }

    def _options(self, for_admin: bool) -> dict[str, Any]:
        """Return the stages that can be switched off."""
        llm, hosting = self.settings.llm, self.settings.hosting
        fallback, own = self.settings.pollinations, self.fallback
        return {
            "administration": {"enabled": self.settings.admin_token is not None},
            "image_hosting": {
                "enabled": hosting is not None,
                "provider": hosting.provider if hosting else None,
                **self._failures(HOST_KEY, for_admin),
            },
            "llm_optimization": {
                "enabled": bool(llm and llm.optimize_template),
                "model": llm.model if llm else None,
                **(self._failures(self.llm.outages.key, for_admin) if self.llm else {}),
            },
            "de_nsfw": {
                "enabled": bool(llm and llm.safety_template),
                "max_attempts": llm.safety_attempts if llm else 0,
            },
            "fallback": {
                "enabled": fallback is not None,
                "url": printable_url(fallback.url) if fallback else None,
                "model": fallback.model if fallback else None,
                **(self._server(own.outages.key, for_admin) if own else {}),
            },
        }

    def _backend(self, backend: Backend, drew: float | None, for_admin: bool) -> dict[str, Any]:
        endpoint, models = backend.endpoint, dict[str, Any]()
        # None is the default model.
        for name in (None, *dict.fromkeys(backend.settings.models.values())):
            learned = self._recall(Learned, endpoint.note_key(name))
            found = {"learned": learned.note.describe()} if learned else dict[str, Any]()
            found |= self._server(endpoint.outage_key(name))
            del found["state"]
            models |= {name or "": found} if found else {}
        return {
            "url": backend.name,
            "weight": backend.weight,
            **self._server(endpoint.outage_key(), for_admin),
            **({} if backend.weight else {"state": "drained"}),
            "last_drew": None if drew is None else _iso(drew),
            **({"models": models} if models else {}),
        }

    def _server(self, key: str, for_admin: bool = False) -> dict[str, Any]:
        """Return the state of a server or model, and when and why it last failed, if recently."""
        known = Cooldown.of(self._recall(Cooldown, key))
        found: dict[str, Any] = {"state": "cooling" if known.seconds else "ready"}
        if known.seconds:
            found["ready_in"] = round(known.seconds, 1)
        if known.why:
            found |= {"why": known.why, "last_failed": _iso(known.failed_at)}
        if for_admin and (last := self._recall(LastError, key)):
            error = last.note
            text = vendor_words(error.text, self.settings.secrets())
            said = {"at": _iso(error.at), "why": error.why, "model": error.model, "text": text}
            found["last_error"] = said
        return found

    def _failures(self, key: str, for_admin: bool) -> dict[str, Any]:
        """Return the same of a server whose state is not shown."""
        found = self._server(key, for_admin)
        return {name: about for name, about in found.items() if name not in ("state", "ready_in")}

    def _recall(self, kind: type[N], key: str) -> Recalled[N] | None:
        """Return a note; None, too, while the state cannot be used, which `describe` says."""
        with suppress(Unavailable):
            return self.cache.state.recall(kind, key)
        return None


def vendor_words(text: str, secrets: Iterable[str]) -> str:
    """Return what a server said, for the administrator: short, printable, without secrets."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return redacted(printable, secrets)[:MAX_TEXT]


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
