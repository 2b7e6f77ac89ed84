"""Tasks: asked for until they end, and never twice."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from dialect.doors import IMAGES
from dialect.endpoint import Answer, Endpoint
from dialect.judging import Outcome
from dialect.tasks import poll, task_of
from picture import ImageRequest
from storage.state import State
from upstream.client import Deadline, Reply, Upstream, UpstreamError, Why

from .one_backend import PNG, Draw, b64
from .scripted import Gate, Say, ScriptedServer, Seen
from .states import Clock

Ask = Callable[[Seen], Say]

PICTURE = {"images": [{"url": ["https://a.example/a.png"]}]}
SUBMITTED = Say({"code": 200, "data": [{"status": "submitted", "task_id": "task_01"}]})


def apimart(status: str, **more: Any) -> Say:
    return Say({"code": 200, "data": {"id": "task_01", "status": status, **more}})


def modelscope(status: str, **more: Any) -> Say:
    return Say({"task_status": status, "task_id": "123", "request_id": "1", **more})


PENDING = apimart("pending", poll_url="https://a.example/tasks/task_01")
RUNNING = apimart("processing", progress=40, result=PICTURE)
DONE = apimart("completed", progress=100, result=PICTURE)
GONE = Say({"error": {"message": "No such task", "code": 404}}, 404)


@dataclass
class Polling:
    """Asks a server that answers with a task, on a clock that only pauses move."""

    server: ScriptedServer
    state: State
    clock: Clock = field(default_factory=lambda: Clock(0.0))
    slept: list[float] = field(default_factory=list)

    def __call__(self, *answers: Any, seconds: float = 1000, timeout: float = 10) -> Answer:
        self.server.say(*answers)
        endpoint = Endpoint(Upstream(), self.state, f"{self.server.url}/v1?a=1", IMAGES, "t")
        body = {"prompt": "a red apple"}
        accepted = endpoint.ask(body, deadline=Deadline.after(10), limit=2**20)
        assert task_of(accepted)
        deadline = Deadline.after(seconds, self.clock)
        return poll(
            endpoint, accepted, deadline=deadline, timeout=timeout, limit=2**20, sleep=self._sleep
        )

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.clock.now += seconds

    @property
    def methods(self) -> list[str]:
        return [seen.method for seen in self.server.seen]


@pytest.fixture
def polling(backend: ScriptedServer, state: State) -> Polling:
    return Polling(backend, state)


def test_task_is_asked_for_until_it_ends(polling: Polling) -> None:
    answer = polling(SUBMITTED, PENDING, RUNNING, RUNNING, RUNNING, RUNNING, DONE)
    assert answer.json["data"]["result"] == PICTURE
    assert answer.fault is None
    assert polling.slept == [1, 2, 3, 5, 5, 5]
    assert polling.methods == ["POST", *["GET"] * 6]
    last = polling.server.seen[-1]
    assert (last.target, last.headers["Authorization"]) == ("/v1/tasks/task_01?a=1", "Bearer t")


def test_modelscope_wants_its_own_header(polling: Polling) -> None:
    running = [modelscope(status) for status in ("PENDING", "RUNNING", "PROCESSING")]
    done = modelscope("SUCCEED", output_images=["https://a.example/a.png"])
    assert polling(*running, done).fault is None
    last = polling.server.seen[-1]
    assert (last.path, len(polling.slept)) == ("/v1/tasks/123", 3)
    assert last.headers["X-ModelScope-Task-Type"] == "image_generation"


@pytest.mark.parametrize(
    "blip",
    [
        *(Say("", 500), Say("", 408), Say("", 429), Say("<html>please wait"), Say({})),
        Say({"error": {"code": "server_error", "message": "upstream request timeout"}}, 503),
        Say("{", headers={"Content-Length": "9", "Connection": "close"}),
    ],
)
def test_poll_that_may_pass_is_no_end(polling: Polling, blip: Say) -> None:
    answers = [GONE, GONE, blip, GONE, Say("", 405), blip, blip, blip, DONE]
    assert polling(SUBMITTED, *answers).fault is None
    assert polling.methods.count("POST") == 1


@pytest.mark.parametrize("statuses", [(404, 404, 404), (405, 404, 405)])
def test_three_times_no_such_task_is_a_failure(polling: Polling, statuses: tuple[int, ...]) -> None:
    answer = polling(SUBMITTED, RUNNING, *(Say("", status) for status in statuses))
    assert answer.fault
    assert answer.fault.outcome is Outcome.FAILED
    assert polling.methods == ["POST", *["GET"] * 4]


@pytest.mark.parametrize(
    ("last", "outcome"),
    [
        (apimart("failed", error={"code": "content_policy_violation"}), Outcome.REFUSED),
        (apimart("failed", error={"message": "Blocked by the safety system"}), Outcome.REFUSED),
        (apimart("failed", error={"message": "insufficient balance"}), Outcome.FAILED),
        (apimart("failed", error={"message": "It cannot be drawn."}), Outcome.REJECTED),
        (modelscope("FAILED", errors={"message": "nsfw content"}), Outcome.REFUSED),
        (Say({"error": {"code": "moderation_blocked"}}, 400), Outcome.REFUSED),
    ],
)
def test_failed_task_is_judged_as_any_error(polling: Polling, last: Say, outcome: Outcome) -> None:
    answer = polling(SUBMITTED, RUNNING, last)
    assert answer.fault
    assert answer.fault.outcome is outcome
    assert len(polling.slept) == 2


@pytest.mark.parametrize(
    "more", [{"message": "Task submitted"}, {"error": {"code": "", "message": ""}}]
)
def test_task_beside_a_mere_message_is_polled(polling: Polling, more: dict[str, Any]) -> None:
    assert polling(Say({"id": "t1", "status": "queued", **more}), DONE).fault is None


def test_deadline_ends_the_polling(polling: Polling) -> None:
    with pytest.raises(UpstreamError) as caught:
        polling(SUBMITTED, RUNNING, seconds=13)
    assert caught.value.why is Why.TIMED_OUT
    assert polling.slept == [1, 2, 3, 5, 2]


def test_each_poll_has_the_time_of_one_call(polling: Polling) -> None:
    late = Gate(RUNNING)
    assert polling(SUBMITTED, late, DONE, timeout=1.0).fault is None
    late.opened.set()
    assert polling.methods == ["POST", "GET", "GET"]


@pytest.mark.parametrize(
    "answer",
    [
        *({"task_id": "1", "data": [{"b64_json": b64(PNG)}]}, {"task_id": "", "data": []}, None),
        *({"task_id": ".."}, {"task_id": ["1"]}, {"task_id": "1", "status": "FAILED"}),
        *({"data": [{"id": "1"}]}, {"id": "1", "data": {"status": "pending"}}, [{"task_id": "1"}]),
        *({"id": "1", "status": "completed"}, {"id": "1", "status": ["pending"]}),
    ],
)
def test_anything_else_is_no_task(answer: Any) -> None:
    assert task_of(Answer.of(Reply(200, {}, json.dumps(answer).encode()))) is None


# --- a drawing by a task ------------------------------------------------------------------------

WANTS_TASKS = {"errors": {"message": "image-gen task currently does not support synchronous calls."
    " Please refer to the documentation and set header X-ModelScope-Async-Mode=true to switch to"
    " asynchronous calling mode"}}  # fmt: skip


def ask_apimart(seen: Seen) -> Say:
    if seen.method == "POST":
        return SUBMITTED
    if seen.path == "/a.png":
        return Say(PNG)
    assert seen.path == "/v1/tasks/task_01"
    return apimart("completed", result={"images": [{"url": ["/a.png"]}]})


def ask_modelscope(seen: Seen) -> Say:
    if seen.path == "/a.png":
        return Say(PNG)
    if seen.method == "POST":
        is_ours = seen.headers["X-ModelScope-Async-Mode"] == "true"
        return modelscope("PENDING") if is_ours else Say(WANTS_TASKS, 400)
    assert seen.path == "/v1/tasks/123"
    return modelscope("SUCCEED", output_images=["/a.png"])


def ask_a_clone(seen: Seen) -> Say:
    if seen.method == "POST":
        return Say({"output": {"task_id": "a/b", "message": "accepted"}})
    assert seen.target == "/v1/tasks/a%2Fb"
    return Say({"status": "completed", "images": [b64(PNG)]})


def ask_another(seen: Seen) -> Say:
    if seen.method == "POST":
        return Say({"id": "task-9", "object": "image.task", "status": "queued"})
    assert seen.target == "/v1/tasks/task-9"
    return Say({"id": "task-9", "status": "succeeded", "result": {"b64_json": b64(PNG)}})


@pytest.mark.parametrize(
    ("answer", "posts"),
    [(ask_apimart, 2), (ask_modelscope, 3), (ask_a_clone, 2), (ask_another, 2)],
)
def test_picture_of_a_task_is_drawn(
    backend: ScriptedServer, draw: Draw, answer: Ask, posts: int
) -> None:
    backend.say(answer)
    for _ in range(2):
        assert draw(backend.url, ImageRequest("a")).data == PNG
    assert [seen.method for seen in backend.seen].count("POST") == posts
