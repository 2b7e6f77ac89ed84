"""The OpenAI dialect, as its many speakers really speak it: what backends and LLMs share.

Where a configured URL leads, what an error says, and how to ask again without the parameter
that a vendor does not know.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from upstream.client import Deadline, Reply, Upstream, UpstreamError

# A parameter is rejected in words like these; where none stands, its name alone proves nothing.
_REJECTION = re.compile(
    r"unknown|unsupported|not support|unrecogni[sz]ed|unexpected|invalid|cannot find|extra "
    r"|not permitted|not allowed|not one of|not valid|must be|should be|too large|required"
    r"|missing|instead",
    re.IGNORECASE,
)
# The parameter as such is unknown, whatever its value ...
_UNKNOWN = re.compile(
    r"unknown|unrecogni[sz]ed|unexpected|extra|cannot find|not permitted|unsupported.parameter",
    re.IGNORECASE,
)
# ... or only this value is wrong, and another request may well have a right one.
_BAD_VALUE = re.compile(
    r"invalid.value|unsupported.value|must be|should be|not one of|supported values|too large",
    re.IGNORECASE,
)
_MAX_FACTS = 200
# A server may learn a parameter, or another one may move in at its URL.
REJECTED_TTL = 86400.0

# An optional parameter → its other spellings → the fields that each of those sends.
Optional = Mapping[str, Mapping[str, Mapping[str, Any]]]


class Notes(Protocol):
    """What all workers know together, kept by the cache: JSON values that expire."""

    def recall(self, kind: str, key: str) -> Any: ...

    def remember(self, kind: str, key: str, value: Any, ttl: float) -> None: ...

    def forget(self, kind: str, key: str) -> bool: ...


def endpoint(base: str, operation: str) -> str:
    """Return where `operation` ("images/generations") is, the base's query string kept.

    The operation itself stays as it is; a path with a version segment gets the operation; any
    other path, or a bare host, gets `v1/` before it.
    """
    parts = urlsplit(base)
    path = parts.path.rstrip("/")
    if not path.endswith(f"/{operation}"):
        has_version = re.search(r"/v[0-9]+[a-z0-9]*(/|$)", path, re.IGNORECASE)
        path += f"/{operation}" if has_version else f"/v1/{operation}"
    return parts._replace(path=path).geturl()


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """What an error answer says. Its texts are for matching only: they are never shown."""

    status: int
    words: frozenset[str]
    params: frozenset[str]
    text: str

    @classmethod
    def of(cls, status: int, answer: Any) -> ErrorDetail:
        """Read any vendor's error: whatever it calls code, type or param, in whatever nesting."""
        facts = list(_facts(answer))
        words = {value for name, value in facts if name in _WORD_NAMES}
        params = {
            part
            for name, value in facts
            if name in ("param", "loc")
            for part in re.split(r"[./]", value)
        }
        return cls(status, frozenset(words), frozenset(params), "\n".join(v for _, v in facts))

    def names(self, parameter: str) -> int:
        """Say how plainly this rejects `parameter`: 3 by a field, 2 in quotes, 1 in words, or 0."""
        if parameter in self.params:
            return 3
        if not _REJECTION.search(self.text):
            return 0
        name = re.escape(parameter)
        if re.search(rf"[\"'`]{name}[\"'`]", self.text):
            return 2
        # A lone letter ("n") is a word of many sentences; only in quotes is it a parameter.
        return int(len(name) > 1 and bool(re.search(rf"(?<![\w-]){name}(?![\w-])", self.text)))

    def rejects_value(self, value: Any) -> bool:
        """Say whether it is this value that is wrong, and not the parameter as such."""
        if _UNKNOWN.search(self.text):
            return False
        stands_there = re.search(rf"(?<!\w){re.escape(str(value))}(?!\w)", self.text)
        return bool(stands_there or _BAD_VALUE.search(self.text))

    @property
    def advises(self) -> bool:
        """Say whether it tells what to send instead."""
        return bool(re.search(r"instead|\buse\b", self.text, re.IGNORECASE))


_WORD_NAMES = frozenset(("code", "type", "status", "status_code", "finishReason", "finish_reason"))


def _facts(answer: Any) -> Iterator[tuple[str, str]]:
    """Yield (name, text) for every text and number in a JSON value, the first 200 of them."""
    waiting: list[tuple[str, Any]] = [("", answer)]
    for _ in range(_MAX_FACTS):
        if not waiting:
            return
        name, value = waiting.pop(0)
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(name, item) for item in value]
        elif isinstance(value, str):
            yield name, value[:2000]
        elif isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**9:
            yield name, str(value)


