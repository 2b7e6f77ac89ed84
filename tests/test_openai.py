"""What vendors say about parameters, in their own words, and how the same server is asked again."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from upstream.client import Deadline, Reply, Upstream, UpstreamError, Why
from upstream.openai import REJECTED_TTL, Answer, Endpoint, ErrorDetail, clean_text, endpoint

from .servers import RawServer, Say, ScriptedServer, Seen, read_request

MakeServer = Callable[[], ScriptedServer]
MakeRawServer = Callable[[Callable[[socket.socket], None]], RawServer]
# A busy machine is no finding: an example may take as long as it likes.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Notes:
    """What the workers know together, in a dict; values go through JSON, as in the cache."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], tuple[str, float]] = {}

    def recall(self, kind: str, key: str) -> Any:
        text, _ = self.kept.get((kind, key), ("null", 0.0))
        return json.loads(text)

    def remember(self, kind: str, key: str, value: Any, ttl: float) -> None:
        self.kept[kind, key] = json.dumps(value), ttl

    def forget(self, kind: str, key: str) -> bool:
        return self.kept.pop((kind, key), None) is not None


# --- where a URL leads --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "where"),
    [
        ("https://a.example", "https://a.example/v1/images/generations"),
        ("https://a.example/", "https://a.example/v1/images/generations"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1/images/generations"),
        ("https://a.example/sd", "https://a.example/sd/v1/images/generations"),
        ("https://a.example/sd///", "https://a.example/sd/v1/images/generations"),
        ("https://a.example/vision", "https://a.example/vision/v1/images/generations"),
        ("https://a.example/dev2", "https://a.example/dev2/v1/images/generations"),
        ("https://v1.example", "https://v1.example/v1/images/generations"),
        ("https://a.example?v=/v1", "https://a.example/v1/images/generations?v=/v1"),
        ("https://a.example/v1", "https://a.example/v1/images/generations"),
        ("https://a.example/v1/", "https://a.example/v1/images/generations"),
        ("https://a.example/V2", "https://a.example/V2/images/generations"),
        ("https://a.example/api/v3", "https://a.example/api/v3/images/generations"),
        ("https://a.example/v1beta/openai", "https://a.example/v1beta/openai/images/generations"),
        ("https://a.example/v1beta/openai/", "https://a.example/v1beta/openai/images/generations"),
        ("https://a.example/inference/v1", "https://a.example/inference/v1/images/generations"),
        ("https://a.example/openai/v1", "https://a.example/openai/v1/images/generations"),
        (
            "https://a.example/openai/v1?api-version=preview",
            "https://a.example/openai/v1/images/generations?api-version=preview",
        ),
        ("https://a.example/images/generations", "https://a.example/images/generations"),
        ("https://a.example/v1/images/generations", "https://a.example/v1/images/generations"),
        ("https://a.example/v1/images/generations/", "https://a.example/v1/images/generations"),
        (
            "https://a.example/openai/deployments/d/images/generations?api-version=2025-04-01&a=b",
            "https://a.example/openai/deployments/d/images/generations?api-version=2025-04-01&a=b",
        ),
        ("https://u:p@a.example/v1", "https://u:p@a.example/v1/images/generations"),
    ],
)
def test_url_leads_to_the_operation(base: str, where: str) -> None:
    assert endpoint(base, "images/generations") == where
    chat = where.replace("images/generations", "chat/completions")
    assert endpoint(base.replace("images/generations", "chat/completions"), "chat/completions") == (
        chat
    )


def test_full_path_of_one_operation_is_not_that_of_another() -> None:
    url = "https://a.example/v1/chat/completions"
    assert endpoint(url, "images/generations") == url + "/images/generations"


# --- what is rejected, in the words of each vendor ----------------------------------------------

