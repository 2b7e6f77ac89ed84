"""Tasks: some doors answer with one in place of a picture, to be asked for until it has ended.

Two forms are known: APIMart's, which its clones share, and ModelScope's.
"""

import itertools
import re
import time
from collections.abc import Callable
from urllib.parse import quote

from dialect.answers import find_pictures
from dialect.endpoint import Answer, Endpoint
from dialect.envelope import FAILED, task_parts, task_status
from dialect.judging import Outcome
from images.formats import media_type_of
from upstream.client import Deadline, UpstreamError, Why

# Seconds before the first polls; the last number is repeated.
PAUSES = (1.0, 2.0, 3.0, 5.0)
# So many polls in a row that say that there is no such task, or nothing to be asked for.
MAX_MISSES = 3
# Not dots alone: they would leave the folder.
_ID = re.compile(r"(?!\.+$)[^\s\x00-\x1f]{1,200}")
# ModelScope wants it; others ignore it.
_HEADERS = {"X-ModelScope-Task-Type": "image_generation"}
_MAY_PASS = frozenset((408, 425, 429))
_LASTING = (Why.FORBIDDEN, Why.TOO_LARGE)

# A picture beside one of these is a preview, and a URL is the task's own.
_RUNNING = frozenset((
    "submitted", "pending", "queued", "in_queue", "waiting", "accepted", "created", "not_start",
    "starting", "started", "processing", "running", "in_progress", "generating",
))  # fmt: skip
_DONE = frozenset(("succeed", "succeeded", "success", "completed", "complete", "finished", "done"))


def task_of(answer: Answer) -> str | None:
    """Return the id of the task that an answer names in place of a picture, if it names one."""
    is_running = task_status(answer.json) in _RUNNING
    if fault := answer.fault:
        # "Task submitted" is no complaint, nor is an error without a word.
        if not is_running or answer.reply.status >= 300 or fault.outcome is Outcome.REFUSED:
            return None
    elif not is_running and _has_picture(answer):
        return None
    for part in task_parts(answer.json):
        id = part.get("task_id") or part.get("taskId")
        # Beside a status it is the task's; else it may be the request's.
        if id is None and task_status({"data": part}) in _RUNNING:
            id = part.get("id")
        if isinstance(id, str | int) and _ID.fullmatch(str(id)):
            return str(id)
    return None


def poll(
    endpoint: Endpoint,
    answer: Answer,
    deadline: Deadline,
    timeout: float,
    limit: int,
    sleep: Callable[[float], None] = time.sleep,
) -> Answer:
    """Return the answer with which the task that `answer` names ended; `answer` if it names none.

    Each call may take `timeout` seconds. The task has been paid for, so a poll that fails in a
    way that may pass is no end of it. Raises UpstreamError, at the deadline too.
    """
    task, misses = task_of(answer), 0
    if task is None:
        return answer
    url = endpoint.door.beside(f"/tasks/{quote(task, safe='')}")
    for pause in itertools.chain(PAUSES, itertools.repeat(PAUSES[-1])):
        sleep(min(pause, deadline.remaining()))
        if deadline.is_over:
            break
        bounded = deadline.within(timeout)
        try:
            last = endpoint.call("GET", url, answer.sent, _HEADERS, deadline=bounded, limit=limit)
        except UpstreamError as error:
            if error.why in _LASTING:
                raise
            misses = 0
            continue
        misses = misses + 1 if _is_miss(last) else 0
        if misses == MAX_MISSES or _is_end(last):
            return last
    raise UpstreamError("its task did not end in time", Why.TIMED_OUT)


def _is_end(answer: Answer) -> bool:
    """Return whether an answer is the task's last word."""
    status = task_status(answer.json) if answer.reply.status < 300 else None
    if status in _RUNNING | _DONE | FAILED:
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


def _has_picture(answer: Answer) -> bool:
    found = find_pictures(answer.json, answer.reply.picture, answer.sent)
    return next(found, None) is not None
