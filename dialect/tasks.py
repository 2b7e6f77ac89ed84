"""Tasks: some doors answer with one in place of a picture, to be asked for until it has ended.

Two forms are known: APIMart's, which its clones share, and ModelScope's.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from dialect.answers import find_pictures
from dialect.endpoint import Answer, Endpoint
from dialect.judging import Outcome
from images.formats import media_type_of
from upstream.client import Deadline, UpstreamError, Why

# Seconds before the first polls; the last number is repeated.
PAUSES = (1.0, 2.0, 3.0, 5.0)
# So many polls in a row that say that there is no such task, or nothing to be asked for.
MAX_MISSES = 3
# Not dots alone: they would leave the folder.
_ID = re.compile(r"(?!\.+$)[^\s\x00-\x1f]{1,200}")
_MODELSCOPE = (("X-ModelScope-Task-Type", "image_generation"),)
_MAY_PASS = frozenset((408, 425, 429))
_LASTING = (Why.FORBIDDEN, Why.TOO_LARGE)

# A picture beside one of these is a preview, and a URL is the task's own.
_RUNNING = frozenset(
    (
        *("submitted", "pending", "queued", "in_queue", "waiting", "accepted", "created"),
        *("not_start", "starting", "started", "processing", "running", "in_progress", "generating"),
    )
)
_DONE = frozenset(("succeed", "succeeded", "success", "completed", "complete", "finished", "done"))
_FAILED = frozenset(
    (
        *("failed", "failure", "fail", "error", "cancelled", "canceled", "expired"),
        *("rejected", "blocked"),
    )
)
_STATUS_NAMES = ("task_status", "status", "state")


@dataclass(frozen=True, slots=True)
class AcceptedTask:
    """A task that a server has accepted; `headers` are wanted by polls for it."""

    id: str
    headers: tuple[tuple[str, str], ...] = ()


def task_of(answer: Answer) -> AcceptedTask | None:
    """Return the task that an answer names in place of a picture, or None without one."""
    if answer.fault is not None or _status(answer.json) in _FAILED:
        return None
    if _status(answer.json) not in _RUNNING and _has_picture(answer):
        return None
    for part in _parts(answer.json):
        id = part.get("task_id") or part.get("taskId")
        # Beside a status it is the task's; else it may be the request's.
        if id is None and any(part.get(name) in _RUNNING for name in _STATUS_NAMES):
            id = part.get("id")
        if isinstance(id, str | int) and _ID.fullmatch(str(id)):
            return AcceptedTask(str(id), _MODELSCOPE if "task_status" in part else ())
    return None


def poll(
    endpoint: Endpoint,
    task: AcceptedTask,
    sent: Collection[str],
    *,
    deadline: Deadline,
    timeout: float,
    limit: int,
    sleep: Callable[[float], None] = time.sleep,
) -> Answer:
    """Return the answer with which a task ended; each call may take `timeout` seconds.

    `sent` is the free text of the request for it.

    The task has been paid for, so a poll that fails in a way that may pass is no end of it.
    Raises UpstreamError, at the deadline too.
    """
    url, misses = endpoint.door.beside(f"/tasks/{quote(task.id, safe='')}"), 0
    for pause in itertools.chain(PAUSES, itertools.repeat(PAUSES[-1])):
        sleep(min(pause, deadline.remaining()))
        if deadline.is_over:
            break
        try:
            answer = endpoint.get(
                url,
                deadline=deadline.within(timeout),
                limit=limit,
                headers=dict(task.headers),
                sent=sent,
            )
        except UpstreamError as error:
            if error.why in _LASTING:
                raise
            misses = 0
            continue
        misses = misses + 1 if _is_miss(answer) else 0
        if misses == MAX_MISSES or _is_end(answer):
            return _judged(answer, tuple(endpoint.headers.values()))
    raise UpstreamError("its task did not end in time", Why.TIMED_OUT)


def _is_end(answer: Answer) -> bool:
    """Return whether an answer is the task's last word."""
    status = _status(answer.json) if answer.reply.status < 300 else None
    if status in _RUNNING | _DONE | _FAILED:
        return status not in _RUNNING
    if answer.fault is not None:
        return answer.fault.outcome is not Outcome.FAILED
    if answer.json is None:
        return media_type_of(answer.reply.body) is not None
    return _has_picture(answer)


def _is_miss(answer: Answer) -> bool:
    """Return whether an answer denies the task in a way that will not pass by itself."""
    status = answer.error.status if answer.error else 0
    return 400 <= status < 500 and status not in _MAY_PASS


def _judged(answer: Answer, secrets: Collection[str]) -> Answer:
    """Return the last answer, as an error if it reports that the task has failed."""
    if answer.fault is not None or _status(answer.json) not in _FAILED:
        return answer
    errors = (part.get(name) for part in _parts(answer.json) for name in ("error", "errors"))
    return answer.as_error(next(filter(None, errors), answer.json), secrets)


def _has_picture(answer: Answer) -> bool:
    found = find_pictures(answer.json, answer.reply.picture, answer.sent)
    return next(found, None) is not None


def _status(answer: Any) -> str | None:
    """Return the task's status in lower case, or None if the answer does not say it."""
    found = (part.get(name) for part in _parts(answer) for name in _STATUS_NAMES)
    return next((value.lower() for value in found if isinstance(value, str)), None)


def _parts(answer: Any) -> Iterator[dict[str, Any]]:
    """Yield the objects of an answer that may be about the task, the innermost first."""
    if not isinstance(answer, dict):
        return
    for name in ("data", "output"):
        inner = answer.get(name)
        inner = inner[0] if isinstance(inner, list) and inner else inner
        if isinstance(inner, dict):
            yield inner
    yield answer