BODY = {
    "prompt": "a red apple",
    "n": 1,
    "size": "256x256",
    "seed": 42,
    "response_format": "b64_json",
    "temperature": 0.7,
    "max_tokens": 100,
}
OPTIONAL: dict[str, dict[str, dict[str, Any]]] = {
    "seed": {},
    "size": {
        "image_size": {"image_size": "256x256"},
        "width": {"width": 256, "height": 256},
    },
    "n": {},
    "response_format": {},
    "temperature": {},
    "max_tokens": {"max_completion_tokens": {"max_completion_tokens": 100}},
}


def openai(message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return {"error": error}


SEED_UNKNOWN = openai("Unknown parameter: 'seed'.", "seed", "unknown_parameter")
SIZE_UNKNOWN = {"code": "400", "error": "Argument not supported: size"}
GEMINI = {
    "error": {
        "code": 400,
        "message": 'Invalid JSON payload received. Unknown name "size": Cannot find field.',
        "status": "INVALID_ARGUMENT",
    }
}
# What is answered, and the mark that it leaves.
REJECTIONS: dict[str, tuple[Say, str]] = {
    "OpenAI, seed": (Say(SEED_UNKNOWN, 400), "seed"),
    "OpenAI, response_format": (
        Say(
            openai("Unknown parameter: 'response_format'.", "response_format", "unknown_parameter"),
            400,
        ),
        "response_format",
    ),
    "OpenAI, by the code's field alone": (
        Say(openai("Bad request.", "seed", "unknown_parameter"), 400),
        "seed",
    ),
    "OpenAI, by the message alone": (Say(openai("Unknown parameter: 'seed'."), 400), "seed"),
    "unknown, whatever its value": (Say("Unknown parameter: 'seed' (42)", 400), "seed"),
    "OpenAI, a value, by the message alone": (
        Say(
            openai("'256x256' is not one of ['1024x1024', '1024x1536', '1536x1024'] - 'size'"),
            400,
        ),
        "size=256x256",
    ),
    "OpenAI, a value": (
        Say(
            openai(
                "Invalid value: '256x256'. Supported values are: '1024x1024' and 'auto'.",
                "size",
                "invalid_value",
            ),
            400,
        ),
        "size=256x256",
    ),
    "OpenAI, temperature": (
        Say(
            openai(
                "Unsupported value: 'temperature' does not support 0.7 with this model. Only the"
                " default (1) value is supported.",
                "temperature",
                "unsupported_value",
            ),
            400,
        ),
        "temperature=0.7",
    ),
    "OpenAI, max_tokens": (
        Say(
            openai(
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use"
                " 'max_completion_tokens' instead.",
                "max_tokens",
                "unsupported_parameter",
            ),
            400,
        ),
        "max_tokens>max_completion_tokens",
    ),
    "OpenAI, inside a 200": (Say(SEED_UNKNOWN, 200), "seed"),
    "xAI": (Say(SIZE_UNKNOWN, 400), "size"),
    "xAI, with a word that is no advice": (
        Say({"code": "400", "error": "Argument not supported: size. The width is 1024."}, 400),
        "size",
    ),
    "Gemini": (Say(GEMINI, 400), "size"),
    "Gemini, in a list": (Say([GEMINI], 400), "size"),
    "vLLM-Omni, a text": (Say({"detail": "Unsupported parameter: seed"}, 400), "seed"),
    "FastAPI, a list": (
        Say(
            {
                "detail": [
                    {
                        "type": "extra_forbidden",
                        "loc": ["body", "size"],
                        "msg": "Extra inputs are not permitted",
                        "input": "256x256",
                    }
                ]
            },
            422,
        ),
        "size",
    ),
    "FastAPI, a value": (
        Say(
            {
                "detail": [
                    {
                        "type": "literal_error",
                        "loc": ["body", "size"],
                        "msg": "Input should be '512x512' or '1024x1024'",
                        "input": "256x256",
                    }
                ]
            },
            422,
        ),
        "size=256x256",
    ),
    "FastAPI, n": (
        Say({"detail": [{"loc": ["body", "n"], "msg": "Extra inputs are not permitted"}]}, 422),
        "n",
    ),
    "SiliconFlow": (
        Say({"code": 20015, "message": "image_size is required", "data": None}, 400),
        "size>image_size",
    ),
    "Together": (
        Say(openai("Unrecognized key 'size'. Use 'width' and 'height' instead."), 400),
        "size>width",
    ),
    "a plain text": (Say("unknown field `seed`, expected one of `prompt`, `width`", 422), "seed"),
}
CHANGES: dict[str, tuple[set[str], dict[str, Any]]] = {
    "size>image_size": ({"size"}, {"image_size": "256x256"}),
    "size>width": ({"size"}, {"width": 256, "height": 256}),
    "max_tokens>max_completion_tokens": ({"max_tokens"}, {"max_completion_tokens": 100}),
}


def without(mark: str) -> dict[str, Any]:
    """Return BODY as it is sent once `mark` is known."""
    dropped, added = CHANGES.get(mark, ({mark.partition("=")[0]}, {}))
    return {name: value for name, value in BODY.items() if name not in dropped} | added


def endpoint_of(server: ScriptedServer | RawServer, notes: Notes, timeout: float = 10) -> Endpoint:
    return Endpoint(
        Upstream(), server.url, "images/generations", token="t", timeout=timeout, notes=notes
    )


def ask(there: Endpoint, body: Mapping[str, Any] = BODY, **more: Any) -> Answer:
    return there.ask(body, OPTIONAL, deadline=Deadline.after(10), limit=2**20, **more)


def is_refusal(error: ErrorDetail) -> bool:
    return "safety" in error.text


DRAWN = Say({"data": [{"b64_json": "AAAA"}]})


@pytest.mark.parametrize("vendor", REJECTIONS)
def test_rejected_parameter_is_healed_with_one_more_request(
    server: MakeServer, vendor: str
) -> None:
    rejection, mark = REJECTIONS[vendor]
    backend, notes = server(), Notes()
    backend.say(rejection, DRAWN)
    there = endpoint_of(backend, notes)
    answer = ask(there)
    assert answer.error is None
    assert answer.json == DRAWN.body
    assert [seen.json for seen in backend.seen] == [BODY, without(mark)]
    kept = {("rejected", there.url): (json.dumps([mark]), REJECTED_TTL)}
    assert notes.kept == kept
    # Known from now on, to all who share the notes.
    ask(there)
    ask(endpoint_of(backend, notes))
    assert [seen.json for seen in backend.seen[2:]] == [without(mark)] * 2
    assert notes.kept == kept


def test_wrong_value_is_dropped_with_that_value_only(server: MakeServer) -> None:
    backend, notes = server(), Notes()
    backend.say(REJECTIONS["OpenAI, a value, by the message alone"][0], DRAWN)
    there = endpoint_of(backend, notes)
    ask(there)
    ask(there, BODY | {"size": "1024x1024"})
    ask(there)
    sizes = [seen.json.get("size") for seen in backend.seen]
    assert sizes == ["256x256", None, "1024x1024", None]


def test_respelled_parameter_has_the_value_of_its_own_request(server: MakeServer) -> None:
    backend, notes = server(), Notes()
    backend.say(REJECTIONS["SiliconFlow"][0], DRAWN)
    there = endpoint_of(backend, notes)
    ask(there)
    optional = OPTIONAL | {"size": {"image_size": {"image_size": "512x512"}}}
    there.ask(BODY | {"size": "512x512"}, optional, deadline=Deadline.after(10), limit=2**20)
    assert [seen.json.get("image_size") for seen in backend.seen] == [None, "256x256", "512x512"]


def test_respelled_parameter_that_is_rejected_too_is_dropped(server: MakeServer) -> None:
    backend, notes = server(), Notes()
    wrong = openai("image_size must be one of 512x512, 1024x1024", "image_size")
    backend.say(REJECTIONS["SiliconFlow"][0], Say(wrong, 400), DRAWN)
    assert ask(endpoint_of(backend, notes)).error is None
    bare = {name: value for name, value in BODY.items() if name != "size"}
    assert backend.seen[2].json == bare
    assert json.loads(notes.kept["rejected", backend.url + "/v1/images/generations"][0]) == [
        "size=256x256",
        "size>image_size",
    ]


def test_several_parameters_are_rejected_one_after_another(server: MakeServer) -> None:
    backend, notes = server(), Notes()
    backend.say(Say(SEED_UNKNOWN, 400), Say(SIZE_UNKNOWN, 400), DRAWN)
    there = endpoint_of(backend, notes)
    assert ask(there).error is None
    bare = {name: value for name, value in BODY.items() if name not in ("seed", "size")}
    assert [seen.json for seen in backend.seen] == [BODY, without("seed"), bare]
    assert notes.recall("rejected", there.url) == ["seed", "size"]
    ask(there)
    assert backend.seen[3].json == bare


def test_what_was_learnt_is_added_to_what_was_known(server: MakeServer) -> None:
    backend, notes = server(), Notes()
    there = endpoint_of(backend, notes)
    notes.remember("rejected", there.url, ["seed"], 1)
    backend.say(Say(SIZE_UNKNOWN, 400), DRAWN)
    ask(there)
    assert backend.seen[0].json == without("seed")
    assert notes.recall("rejected", there.url) == ["seed", "size"]


def test_servers_are_remembered_apart(server: MakeServer) -> None:
    picky, easy, notes = server(), server(), Notes()
    picky.say(Say(SEED_UNKNOWN, 400), DRAWN)
    easy.say(DRAWN)
    ask(endpoint_of(picky, notes))
    ask(endpoint_of(easy, notes))
    assert easy.seen[0].json == BODY


@pytest.mark.parametrize(
    "say",
    [
        Say(openai("Your prompt is too long.", "prompt", "string_above_max_length"), 400),
        Say(openai("Invalid request."), 400),
        Say({"error": "The seed of all apples is in the size of the core."}, 400),
        Say(openai("You must be at least n years old; invalid birthday."), 400),
        Say(openai("image-size2 is invalid, as are seeds."), 400),
        Say({"detail": [{"loc": ["body", "prompt"], "msg": "Field required"}]}, 422),
        Say("", 400),
        Say("<html>400 Bad Request</html>", 400),
        Say(SEED_UNKNOWN, 401),
        Say(SEED_UNKNOWN, 404),
        Say(SEED_UNKNOWN, 429),
        Say(SEED_UNKNOWN, 500),
        Say({"error": {"message": "Unknown parameter: 'seed'.", "code": 503}}, 200),
    ],
)
def test_error_about_nothing_optional_is_not_asked_again(server: MakeServer, say: Say) -> None:
    backend, notes = server(), Notes()
    backend.say(say)
    answer = ask(endpoint_of(backend, notes))
    assert answer.error is not None
    assert len(backend.seen) == 1
    assert notes.kept == {}


def test_parameter_that_was_not_sent_is_not_dropped(server: MakeServer) -> None:
    backend, notes = server(), Notes()
    backend.say(Say(SEED_UNKNOWN, 400))
    ask(endpoint_of(backend, notes), {"prompt": "a", "n": 1})
    assert len(backend.seen) == 1


REFUSED = Say(openai("The safety system rejected it; unknown parameter: 'seed'.", "seed"), 400)


def test_refusal_is_not_looked_into(server: MakeServer) -> None:
    backend, notes = server(), Notes()
    backend.say(REFUSED)
    answer = ask(endpoint_of(backend, notes), is_final=is_refusal)
    assert answer.error is not None
    assert is_refusal(answer.error)
    assert len(backend.seen) == 1
    assert notes.kept == {}


def test_refusal_after_a_rejection_proves_that_dropping_helped(server: MakeServer) -> None:
    backend, notes = server(), Notes()
    backend.say(Say(SEED_UNKNOWN, 400), REFUSED)
    there = endpoint_of(backend, notes)
    ask(there, is_final=is_refusal)
    assert len(backend.seen) == 2
    assert notes.recall("rejected", there.url) == ["seed"]


@pytest.mark.parametrize(
    "then",
    [
        Say(SEED_UNKNOWN, 400),
        Say(openai("Invalid request."), 400),
        Say("", 500),
        Say("", 429),
        Say("", 401),
        Say("", 302),
    ],
)
def test_dropping_that_does_not_help_is_not_remembered(server: MakeServer, then: Say) -> None:
    backend, notes = server(), Notes()
    backend.say(Say(SEED_UNKNOWN, 400), then)
    answer = ask(endpoint_of(backend, notes))
    assert answer.error is not None
    assert answer.error.status == then.status
    assert len(backend.seen) == 2
    assert notes.kept == {}


def test_dropping_that_ends_in_a_cut_answer_is_not_remembered(raw_server: MakeRawServer) -> None:
    answers = [b"HTTP/1.1 400 Bad\r\nContent-Length: 23\r\n\r\nUnknown parameter: seed", b""]

    def talk(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(answers.pop(0))

    notes = Notes()
    with pytest.raises(UpstreamError, match="cut short"):
        ask(endpoint_of(raw_server(talk), notes))
    assert answers == []
    assert notes.kept == {}


def test_server_that_rejects_everything_is_asked_once_for_each_parameter(
    server: MakeServer,
) -> None:
    backend, notes = server(), Notes()
    names = ", ".join(f"'{name}'" for name in OPTIONAL)
    backend.say(Say(openai(f"Unknown parameters: {names}."), 400))
    answer = ask(endpoint_of(backend, notes))
    assert answer.error is not None
    assert len(backend.seen) == 1 + len(OPTIONAL)
    assert backend.seen[-1].json == {"prompt": "a red apple"}
    assert notes.kept == {}


def test_server_that_contradicts_itself_is_not_asked_for_ever(server: MakeServer) -> None:
    backend, notes = server(), Notes()

    def contradict(seen: Seen) -> Say:
        sent, wanted = ("width", "image_size") if "width" in seen.json else ("size", "width")
        return Say(openai(f"Unknown parameter: '{sent}'. Use '{wanted}' instead."), 400)

    backend.say(contradict)
    assert ask(endpoint_of(backend, notes)).error is not None
    assert len(backend.seen) == 3
    assert notes.kept == {}


def test_plainest_of_several_names_is_meant(server: MakeServer) -> None:
    backend, notes = server(), Notes()
    backend.say(Say(openai("Invalid input: see seed and 'n' in the manual.", "size"), 400), DRAWN)
    ask(endpoint_of(backend, notes))
    assert backend.seen[1].json == without("size")


def test_token_goes_as_bearer(server: MakeServer) -> None:
    backend = server()
    backend.say(DRAWN)
    ask(endpoint_of(backend, Notes()))
    open_door = Endpoint(
        Upstream(), backend.url, "images/generations", token=None, timeout=10, notes=Notes()
    )
    ask(open_door)
    assert backend.seen[0].headers["Authorization"] == "Bearer t"
    assert "Authorization" not in backend.seen[1].headers
    assert {seen.method for seen in backend.seen} == {"POST"}


def test_time_out_bounds_all_the_asking_again_together(raw_server: MakeRawServer) -> None:
    rejections = [SEED_UNKNOWN, SIZE_UNKNOWN]

    def talk(connection: socket.socket) -> None:
        read_request(connection)
        if rejections:
            content = json.dumps(rejections.pop(0)).encode()
            connection.sendall(b"HTTP/1.1 400 Bad\r\nConnection: close\r\n\r\n" + content)
        else:
            connection.recv(1)

    began = time.monotonic()
    with pytest.raises(UpstreamError) as caught:
        ask(endpoint_of(raw_server(talk), Notes(), timeout=0.5))
    assert caught.value.why is Why.TIMED_OUT
    assert rejections == []
    assert time.monotonic() - began == pytest.approx(0.5, abs=0.3)


# --- what an answer says ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"message": "no"}, 400),
        ({"code": 429, "message": "slow down"}, 429),
        ({"code": "503"}, 503),
        ({"code": None, "status": 402}, 402),
        ({"code": "rate_limit_exceeded"}, 400),
        ({"code": 400, "status": "INVALID_ARGUMENT"}, 400),
        ({"code": 200}, 400),
        ({"code": 4290}, 400),
        ({"code": "٤٠٤"}, 400),
        ({"code": ["429"]}, 400),
        ("no", 400),
        (["no"], 400),
        (1, 400),
    ],
)
def test_error_inside_a_200_has_the_status_that_it_gives_itself(error: Any, status: int) -> None:
    body = json.dumps({"created": 1, "error": error, "data": []}).encode()
    answer = Answer.of(Reply(200, {}, body))
    assert answer.error is not None
    assert answer.error.status == status
    assert answer.json["created"] == 1


