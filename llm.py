"""Prompts rewritten by an LLM: for quality before drawing, for safety after a refusal."""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

from dialect.endpoint import Endpoint, clean_text
from dialect.judging import Fault, Outcome
from drawing.cooldowns import Outages
from drawing.verdict import FAILURE_TTL, FIRST_FAILURE_SECONDS, MAX_FAILURE_SECONDS
from metrics import OFF, Metrics
from settings.servers import PLACEHOLDER, LlmSettings
from storage import LockTimeout, Note, Unavailable
from storage.state import State
from storage.waiting import SingleFlight
from upstream.client import JSON_LIMIT, Deadline, Upstream, UpstreamError, Why

MIN_LENGTH = 5
MAX_LENGTH = 2000
# Room for an answer of MAX_LENGTH and for the reasoning that some models write before it.
MAX_TOKENS = 4096
# In a stream, an event of a few hundred bytes carries each token.
LLM_LIMIT = 4 * JSON_LIMIT
ANSWER_TTL = 30 * 86400.0

_NO_PROMPT = Fault(Outcome.REFUSED, "no prompt")
_NO_MESSAGE = Fault(Outcome.FAILED, "no message")


class RewriteFailed(Exception):
    """The LLM gave no usable prompt, because of `fault`.

    The outcome is *refused* if it declined this prompt, with an apology for instance.
    """

    def __init__(self, reason: str, fault: Fault = _NO_PROMPT) -> None:
        super().__init__(reason)
        self.fault = fault

    @property
    def why(self) -> str:
        """A word of the list that backends' faults use."""
        return self.fault.why


@dataclass(frozen=True, slots=True)
class Rewritten(Note):
    """A rewritten prompt: the same prompt in three sizes costs one call."""

    kind: ClassVar[str] = "answer"

    prompt: str


@dataclass(frozen=True, slots=True)
class Declined(Note):
    """A prompt that the LLM declined to rewrite; it is not asked again for `seconds`."""

    kind: ClassVar[str] = "declined"

    reason: str
    why: str
    seconds: float

    @classmethod
    def recall(cls, state: State, key: str) -> RewriteFailed | None:
        """Return the failure while it is remembered. Raises Unavailable."""
        found = state.recall(cls, key)
        if found is None or found.age >= found.note.seconds:
            return None
        return RewriteFailed(found.note.reason, Fault(Outcome.REFUSED, found.note.why))

    @classmethod
    def remember(cls, state: State, key: str, failed: RewriteFailed) -> None:
        """Remember a failure for twice as long as the one before."""
        seconds = FIRST_FAILURE_SECONDS
        with suppress(Unavailable):
            if before := state.recall(cls, key):
                seconds = min(MAX_FAILURE_SECONDS, 2 * before.note.seconds)
        state.try_remember(cls(str(failed), failed.why, seconds), key, FAILURE_TTL)


