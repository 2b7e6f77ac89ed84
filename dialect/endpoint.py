"""OpenAI-compatible HTTP as vendors actually implement it; used for images and chat."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dialect.doors import IMAGES, door_of
from dialect.envelope import read_json
from dialect.error_text import ErrorText
from dialect.judging import Fault, Outcome, judge
from dialect.learning import Learned
from dialect.sizes import Size
from storage import State
from upstream.client import Deadline, Reply, Upstream

# A limit for vendors that reject one field after the other.
MAX_REQUESTS = 8
# A message beside one of these is no complaint.
_CONTENT = ("data", "images", "choices", "output", "output_images", "task_id", "task_status")


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
        return cls._of_error(reply, answer, complaint, prompt)

    def as_error(self, complaint: Any, prompt: str = "") -> Answer:
        """Return this answer as the error that it reports, with a success for a status."""
        return self._of_error(self.reply, self.json, complaint, prompt)

    @classmethod
    def _of_error(cls, reply: Reply, answer: Any, complaint: Any, prompt: str) -> Answer:
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
    has_content = any(answer.get(name) for name in _CONTENT)
    complains = any(answer.get(name) for name in ("errors", "message", "msg", "detail"))
    return answer if complains and not has_content else None


def _inner_status(error: Any) -> int:
    """Return the status that an error inside a 200 claims, or 400 if it claims none."""
    code = str(error.get("code") or error.get("status") or "") if isinstance(error, dict) else ""
    return int(code) if re.fullmatch(r"[45][0-9]{2}", code) else 400


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
        self.draws = operation == IMAGES
        self.headers = self.door.headers(token) | dict(headers or {})

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
        known = recalled.note if recalled else self.door.first
        learned = replace(known, wants_base64=True) if base64 else known
        for _ in range(MAX_REQUESTS):
            sent = _joined(body, learned.fields(body, size))
            answer = self._post(sent, deadline, limit)
            news = _lesson(answer, learned, sent, size)
            if news is None:
                break
            learned = news
        # Only lessons that helped are stored: an error may blame an innocent field.
        if learned != known and (answer.fault is None or answer.fault.outcome is Outcome.REFUSED):
            learned.store(self.state, key, recalled)
        return answer

    def get(
        self, url: str, *, deadline: Deadline, limit: int, headers: Mapping[str, str], prompt: str
    ) -> Answer:
        """GET a URL of this server, with its credentials. Raises UpstreamError."""
        reply = self.upstream.request(
            "GET",
            url,
            deadline=deadline,
            limit=limit,
            headers=self.headers | dict(headers),
            cut_picture=self.draws,
        )
        return Answer.of(reply, prompt)

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
    if fault is None or error is None or error.status not in (400, 422):
        return None
    if fault.outcome is Outcome.REFUSED:
        return None
    news = learned.learn(error, sent, size)
    return news if news != learned else None