@pytest.mark.parametrize("error", [None, "", {}, [], False, 0])
def test_empty_error_inside_a_200_is_none(error: Any) -> None:
    answer = Answer.of(Reply(200, {}, json.dumps({"error": error}).encode()))
    assert answer.error is None


@pytest.mark.parametrize("body", [b"", b"<html>", b"\x89PNG", b'{"a":', b"[" * 100_000, b"12"])
def test_body_that_is_no_json_object_or_list_is_none(body: bytes) -> None:
    assert Answer.of(Reply(200, {}, body)) == Answer(Reply(200, {}, body), None, None)
    answer = Answer.of(Reply(500, {}, body))
    assert answer.json is None
    assert answer.error is not None
    assert answer.error.status == 500


def test_error_is_read_in_any_nesting() -> None:
    error = ErrorDetail.of(
        400,
        {"a": [{"innererror": {"code": "Deep", "type": 7}}], "param": "body.size/x", "b": [True]},
    )
    assert error.words == {"Deep", "7"}
    assert error.params == {"body", "size", "x"}
    assert error.text.split("\n") == ["body.size/x", "Deep", "7"]


def test_only_the_beginning_of_a_vast_error_is_read() -> None:
    error = ErrorDetail.of(400, {"message": "x" * 10**6, "more": ["y"] * 10**5, "n": 10**4000})
    assert len(error.text) < 3000


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (" a b\n", "a b"),
        ("a\0b", "ab"),
        ("a\ud83d", "a?"),
        ("\0 ", None),
        ("", None),
        (None, None),
        (5, None),
        (["a"], None),
    ],
)
def test_text_of_the_other_side_becomes_valid_unicode(value: Any, text: str | None) -> None:
    assert clean_text(value) == text


FIELDS = ("code", "type", "param", "loc", "error", "status", "message", "detail")
TEXTS = (
    "seed",
    "'size'",
    "Unknown parameter",
    "image_size is required",
    "instead",
    "256x256",
    "\0",
)
WORDS = st.sampled_from((*FIELDS, *TEXTS, "\ud800"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | WORDS,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=30,
)
STATUS = st.sampled_from([200, 201, 204, 301, 400, 401, 422, 429, 451, 500, 599])


@unhurried
@given(JSON, STATUS)
def test_error_of_any_json_is_read_without_raising(answer: Any, status: int) -> None:
    error = ErrorDetail.of(status, answer)
    assert error.status == status
    for name in (*OPTIONAL, "prompt"):
        assert error.names(name) in (0, 1, 2, 3)
        assert error.rejects_value("256x256") in (True, False)
    assert error.advises in (True, False)


@unhurried
@given(st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()), STATUS)
def test_answer_of_any_bytes_is_read_without_raising(body: bytes, status: int) -> None:
    answer = Answer.of(Reply(status, {}, body))
    assert answer.reply.body == body
    assert (answer.error is not None) >= (status >= 300)
    assert isinstance(answer.json, dict | list | None)