def clean_text(value: Any) -> str | None:
    """Return a text of the other side as valid Unicode without NUL, or None if it is no text."""
    if not isinstance(value, str):
        return None
    return value.encode("utf-8", "replace").decode().replace("\0", "").strip() or None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said: its JSON (None where the body is none) and what it says is wrong."""

    reply: Reply
    json: Any
    error: ErrorDetail | None

    @classmethod
    def of(cls, reply: Reply) -> Answer:
        answer = None
        if reply.body.lstrip()[:1] in (b"{", b"["):
            with contextlib.suppress(UpstreamError):
                answer = reply.json()
        if reply.status >= 300:
            text = answer if answer is not None else reply.body[:2000].decode("utf-8", "replace")
            return cls(reply, answer, ErrorDetail.of(reply.status, text))
        if isinstance(answer, dict) and (error := answer.get("error")):
            return cls(reply, answer, ErrorDetail.of(_inner_status(error), error))
        return cls(reply, answer, None)


def _inner_status(error: Any) -> int:
    """Return the status that an error inside a 200 gives itself; 400 where it gives none."""
    code = str(error.get("code") or error.get("status") or "") if isinstance(error, dict) else ""
    return int(code) if re.fullmatch(r"[45][0-9]{2}", code) else 400


class Endpoint:
    """One operation of one server, which learns what the server rejects."""

    def __init__(
        self,
        upstream: Upstream,
        base: str,
        operation: str,
        *,
        token: str | None,
        timeout: float,
        notes: Notes,
    ) -> None:
        self.upstream = upstream
        self.url = endpoint(base, operation)
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.timeout = timeout
        self.notes = notes

    def ask(
        self,
        body: Mapping[str, Any],
        optional: Optional,
        *,
        deadline: Deadline,
        limit: int,
        is_final: Callable[[ErrorDetail], bool] = lambda error: False,
    ) -> Answer:
        """POST `body`, and again without what a 400 or 422 rejects, as long as that helps.

        What is in `optional` may be dropped, or replaced by the spelling that the error asks
        for. An error that `is_final` is not looked into. Returns the last answer. Raises
        UpstreamError.
        """
        deadline = deadline.within(self.timeout)
        known = marks = frozenset(self.notes.recall("rejected", self.url) or ())
        while True:
            sent = _without(body, optional, marks)
            answer = Answer.of(
                self.upstream.request(
                    "POST",
                    self.url,
                    deadline=deadline,
                    limit=limit,
                    headers=self.headers,
                    json=sent,
                )
            )
            error = answer.error
            if error is None:
                break
            mark = _rejected(error, sent, body, optional)
            if error.status not in (400, 422) or is_final(error) or not mark or mark in marks:
                break
            marks |= {mark}
        if marks != known and (answer.error is None or is_final(answer.error)):
            # Only what helped is remembered: an error may name a parameter that is innocent.
            self.notes.remember("rejected", self.url, sorted(marks), REJECTED_TTL)
        return answer


def _rejected(
    error: ErrorDetail, sent: Mapping[str, Any], body: Mapping[str, Any], optional: Optional
) -> str | None:
    """Return the mark of the optional parameter that the error is about, or None.

    Marks: `seed` drops a parameter, `size=512x512` drops it with that value only,
    `size>image_size` spells it otherwise. Where it names several, the plainest is meant.
    """
    found: list[tuple[int, str]] = [(0, "")]
    for name in optional:
        spellings = [name, *optional[name]]
        if sent.keys().isdisjoint(spellings):
            continue
        rejected = max(error.names(spelling) for spelling in spellings if spelling in sent)
        wanted = [s for s in optional[name] if s not in sent and error.names(s)]
        if wanted and (error.advises or not rejected):
            found.append((max(rejected, 1), f"{name}>{wanted[0]}"))
        elif rejected:
            value = f"={body[name]}" if error.rejects_value(body[name]) else ""
            found.append((rejected, name + value))
    return max(found, key=lambda strength_and_mark: strength_and_mark[0])[1] or None


def _without(body: Mapping[str, Any], optional: Optional, marks: frozenset[str]) -> dict[str, Any]:
    sent: dict[str, Any] = {}
    for name, value in body.items():
        if name in marks or f"{name}={value}" in marks:
            continue
        spelling = next((s for s in optional.get(name, ()) if f"{name}>{s}" in marks), None)
        sent |= optional[name][spelling] if spelling else {name: value}
    return sent
