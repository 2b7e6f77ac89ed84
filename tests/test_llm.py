"""Requests to an LLM, and the prompt in its answers."""

import contextlib
import itertools
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm import LLM_LIMIT, Llm, RewriteFailed, message_in, read_prompt
from settings.servers import LlmSettings
from storage.state import State
from upstream.client import Deadline, Upstream

from .conftest import saying
from .scripted import Answer, Say, ScriptedServer, Seen, free_port
from .states import Clock
from .wire import MakeRawServer, any_json, hang, unhurried

FOX = "A red fox in deep snow, soft morning light"


def failure_of(call: Callable[[], Any]) -> RewriteFailed:
    with pytest.raises(RewriteFailed) as caught:
        call()
    return caught.value


# --- reading the prompt -------------------------------------------------------------------------

DRAFT = "Maybe <prompt>a cat indoors</prompt>?"
THOUGHTS = [("<think>", ""), ("<think>", "</think>"), ("", "</think>")]


@pytest.mark.parametrize(
    "text",
    [
        # Tags.
        *(f"<prompt>{FOX}</prompt>", f"<PROMPT>\n{FOX}\n</Prompt>", f"<prompt>{FOX}"),
        *(f"Sure!\n<prompt>{FOX}</prompt>\nI hope that helps.", f"{FOX}</prompt>"),
        f"Between <prompt> and </prompt>: <prompt>{FOX}</prompt>",
        f"<prompt>a draft of it</prompt> or rather <prompt>{FOX}</prompt>",
        f"<prompt>{FOX}</prompt>\n<prompt> </prompt>",
        f"<prompt><prompt>{FOX}</prompt></prompt>",
        *(f'<prompt>"{FOX}"</prompt>', f"<prompt>Enhanced prompt: **{FOX}**</prompt>"),
        f"I'm sorry if it is too short: <prompt>{FOX}</prompt>",
        # Fences, quotes and bold marks.
        *(f"```\n{FOX}\n```", f"```{FOX}```", f"```text\n{FOX}"),
        f"Here is your prompt:\n\n```text\n{FOX}\n```\n\nIt now has more light.",
        *(f"{left}{FOX}{right}" for left, right in ('""', "''", "``", "“”", "‘’", "「」", "«»")),
        *(f'  **"{FOX}"**\n', f'"“{FOX}”"'),
        # Lead-ins.
        *(f"Prompt: {FOX}", f"Enhanced Prompt:\n\n{FOX}", f"**Enhanced Prompt:** {FOX}"),
        *(f"**Enhanced prompt**: {FOX}", f"**Enhanced prompt: {FOX}**"),
        *(f"### Optimized prompt:\n{FOX}", f"Your rewritten prompt: {FOX}"),
        *(f"Here’s a safer version:\n\n{FOX}", f"Certainly. Revised prompt: {FOX}"),
        f'Here is the prompt that you asked for:\n"{FOX}"',
        f"Sure! Here is the improved prompt: {FOX}",
        f'Okay, here are my thoughts:\nFinal prompt: "{FOX}"',
        *(f"提示词：{FOX}", f"**优化后的提示词：**\n“{FOX}”"),
        *(f"好的，以下是优化后的提示词：\n{FOX}", f"以下是改写后的版本：「{FOX}」"),
        # Thoughts.
        f"<think>\nLet me think.\n</think>\n\n{FOX}",
        f"<thinking>Let me think.</thinking>{FOX}",
        f"<THINK>Let me think.</THINK><prompt>{FOX}</prompt>",
        *(f"Let me think.</think>{FOX}", f"{FOX}<think>Was that good?"),
        f"Let me think about this first. <think>{DRAFT}</think>{FOX}",
        *(f"<think>a</think>{FOX}<think>b</think>", f"<think>a<think>b</think>c</think>{FOX}"),
        *(f"<think>{DRAFT}</think>{FOX}", f"<think>{DRAFT}</think><prompt>{FOX}</prompt>"),
        *(f"{DRAFT}</think>{FOX}", f"<prompt>{FOX}</prompt><think>{DRAFT}"),
        f'<think>x</think>\n\nSure! Here is it:\n\n**"{FOX}"**',
    ],
)
def test_prompt_is_found_in_the_text_around_it(text: str) -> None:
    assert read_prompt(text) == FOX


