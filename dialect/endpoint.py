"""OpenAI-compatible HTTP as vendors actually implement it; used for images and chat."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dialect.doors import door_of
from dialect.envelope import claimed_status, complaint, message_of, read_json
from dialect.error_text import ErrorText, free_text
from dialect.judging import Fault, Outcome, judge, of_model
from dialect.learning import Learned
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

    `sent` is the free text of the request and `secrets` are its credentials: an answer may repeat
    either. `asked_base64`: bytes were asked for in place of a URL.
    """

    reply: Reply
    json: Any
    fault: Fault | None = None
    error: ErrorText | None = None
    sent: Collection[str] = ()
    secrets: Collection[str] = field(default=(), repr=False)
    asked_base64: bool = False

    @classmethod
    def of(cls, reply: Reply, sent: Collection[str] = (), secrets: Collection[str] = ()) -> Answer:
        """Read the answer to a request with this free text and these credentials."""
        answer = cls(reply, read_json(reply.body), sent=sent, secrets=secrets)
        found = complaint(answer.json)
        if reply.status < 300 and not found:
            return answer
        error, fault = answer._read(found)
        return replace(answer, error=error, fault=fault)

    def without_picture(self) -> Fault:
        """Return the fault of a success without a picture: rejected, unless its text says more."""
        fault, said = self._read(None)[1], message_of(self.json).get("content")
        # A chat model may have said why.
        detail = " ".join(said.split())[:300] if isinstance(said, str) else ""
        return replace(fault, detail=detail or fault.detail)

    def _read(self, found: Any) -> tuple[ErrorText, Fault]:
        """Return this answer as an error; `found` in it may claim a status."""
        reply, body = self.reply, self.json
        if body is None:
            body = reply.body[:4000].decode("utf-8", "replace")
        status = reply.status if reply.status >= 300 else claimed_status(found)
        error = ErrorText.read(status, body, self.sent, self.secrets)
        return error, judge(reply.status, error, reply.headers, self.json)


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
        model = body.get("model")
        key = self.note_key(model)
        recalled = self.state.recall(Learned, key)
        known = recalled.note if recalled else self.door.first
        learned = known.forcing({"response_format": "b64_json"}) if base64 else known
        for _ in range(MAX_REQUESTS):
            sent = learned.fields(body, size)
            words = (*free_text(sent), *texts)
            answer = self.call(
                "POST", self.url, words, learned.headers, json=sent, deadline=deadline, limit=limit
            )
            answer = replace(answer, asked_base64=sent.get("response_format") == "b64_json")
            fault, error = answer.fault, answer.error
            if fault is None or error is None or fault.outcome is Outcome.REFUSED:
                # Lessons are stored after a success: an error may blame an innocent field.
                if learned != known:
                    learned.store(self.state, key, recalled)
                break
            answer = replace(answer, fault=of_model(fault, error, model))
            news = learned.learn(error, sent, size)
            if news == learned:
                break
            learned = news
        return answer

    def call(
        self, method: str, url: str, sent: Collection[str], headers: Mapping[str, str], **more: Any
    ) -> Answer:
        """Ask a URL of this server, with its credentials and `headers`. Raises UpstreamError.

        `sent` is the free text of the request, or of the one that led to it; `more` is for
        Upstream.request.
        """
        headers = _ACCEPT | self.headers | {**headers}
        reply = self.upstream.request(method, url, headers=headers, **more)
        secrets = [value.removeprefix("Bearer ") for value in self.headers.values()]
        return Answer.of(reply, sent, secrets)


def _digest(*parts: str | None) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