class Llm:
    """One chat-completions API, with the templates that are enabled."""

    def __init__(
        self,
        settings: LlmSettings,
        upstream: Upstream,
        state: State,
        *,
        timeout: float,
        metrics: Metrics = OFF,
    ) -> None:
        self.settings = settings
        self.state = state
        self.timeout = timeout
        self.metrics = metrics
        self.endpoint = Endpoint(upstream, state, settings.url, "chat/completions", settings.token)
        self.outages = Outages(
            state, self.endpoint.outage_key(), "The LLM", is_avoided=False, model=settings.model
        )
        self._answers: SingleFlight[str] = SingleFlight(state.hold)

    def template(self, task: str) -> str | None:
        """Return the template of `task` ("optimise" or "rewrite"), or None if the task is off."""
        settings = self.settings
        return settings.optimize_template if task == "optimise" else settings.safety_template

    @property
    def safety_attempts(self) -> int:
        """The number of times that a refused prompt may be rewritten."""
        return self.settings.safety_attempts if self.settings.safety_template else 0

    def rewrite(self, task: str, prompt: str, deadline: Deadline) -> str:
        """Return `prompt` rewritten with the template of `task`, from an earlier call if possible.

        Raises RewriteFailed and Unavailable.
        """
        key = self._key(task, prompt)
        bounded = deadline.within(self.timeout)

        def work() -> str:
            if known := self.state.recall(Rewritten, key):
                return known.note.prompt
            if failed := Declined.recall(self.state, key):
                raise failed
            try:
                answer = self._rewrite(task, prompt, key, bounded)
            except RewriteFailed as error:
                if error.fault.outcome is Outcome.REFUSED:
                    Declined.remember(self.state, key, error)
                raise
            self.state.try_remember(Rewritten(answer), key, ANSWER_TTL)
            return answer

        try:
            return self._answers.run(key, bounded.remaining(), work)
        except LockTimeout as error:
            raise self._too_late() from error

    def _key(self, task: str, prompt: str) -> str:
        """Return a key that covers everything that affects the answer."""
        settings = self.settings
        parts = [task, self.endpoint.url, settings.model, self.template(task) or "", prompt]
        if settings.params:
            parts.append(json.dumps(settings.params, sort_keys=True))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def _rewrite(self, task: str, prompt: str, key: str, deadline: Deadline) -> str:
        """Ask the LLM. A fault of the server is counted, for /status and one WARNING.

        An apology or a refusal is the prompt's fault, and is not counted.
        """
        known = self.outages.recall()
        with self.metrics.llm_call(task):
            try:
                message = self._ask(task, prompt, deadline)
            except RewriteFailed as error:
                if error.fault.outcome is not Outcome.REFUSED:
                    self.outages.count(known, error.fault, str(error), key)
                raise
            self.outages.end(known)
            return read_prompt(message)

    def _ask(self, task: str, prompt: str, deadline: Deadline) -> str:
        template = self.template(task) or PLACEHOLDER
        fields = {"model": self.settings.model, "temperature": 0.7, "max_tokens": MAX_TOKENS}
        sent = {
            name: value
            for name, value in (fields | {**self.settings.params}).items()
            if value is not None
        }
        messages = [{"role": "user", "content": template.replace(PLACEHOLDER, prompt)}]
        try:
            answer = self.endpoint.ask(
                {**sent, "messages": messages}, deadline=deadline, limit=LLM_LIMIT
            )
        except UpstreamError as error:
            if error.why is Why.TIMED_OUT:
                raise self._too_late() from error
            raise RewriteFailed(str(error), Fault(Outcome.FAILED, error.why)) from error
        if answer.fault is not None:
            raise RewriteFailed(f"{answer.fault.why} (HTTP {answer.reply.status})", answer.fault)
        return message_in(answer.json)

    def _too_late(self) -> RewriteFailed:
        reason = f"no answer within {self.timeout:g} s (LLM_TIMEOUT)"
        return RewriteFailed(reason, Fault(Outcome.FAILED, Why.TIMED_OUT))


def message_in(answer: Any) -> str:
    """Return the text of a chat completion's first choice. Raises RewriteFailed."""
    try:
        choice = answer["choices"][0]
        content = choice["message"]["content"]
    except (TypeError, KeyError, IndexError) as error:
        raise RewriteFailed("no message in the answer", _NO_MESSAGE) from error
    if choice.get("finish_reason") == "content_filter":
        raise RewriteFailed("its moderation stopped the answer", Fault(Outcome.REFUSED, "refused"))
    if isinstance(content, list):
        parts = (part.get("text") if isinstance(part, dict) else part for part in content)
        content = "".join(part for part in parts if isinstance(part, str))
    text = clean_text(content)
    if text is None:
        raise RewriteFailed("the message is empty", _NO_MESSAGE)
    return text


