"""Prompts rewritten by an LLM: for quality before drawing, for safety after a refusal."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, ClassVar

from dialect.endpoint import Endpoint, clean_text
from dialect.judging import Fault, Outcome
from dialect.learning import Learned
from drawing.cooldowns import Cooldown, Cooldowns
from metrics import OFF, Metrics
from settings.servers import PLACEHOLDER, LlmSettings
from storage import Note
from storage.memory import Memory
from upstream.client import JSON_LIMIT, Deadline, Upstream, UpstreamError, Why

MIN_LENGTH = 5
MAX_LENGTH = 2000
# Room for an answer of MAX_LENGTH and for the reasoning that some models write before it.
MAX_TOKENS = 4096
ANSWER_TTL = 30 * 86400.0


_NO_MESSAGE = Fault(Outcome.FAILED, "no message")


class RewriteFailed(Exception):
    """The LLM gave no usable prompt. `why` is a word as of a backend's fault."""

    def __init__(self, reason: str, why: str = "no prompt") -> None:
        super().__init__(reason)
        self.why = why


class _Unanswered(RewriteFailed):
    """The server gave no message, for which `fault` says what is to blame."""

    def __init__(self, reason: str, fault: Fault) -> None:
        super().__init__(reason, fault.why)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Rewritten(Note):
    """A rewritten prompt: the same prompt in three sizes costs one call."""

    kind: ClassVar[str] = "answer"

    prompt: str


class Llm:
    """One chat-completions API with the templates that are switched on."""

    def __init__(
        self, settings: LlmSettings, upstream: Upstream, *, timeout: float, metrics: Metrics = OFF
    ) -> None:
        self.settings = settings
        self.timeout = timeout
        self.endpoint = Endpoint(upstream, settings.url, "chat/completions", settings.token)
        self.metrics = metrics
        self.cooldowns = Cooldowns("The LLM", is_avoided=False)

    def template(self, task: str) -> str | None:
        """Return the template of `task` ("optimise" or "rewrite"), None where it is off."""
        settings = self.settings
        return settings.optimize_template if task == "optimise" else settings.safety_template

    @property
    def safety_attempts(self) -> int:
        """How often a refused prompt may be rewritten."""
        return self.settings.safety_attempts if self.settings.safety_template else 0

    def answer_key(self, task: str, prompt: str) -> str:
        """Return the key of a remembered answer: it changes with the model and the template."""
        parts = (task, self.endpoint.url, self.settings.model, self.template(task) or "", prompt)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def wanted(self, prompt: str) -> list[tuple[type[Note], str]]:
        """Return the notes that rewriting `prompt` reads."""
        of_model = self.endpoint.note_key(self.settings.model)
        wanted: list[tuple[type[Note], str]] = [
            (Learned, of_model),
            (Cooldown, self.endpoint.note_key()),
        ]
        if self.template("optimise"):
            wanted.append((Rewritten, self.answer_key("optimise", prompt)))
        return wanted

    def rewrite(self, task: str, prompt: str, deadline: Deadline, memory: Memory) -> str:
        """Return `prompt` rewritten as the template of `task` says. Raises RewriteFailed.

        A fault of the server is counted, for /status and one WARNING; an answer that is an
        apology, or a refusal, is about the prompt.
        """
        with self.metrics.llm_call(task):
            return self._rewrite(task, prompt, deadline, memory)

    def _rewrite(self, task: str, prompt: str, deadline: Deadline, memory: Memory) -> str:
        key = self.endpoint.note_key()
        try:
            message = self._ask(task, prompt, deadline.within(self.timeout), memory)
        except _Unanswered as error:
            if error.fault.outcome is not Outcome.REFUSED:
                picture = self.answer_key(task, prompt)
                self.cooldowns.count(memory, key, error.fault, str(error), picture)
            raise
        self.cooldowns.answered(memory, key)
        return read_prompt(message)

    def _ask(self, task: str, prompt: str, deadline: Deadline, memory: Memory) -> str:
        template = self.template(task) or PLACEHOLDER
        body = {
            "model": self.settings.model,
            "messages": [{"role": "user", "content": template.replace(PLACEHOLDER, prompt)}],
            "temperature": 0.7,
            "max_tokens": MAX_TOKENS,
        }
        try:
            answer = self.endpoint.ask(body, memory=memory, deadline=deadline, limit=JSON_LIMIT)
        except UpstreamError as error:
            reason = str(error)
            if error.why is Why.TIMED_OUT:
                reason = f"no answer within {self.timeout:g} s (LLM_TIMEOUT)"
            raise _Unanswered(reason, Fault(Outcome.FAILED, error.why)) from error
        if answer.fault is not None:
            raise _Unanswered(f"{answer.fault.why} (HTTP {answer.reply.status})", answer.fault)
        return message_in(answer.json)


def message_in(answer: Any) -> str:
    """Return the text of a chat completion's first choice. Raises RewriteFailed."""
    try:
        content = answer["choices"][0]["message"]["content"]
    except (TypeError, KeyError, IndexError) as error:
        raise _Unanswered("no message in the answer", _NO_MESSAGE) from error
    if isinstance(content, list):
        parts = (part.get("text") if isinstance(part, dict) else part for part in content)
        content = "".join(part for part in parts if isinstance(part, str))
    text = clean_text(content)
    if text is None:
        raise _Unanswered("the message is empty", _NO_MESSAGE)
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
    """Drop `<think>…</think>`, also where the opening or the closing tag is missing."""
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