@pytest.mark.parametrize(
    "prompt",
    [
        *(FOX, "12345", "一只红色的狐狸，站在雪地里，晨光柔和"),
        "A vintage poster with the word prompt: hello",
        *("Here comes the sun: a child runs", "A new book in a better prompt: no"),
        *("Prompt delivery: a courier on a bicycle", "Sure-footed goats: a cliff at dawn"),
        *('A sign that says "OPEN" above a door', '"OPEN" above a door, and "CLOSED"'),
        *("'Tis the season, the cook's knife'", "**Fog** over **Paris**"),
        *("a < b > c, chalk on a blackboard", "Sorrow: a lone violinist"),
        *("I cancan: dancers on a stage", "Afraid of the dark, a child hides"),
        *("Unfortunate events, a clown slips", "Line one\n\nLine two: with a colon"),
        "A thought bubble that says <thought>",
        *("无法无天的城市，霓虹灯", "一张海报，上面写着：你好世界"),
    ],
)
def test_ordinary_prompt_passes_unchanged(prompt: str) -> None:
    assert read_prompt(prompt) == prompt
    assert read_prompt(f"<prompt>\n{prompt}\n</prompt>") == prompt


@pytest.mark.parametrize(
    "text",
    [
        *("", " \n ", "1234", "<prompt></prompt>", "<prompt>fox</prompt>", '"fox"', "```\n\n```"),
        *("****", "Enhanced prompt: fox", "<prompt>a red fox in snow</think>"),
        *(f"{begin}Let me think for long{end}" for begin, end in THOUGHTS),
        *(f"{begin}{DRAFT}{end}" for begin, end in THOUGHTS),
    ],
)
def test_prompt_under_5_characters_is_a_failure(text: str) -> None:
    assert str(failure_of(lambda: read_prompt(text))) == "the prompt is too short"


@pytest.mark.parametrize(
    "text",
    [
        *("I'm sorry, but I can't help with that.", "I’m sorry, I can’t assist."),
        *("Sorry, I cannot create this.", "I won't do that."),
        "I apologize, but this violates the policy.",
        *("Unfortunately, I can't write that.", "As an AI language model, I cannot do that."),
        *("**I'm sorry, but no.**", "<think>This is bad.</think>I'm sorry, but no."),
        *("抱歉，我无法满足这个请求。", "非常抱歉，我不能这样做。", "对不起，不行不行。"),
    ],
)
def test_apology_is_a_failure(text: str) -> None:
    assert str(failure_of(lambda: read_prompt(text))) == "an apology instead of a prompt"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("红" * 2000, "红" * 2000),
        ("x" * 1500 + ". " + "y" * 1000, "x" * 1500 + "."),
        ("x" * 1200 + "! " + "y" * 500 + "? " + "z" * 1000, "x" * 1200 + "! " + "y" * 500 + "?"),
        ("x" * 1999 + ". " + "y" * 100, "x" * 1999 + "."),
        ("红" * 1999 + "。" + "绿" * 100, "红" * 1999 + "。"),
        ("红" * 1100 + "！" + "绿" * 1000, "红" * 1100 + "！"),
        ("x" * 1500 + ".5" + "y" * 1000, "x" * 1500 + ".5" + "y" * 498),
        ("x" * 2000 + ". " + "y" * 100, "x" * 2000),
        ("红" * 2000 + "。" + "绿" * 100, "红" * 2000),
        ("x" * 500 + ". " + "y" * 5000, "x" * 500 + ". " + "y" * 1498),
        ("x" * 1998 + "   " + "y" * 100, "x" * 1998),
    ],
)
def test_long_prompt_is_cut_at_a_near_sentence_end(text: str, kept: str) -> None:
    assert read_prompt(text) == kept


# --- reading the message ------------------------------------------------------------------------


def with_content(content: Any) -> Any:
    return {"choices": [{"message": {"role": "assistant", "content": content}}]}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (f"\n {FOX} \n", FOX),
        ("a\0b", "ab"),
        ("a \ud83c b", "a ? b"),
        ([{"type": "text", "text": "A red "}, {"type": "text", "text": "fox"}], "A red fox"),
        (["A red ", "fox"], "A red fox"),
        ([None, 5, {"text": None}, {"text": {"value": "x"}}, [FOX], {"text": FOX}], FOX),
    ],
)
def test_message_is_the_text_of_the_first_choice(content: Any, text: str) -> None:
    assert message_in(with_content(content)) == text


