"""Asking a server once whether it answers with these credentials, without drawing anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dialect.endpoint import Answer, Endpoint
from dialect.judging import Outcome
from upstream.client import Deadline, UpstreamError

# OpenRouter's list is over a megabyte.
LIST_LIMIT = 2**23


@dataclass(frozen=True, slots=True)
class Probe:
    """What a server answered: what came, its own words, and why it cannot be used, if it cannot.

    `models` are the names of its models, empty if it lists none.
    """

    came: str
    words: str = ""
    why: str | None = None
    models: tuple[str, ...] = ()


def probe(endpoint: Endpoint, fields: Mapping[str, Any], deadline: Deadline) -> Probe:
    """Ask for the list of models; where that proves nothing, for an empty prompt.

    A server that refuses only the empty prompt has accepted the credentials. Raises Unavailable.
    """
    models = _models(endpoint, endpoint.headers, deadline)
    # Many gateways show their list to everybody.
    is_open = bool(models and endpoint.headers and _models(endpoint, {}, deadline))
    if models and not is_open:
        count = f"{len(models)} model{'' if len(models) == 1 else 's'}"
        return Probe(f"answers, with {count}", models=models)
    try:
        body = endpoint.door.body("", fields)
        answer = endpoint.ask(body, deadline=deadline, limit=LIST_LIMIT)
    except UpstreamError as error:
        return Probe(str(error), why=error.why, models=models)
    return _read(answer, models)


def _read(answer: Answer, models: tuple[str, ...]) -> Probe:
    fault, status = answer.fault, f"HTTP {answer.reply.status}"
    if fault is None:
        return Probe(f"answers ({status})", models=models)
    if fault.outcome is Outcome.FAILED:
        return Probe(f"{fault.why} ({status})", fault.detail, fault.why, models)
    return Probe(f"answers, and rejects an empty prompt ({status})", fault.detail, models=models)


def _models(endpoint: Endpoint, headers: Mapping[str, str], deadline: Deadline) -> tuple[str, ...]:
    """Return the names in the list of models, none if it cannot be read."""
    try:
        reply = endpoint.upstream.request(
            "GET",
            endpoint.door.beside("/models"),
            headers=headers,
            deadline=deadline,
            limit=LIST_LIMIT,
        )
        found = Answer.of(reply)
    except UpstreamError:
        return ()
    data = found.json.get("data") if isinstance(found.json, dict) else found.json
    if found.fault or not isinstance(data, list):
        return ()
    return tuple(str(one["id"]) for one in data if isinstance(one, dict) and "id" in one)
