"""OpenAI-compatible HTTP as vendors actually implement it; used for images and chat."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dialect.doors import door_of
from dialect.envelope import read_json
from dialect.error_text import ErrorText, claimed_status, complaint, free_text
from dialect.judging import Fault, Outcome, judge, of_model
from dialect.learning import Learned, teaches
from dialect.sizes import Size
from storage.state import State
from upstream.client import Deadline, Reply, Upstream

# A limit for vendors that reject one field after the other.
MAX_REQUESTS = 8
_ACCEPT = {"Accept": "application/json, image/*"}


def clean_text(value: Any) -> str | None:
    """Return a server's text as valid Unicode without NUL, or None for any other value."""
    if not isinstance(value, str):
        return None
    return value.encode("utf-8", "replace").decode().replace("\0", "").strip() or None


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer: its JSON (None for any other body) and its fault (None for success).

    `sent` is the free text of the request, which an answer may repeat.
    """

    reply: Reply
    json: Any
    fault: Fault | None = None
    error: ErrorText | None = None
    sent: Collection[str] = ()

    @classmethod
    def of(cls, reply: Reply, sent: Collection[str] = (), secrets: Collection[str] = ()) -> Answer:
        """Read the answer to a request with the free text `sent` and credentials `secrets`."""
        answer = cls(reply, read_json(reply.body), sent=sent)
        found = complaint(answer.json)
        return answer.as_error(found, secrets) if reply.status >= 300 or found else answer

    def as_error(self, found: Any, secrets: Collection[str] = ()) -> Answer:
        """Return this answer as the error that it reports, with a success for a status too."""
        reply, body = self.reply, self.json
        if body is None:
            body = reply.body[:4000].decode("utf-8", "replace")
        status = reply.status if reply.status >= 300 else claimed_status(found)
        error = ErrorText.read(status, body, self.sent, secrets)
        fault = judge(reply.status, error, reply.headers, self.json)
        return replace(self, fault=fault, error=error)


class Endpoint:
    """One operation of one server; requests are adapted to what the server is known to accept."""

    def __init__(
        self,
        upstream: Upstream,
        state: State,
        base: str,
        operation: str,
        token: str | None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.upstream = upstream
        self.state = state
        self.door = door_of(base, operation)
        self.url = self.door.url
        self.headers = self.door.headers(token) | dict(headers or {})
        self._access = upstream.access(self.url, self.headers)

    def note_key(self, *model: str | None) -> str:
        """Return the key of notes about this server, or about a model of it (None: its default).

        It reveals no part of the URL, which may hold a password.
        """
        return _digest(self.url, *model)

    def outage_key(self, *model: str | None) -> str:
        """Return the key of cooldowns and errors of this server, or of a model of it.

        They count only under the URL, headers and proxy with which they came about, so that a
        corrected token is tried at once.
        """
        return _digest(self._access, *model)

    def ask(
        self,
        body: Mapping[str, Any],
        *,
        deadline: Deadline,
        limit: int,
        size: Size | None = None,
        base64: bool = False,
        texts: Collection[str] = (),
    ) -> Answer:
        """POST `body`, adapted to its model, and again after each rejection that teaches something.

        `size` is sent in the field and fitted to the sizes that the model takes. `base64` asks
        for bytes in place of a URL. `texts` is free text of the client's beside that in `body`.
        Returns the last answer. Raises UpstreamError and Unavailable.
        """
        key = self.note_key(body.get("model"))
        recalled = self.state.recall(Learned, key)
        known = recalled.note if recalled else self.door.first
        learned = replace(known, wants_base64=True) if base64 else known
        for _ in range(MAX_REQUESTS):
            sent = _joined(body, learned.fields(body, size))
            words, headers = (*free_text(sent), *texts), dict(learned.headers)
            answer = self._call(
                "POST", self.url, headers, words, json=sent, deadline=deadline, limit=limit
            )
            news = _lesson(answer, learned, sent, size)
            if news is None:
                break
            learned = news
        if answer.fault and answer.error:
            fault = of_model(answer.fault, answer.error, body.get("model"))
            answer = replace(answer, fault=fault)
        # Only lessons that helped are stored: an error may blame an innocent field.
        if learned != known and (answer.fault is None or answer.fault.outcome is Outcome.REFUSED):
            learned.store(self.state, key, recalled)
        return answer

    def get(
        self,
        url: str,
        *,
        deadline: Deadline,
        limit: int,
        headers: Mapping[str, str],
        sent: Collection[str],
    ) -> Answer:
        """GET a URL of this server, with its credentials. Raises UpstreamError.

        `sent` is the free text of the request that led to it.
        """
        return self._call("GET", url, headers, sent, deadline=deadline, limit=limit)

    def _call(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        words: Collection[str],
        **more: Any,
    ) -> Answer:
        headers = _ACCEPT | self.headers | dict(headers)
        reply = self.upstream.request(method, url, headers=headers, **more)
        return Answer.of(reply, words, tuple(self.headers.values()))


def _digest(*parts: str | None) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _joined(body: Mapping[str, Any], sent: dict[str, Any]) -> dict[str, Any]:
    """Return the fields to send; what `image_config` has in the body stays beside the shape."""
    shape, own = sent.get("image_config"), body.get("image_config")
    if isinstance(shape, dict) and isinstance(own, dict):
        return sent | {"image_config": shape | own}
    return sent


def _lesson(
    answer: Answer, learned: Learned, sent: Mapping[str, Any], size: Size | None
) -> Learned | None:
    """Return what is known after a rejection, or None if it teaches nothing new."""
    fault, error = answer.fault, answer.error
    if fault is None or error is None or not teaches(error):
        return None
    if fault.outcome is Outcome.REFUSED:
        return None
    news = learned.learn(error, sent, size)
    return news if news != learned else None