@pytest.mark.parametrize(
    "answer",
    [
        *(None, "text", [{}], {"choices": None}, {"choices": []}, {"choices": [None]}),
        *({"choices": [{"message": "text"}]}, {"choices": [{"message": [FOX]}]}),
        *({"choices": [{"message": {}}]}, {"error": "no"}),
        *map(with_content, [None, "", " \n", "\0", [], [{}], {}, 5, True]),
    ],
)
def test_answer_without_message_is_a_failure(answer: Any) -> None:
    assert str(failure_of(lambda: message_in(answer))) == "no message in the answer"


# --- any input ----------------------------------------------------------------------------------

PIECES = st.sampled_from(
    [
        *("<think>", "</think>", "<prompt>", "</prompt>", "**", "```", "\n", " ", '"', "“", "”"),
        *("Here is", "Sure, ", "enhanced ", "prompt", ":", "：", "提示词", "#", "I'm ", "sorry"),
        *("a", "fox. ", "红", "\0", "\ud83c", "<", "(", ")", "-"),
    ]
)
NAMES = st.sampled_from(["choices", "message", "content", "text", "type"])
JSON = any_json(PIECES | NAMES, 12)


@unhurried
@given(st.lists(PIECES, max_size=30).map("".join))
def test_any_text_is_a_prompt_or_a_failure(text: str) -> None:
    with contextlib.suppress(RewriteFailed):
        prompt = read_prompt(text)
        assert 5 <= len(prompt) <= 2000
        assert prompt == prompt.strip()
        assert not any(tag in prompt for tag in ("<think>", "</think>"))


@unhurried
@given(JSON | JSON.map(with_content))
def test_any_answer_is_a_message_or_a_failure(answer: Any) -> None:
    with contextlib.suppress(RewriteFailed):
        assert message_in(answer).encode("utf-8")