def read_prompt(text: str) -> str:
    """Return the prompt in an LLM's message, 5 to 2,000 characters long. Raises RewriteFailed.

    Our templates ask for `<prompt>…</prompt>`; the last one that is not empty counts, even if it
    is not closed. Without one, the message is the prompt, unless it is an apology. A longer
    prompt is cut, at the end of a sentence if possible.
    """
    before, *tagged = (_CLOSE.split(part)[0] for part in _OPEN.split(_without_thoughts(text)))
    tagged = [part for part in tagged if part.strip()]
    prompt = _cut(_unwrap(tagged[-1] if tagged else before))
    if len(prompt) < MIN_LENGTH:
        raise RewriteFailed("the prompt is too short")
    if not tagged and prompt.lower().replace("’", "'").startswith(_APOLOGIES):
        raise RewriteFailed("an apology instead of a prompt")
    return prompt


_OPEN = re.compile("<prompt>", re.IGNORECASE)
_CLOSE = re.compile("</prompt>", re.IGNORECASE)
_THINK = re.compile("(</?think(?:ing)?>)", re.IGNORECASE)
_APOLOGIES = (
    *("i'm sorry", "i'm very sorry", "i am sorry", "i am very sorry", "sorry,", "my apologies"),
    *("i apologize", "i apologise", "i can't", "i cannot", "i won't", "i'm unable", "i am unable"),
    *("i'm not able", "i am not able", "i'm afraid i", "unfortunately, i", "as an ai"),
    *("抱歉", "很抱歉", "非常抱歉", "对不起", "我无法", "我不能"),
)
_LEAD_IN = re.compile(
    r"\A[#*]{0,6}\s?(?:(?:sure|certainly|of course|okay|好的|当然)[,.!，！]\s?)?"
    r"(?:here(?:['’]s| is| are| you go)\b[^\n:：]{0,80}|以下是[^\n:：]{0,20}"
    r"|(?:the |your )?(?:(?:enhanced|improved|optimi[sz]ed|rewritten|revised|final|new) )?prompt"
    r"|[^\n:：，,]{0,10}提示词)"
    r"\*{0,2}[:：]\*{0,2}\s*",
    re.IGNORECASE,
)
_FENCE = re.compile(r"```\w*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_MARKS = (
    *(("```", "```"), ("**", "**"), ('"', '"'), ("'", "'"), ("`", "`")),
    *(("“", "”"), ("‘", "’"), ("「", "」"), ("«", "»")),
)
_MAX_LAYERS = 10
_SENTENCE_END = re.compile(r"[.!?](?=\s)|[。！？]")


def _without_thoughts(text: str) -> str:
    """Drop `<think>…</think>`, even if the opening or the closing tag is missing."""
    answer, *rest = _THINK.split(text)
    is_thinking = False
    for tag, part in zip(rest[::2], rest[1::2], strict=True):
        closes = tag.startswith("</")
        if closes and not is_thinking:
            answer = ""  # the text so far was thoughts
        if closes and part.strip():
            answer = part
        is_thinking = not closes
    return answer


def _unwrap(text: str) -> str:
    """Take the prompt out of a code fence, then remove lead-ins, quotes and bold marks."""
    fence = _FENCE.search(text)
    text = (fence[1] if fence else text).strip()
    for _ in range(_MAX_LAYERS):
        inner = _LEAD_IN.sub("", _without_marks(text))
        if inner == text:
            break
        text = inner
    return text


def _without_marks(text: str) -> str:
    """Remove a pair of marks around `text`, but not from `"this" and "that"`."""
    for left, right in _MARKS:
        inner = text.removeprefix(left).removesuffix(right)
        if len(inner) == len(text) - len(left) - len(right) and left not in inner:
            return inner.strip()
    return text


def _cut(prompt: str) -> str:
    """Cut a prompt to MAX_LENGTH, at the last sentence end in the second half of that."""
    if len(prompt) <= MAX_LENGTH:
        return prompt
    found = _SENTENCE_END.finditer(prompt, MAX_LENGTH // 2, MAX_LENGTH + 1)
    ends = [match.end() for match in found if match.end() <= MAX_LENGTH]
    return prompt[: ends[-1]] if ends else prompt[:MAX_LENGTH].rstrip()
