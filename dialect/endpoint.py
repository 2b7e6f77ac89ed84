"""OpenAI-compatible HTTP as vendors actually implement it; used for images and chat."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from dialect.envelope import read_json
from dialect.error_text import ErrorText
from dialect.judging import Fault, Outcome, judge
from dialect.learning import Learned
from dialect.sizes import Size
from storage import State
from upstream.client import Deadline, Reply, Upstream

# A limit for vendors that reject one field after the other.
MAX_REQUESTS = 8


def operation_url(base: str, operation: str) -> str:
    """Return the URL of `operation`, such as `images/generations`; the base's query is kept.

    A URL that ends in the operation stays as it is; one whose path has a version segment gets
    the operation appended; any other gets `v1/` before it.
    """
    parts = urlsplit(base)
    path = parts.path.rstrip("/")
    if not path.endswith(f"/{operation}"):
        has_version = re.search(r"/v[0-9]+[a-z0-9]*(/|$)", path, re.IGNORECASE)
        path += f"/{operation}" if has_version else f"/v1/{operation}"
    return parts._replace(path=path).geturl()


def clean_text(value: Any) -> str | None:
    """Return a server's text as valid Unicode without NUL, or None for any other value."""
    if not isinstance(value, str):
        return None
    return value.encode("utf-8", "replace").decode().replace("\0", "").strip() or None


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's answer: its JSON (None for any other body) and its fault (None for success)."""

    reply: Reply
    json: Any
    fault: Fault | None
    error: ErrorText | None

    @classmethod
    def of(cls, reply: Reply, prompt: str = "") -> Answer:
        """Read an answer; `prompt` was in the request, and an error may repeat it."""
        answer = read_json(reply.body)
        complaint = _complaint(answer)
        if reply.status < 300 and not complaint:
            return cls(reply, answer, None, None)
        body = reply.body[:4000].decode("utf-8", "replace") if answer is None else answer
        status = reply.status if reply.status >= 300 else _inner_status(complaint)
        error = ErrorText.read(status, body, prompt)
        return cls(reply, answer, judge(reply.status, error, reply.headers, answer), error)


def _complaint(answer: Any) -> Any:
    """Return the error in an answer of any status, or None if it reports none."""
    if not isinstance(answer, dict):
        return None
    if error := answer.get("error"):
        return error
    has_content = any(answer.get(name) for name in ("data", "images", "choices"))
    complains = any(answer.get(name) for name in ("errors", "message", "msg", "detail"))
    return answer if complains and not has_content else None


def _inner_status(error: Any) -> int:
    """Return the status that an error inside a 200 claims, or 400 if it claims none."""
    code = str(error.get("code") or error.get("status") or "") if isinstance(error, dict) else ""
    return int(code) if re.fullmatch(r"[45][0-9]{2}", code) else 400


class Endpoint:
    """One operation of one server; requests are adapted to what the server is known to accept."""

    def __init__(
        self, upstream: Upstream, state: State, base: str, operation: str, token: str | None
    ) -> None:
        self.upstream = upstream
        self.state = state
        self.url = operation_url(base, operation)
        self.draws = operation == "images/generations"
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    def note_key(self, *model: str | None) -> str:
        """Return the key of notes about this server, or about a model of it (None: its default).

        It reveals no part of the URL, which may hold a password.
        """
        return hashlib.sha256(repr((self.url, *model)).encode()).hexdigest()[:32]

    def ask(
        self,
        body: Mapping[str, Any],
        *,
        deadline: Deadline,
        limit: int,
        size: Size | None = None,
        base64: bool = False,
    ) -> Answer:
        """POST `body`, adapted to its model, and again after each rejection that teaches something.

        `size` is sent in the field and fitted to the sizes that the model takes. `base64` asks
        for bytes in place of a URL. Returns the last answer. Raises UpstreamError and Unavailable.
        """
        key = self.note_key(body.get("model"))
        recalled = self.state.recall(Learned, key)
        known = recalled.note if recalled else Learned()
        learned = replace(known, wants_base64=True) if base64 else known
        for _ in range(MAX_REQUESTS):
            sent = learned.fields(body, size)
            answer = self._post(sent, deadline, limit)
            news = _lesson(answer, learned, sent, size)
            if news is None:
                break
            learned = news
        # Only lessons that helped are stored: an error may blame an innocent field.
        if learned != known and (answer.fault is None or answer.fault.outcome is Outcome.REFUSED):
            learned.store(self.state, key, recalled)
        return answer

    def _post(self, sent: Mapping[str, Any], deadline: Deadline, limit: int) -> Answer:
        reply = self.upstream.request(
            "POST",
            self.url,
            deadline=deadline,
            limit=limit,
            headers=self.headers,
            json=sent,
            cut_picture=self.draws,
        )
        return Answer.of(reply, str(sent.get("prompt", "")))


def _lesson(
    answer: Answer, learned: Learned, sent: Mapping[str, Any], size: Size | None
) -> Learned | None:
    """Return what is known after a rejection, or None if it teaches nothing new."""
    fault, error = answer.fault, answer.error
    if fault is None or error is None or error.status not in (400, 422):
        return None
    if fault.outcome is Outcome.REFUSED:
        return None
    news = learned.learn(error, sent, size)
    return news if news != learned else None