@pytest.mark.parametrize(
    "unit",
    [
        *("<think>", "</think>", "<think></think>", "<prompt>", "</prompt>", "<prompt>x"),
        *("**", "```", "```\n", "```a", "#", " ", "\n", '"', "`", "“", ":", "：", "a. ", "。"),
        *("Prompt: ", "enhanced ", "a-", "sure, ", "here's ", "提示词", "(", "I'm ", "as an ai "),
    ],
)
def test_long_runs_take_linear_time(unit: str) -> None:
    start = time.monotonic()
    begins, ends = ["", "Sure, here's", "**", "```"], ["", "x", "</think>", "<prompt>"]
    for begin, end in itertools.product(begins, ends):
        with contextlib.suppress(RewriteFailed):
            assert 5 <= len(read_prompt(begin + unit * (120_000 // len(unit)) + end)) <= 2000
    # Quadratic time would be minutes.
    assert time.monotonic() - start < 3


# --- over HTTP ----------------------------------------------------------------------------------


MakeLlm = Callable[..., Llm]
USUAL = {"temperature": 0.7, "max_tokens": 4096}


@pytest.fixture
def make_llm(state: State) -> MakeLlm:
    """Make the LLM of one worker; workers share only the state."""

    def make(url: str, timeout: float = 10.0, **more: Any) -> Llm:
        values: dict[str, Any] = {"model": "gpt-test", "token": "llm-token", "safety_attempts": 3}
        values["optimize_template"] = "Improve {ORIGINAL_PROMPT}, and only {ORIGINAL_PROMPT}."
        values["safety_template"] = "Make safe: {ORIGINAL_PROMPT}"
        settings = LlmSettings(**{"url": url, **values, **more})
        return Llm(settings, Upstream(), state, timeout=timeout)

    return make


def rewrite(llm: Llm, task: str = "optimise", prompt: str = "a fox", seconds: float = 10) -> str:
    return llm.rewrite(task, prompt, Deadline.after(seconds))


@pytest.fixture
def api(backend: ScriptedServer) -> ScriptedServer:
    backend.say(saying(f"<prompt>{FOX}</prompt>"))
    return backend


def test_llm_gets_the_filled_template_and_token(api: ScriptedServer, make_llm: MakeLlm) -> None:
    assert rewrite(make_llm(api.url)) == FOX
    [asked] = api.seen
    assert (asked.method, asked.target) == ("POST", "/v1/chat/completions")
    assert asked.headers["Authorization"] == "Bearer llm-token"
    messages = [{"role": "user", "content": "Improve a fox, and only a fox."}]
    assert asked.json == {"model": "gpt-test", "messages": messages} | USUAL


@pytest.mark.parametrize("prompt", ["红 {x} \\n", "a {ORIGINAL_PROMPT} b"])
def test_task_has_its_own_template(api: ScriptedServer, make_llm: MakeLlm, prompt: str) -> None:
    rewrite(make_llm(api.url), "rewrite", prompt)
    assert api.seen[0].json["messages"][0]["content"] == f"Make safe: {prompt}"


# As OpenAI answers for its reasoning models.
def unsupported(message: str, param: str, code: str) -> Say:
    return Say({"error": {"message": message, "param": param, "code": code}}, 400)


NO_MAX_TOKENS = unsupported("Unsupported parameter: 'max_tokens' is not supported with this model."
    " Use 'max_completion_tokens' instead.", "max_tokens", "unsupported_parameter")  # fmt: skip
NO_TEMPERATURE = unsupported("Unsupported value: 'temperature' does not support 0.7 with this"
    " model. Only the default (1) value is supported.",
    "temperature", "unsupported_value")  # fmt: skip


def reasoning_model(request: Seen) -> Say:
    if "max_tokens" in request.json:
        return NO_MAX_TOKENS
    return NO_TEMPERATURE if "temperature" in request.json else saying(FOX)


QWEN = "parameter.enable_thinking must be set to false for non-streaming calls"
STREAM = (
    b"\xef\xbb\xbf\n\n: ping\n\n"
    b'data: {"choices": [{"delta": {"role": "assistant", "content": "<prompt>A red fox in deep"}}]}'
    b'\n\ndata: {"choices": [{"delta": {"content": " snow, soft morning light</prompt>"}}]}\n\n'
    b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
)


def qwen(request: Seen) -> Say:
    is_off = request.json.get("enable_thinking") is False
    return saying(FOX) if is_off else Say({"error": {"message": QWEN}}, 400)


def codex(request: Seen) -> Say:
    rejection = Say({"detail": "Stream must be set to true"}, 400)
    return Say(STREAM) if request.json.get("stream") is True else rejection


@pytest.mark.parametrize(
    ("answer", "rejections", "sent"),
    [
        (reasoning_model, 2, {"max_completion_tokens": 4096}),
        (qwen, 1, USUAL | {"enable_thinking": False}),
        (codex, 1, USUAL | {"stream": True}),
    ],
)
def test_llm_is_asked_as_it_wants_from_then_on(
    api: ScriptedServer, make_llm: MakeLlm, answer: Answer, rejections: int, sent: dict[str, Any]
) -> None:
    api.say(answer)
    for prompt in ("a fox", "a hare"):
        assert rewrite(make_llm(api.url), prompt=prompt) == FOX
    taken = [asked.json for asked in api.seen[rejections:]]
    assert taken == [{**sent, "model": "gpt-test", "messages": body["messages"]} for body in taken]
    assert len(taken) == 2


def test_configured_parameters_add_or_remove_one(api: ScriptedServer, make_llm: MakeLlm) -> None:
    params = {"enable_thinking": False, "temperature": None, "max_tokens": 99}
    rewrite(make_llm(api.url, params=params))
    sent = {"model": "gpt-test", "enable_thinking": False, "max_tokens": 99}
    assert api.seen[0].json == sent | {"messages": api.seen[0].json["messages"]}


@pytest.mark.parametrize(
    ("say", "why"),
    [
        (Say({"choices": [{"error": {"code": 429, "message": "slow"}}]}), "rate limited"),
        (Say({"error": {"message": "secret detail"}}, 500), "down"),
        (Say({"error": {"message": "bad key", "code": "invalid_api_key"}}, 401), "unauthorised"),
        (Say("", 302, {"Location": "http://127.0.0.1:9/"}), "down"),
        (Say({"error": {"message": "no"}}), "rejected"),
        (Say({"error": {"code": "content_filter"}}, 400), "refused"),
        (Say("<html>welcome</html>"), "no message"),
        (Say("[" * 100_000), "no message"),
        (saying("no"), "no prompt"),
        (saying("I'm sorry, I can't."), "no prompt"),
        (Say(b" " * (LLM_LIMIT + 1)), "answer too large"),
    ],
)
def test_unusable_answer_is_a_failure(
    api: ScriptedServer, make_llm: MakeLlm, say: Say, why: str
) -> None:
    api.say(say)
    assert failure_of(lambda: rewrite(make_llm(api.url))).fault.why == why
    assert len(api.seen) == 1


def test_dead_or_silent_server_is_a_failure(raw_server: MakeRawServer, make_llm: MakeLlm) -> None:
    llm = make_llm(f"http://127.0.0.1:{free_port()}")
    assert failure_of(lambda: rewrite(llm)).fault.why == "unreachable"
    start, url = time.monotonic(), raw_server(hang).url
    for timeout, seconds in (0.2, 30.0), (30.0, 0.2):
        llm = make_llm(url, timeout=timeout)
        assert failure_of(partial(rewrite, llm, seconds=seconds)).fault.why == "timed out"
    assert time.monotonic() - start < 5


def test_fault_of_the_server_is_one_warning(
    api: ScriptedServer, make_llm: MakeLlm, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    llm = make_llm(api.url)
    api.say(Say({"error": {"message": "The model `x` does not exist"}}, 404))
    for prompt in "abc":
        failure_of(partial(rewrite, llm, prompt=prompt))
    assert llm.outages.recall()[llm.outages.key].why == "unknown model"
    api.say(saying(FOX))
    assert rewrite(llm, prompt="c") == FOX, "asked again at once"
    changes = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert changes == ["The LLM: unknown model (HTTP 404)", "The LLM works again"]


# --- what it does -------------------------------------------------------------------------------


def test_task_without_a_template_is_off(make_llm: MakeLlm) -> None:
    llm = make_llm("http://127.0.0.1:9", safety_template=None)
    assert (bool(llm.template("optimise")), llm.template("rewrite")) == (True, None)
    assert llm.safety_attempts == 0
    assert make_llm("http://127.0.0.1:9", optimize_template=None).safety_attempts == 3


def test_answer_is_reused_until_anything_changes(api: ScriptedServer, make_llm: MakeLlm) -> None:
    changes: list[dict[str, Any]] = [
        *({}, {"model": "other"}, {"optimize_template": "other {ORIGINAL_PROMPT}"}),
        *({"token": "other"}, {"params": {"top_p": 0.5}}),
    ]
    for change in changes * 2:
        assert rewrite(make_llm(api.url, **change)) == FOX
    assert len(api.seen) == 4, "the token changes nothing"
    rewrite(make_llm(api.url), "rewrite")
    rewrite(make_llm(api.url), prompt="a hare")
    rewrite(make_llm(api.url + "/other"))
    assert len(api.seen) == 7


@pytest.mark.parametrize(
    "say",
    [
        saying("I'm sorry, I can't."),
        saying("no"),
        Say({"error": {"code": "content_filter"}}, 400),
        Say({"choices": [{"finish_reason": "content_filter", "message": {"content": FOX}}]}),
    ],
)
def test_declined_prompt_is_asked_again_after_growing_pauses(
    api: ScriptedServer, make_llm: MakeLlm, clock: Clock, say: Say, caplog: pytest.LogCaptureFixture
) -> None:
    api.say(say)
    calls = []
    for pause in (0.0, 1.9, 0.2, 3.9, 0.2, 1.0):
        clock.now += pause
        why = failure_of(lambda: rewrite(make_llm(api.url))).fault.why
        assert why in ("no prompt", "refused")
        calls.append(len(api.seen))
    assert calls == [1, 1, 2, 2, 3, 3]
    failure_of(lambda: rewrite(make_llm(api.url), prompt="a hare"))
    failure_of(lambda: rewrite(make_llm(api.url), "rewrite"))
    assert len(api.seen) == 5, "another prompt or task is asked for"
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [], "it is no fault of the server"


def test_declined_prompt_costs_at_most_25_calls_an_hour(
    api: ScriptedServer, make_llm: MakeLlm, clock: Clock
) -> None:
    api.say(saying("I'm sorry, I can't."))
    for _ in range(360):
        failure_of(lambda: rewrite(make_llm(api.url)))
        clock.now += 10
    assert len(api.seen) <= 25
