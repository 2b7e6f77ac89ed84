"""Prompts rewritten by an LLM: for quality before drawing, for safety after a refusal."""

import hashlib
import json
import re
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from dialect.doors import CHAT
from dialect.endpoint import Endpoint, clean_text
from dialect.envelope import first_choice, message_of
from dialect.judging import Fault, Outcome
from drawing.cooldowns import Outages
from drawing.verdict import FAILURE_TTL, FIRST_FAILURE_SECONDS, MAX_FAILURE_SECONDS
from metrics import OFF, Metrics
from settings.servers import PLACEHOLDER, LlmSettings
from storage import LockTimeout, Note
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


@dataclass(frozen=True, slots=True)
class Rewritten(Note):
    """What the LLM made of a prompt: the same prompt in three sizes costs one call.

    Where it declined, `prompt` is empty, and it is not asked again for `seconds`.
    """

    kind: ClassVar[str] = "answer"

    prompt: str
    reason: str = ""
    why: str = ""
    seconds: float = 0.0


@dataclass
class Llm:
    """One chat-completions API, with the templates that are enabled."""

    settings: LlmSettings
    upstream: Upstream
    state: State
    _: KW_ONLY
    timeout: float
    metrics: Metrics = OFF

    def __post_init__(self) -> None:
        settings, state = self.settings, self.state
        self.endpoint = Endpoint(self.upstream, state, settings.url, CHAT, settings.token)
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

        try:
            return self._answers.run(
                key, bounded.remaining(), lambda: self._recall_or_ask(task, prompt, key, bounded)
            )
        except LockTimeout as error:
            raise self._too_late() from error

    def _recall_or_ask(self, task: str, prompt: str, key: str, deadline: Deadline) -> str:
        found, seconds = self.state.recall(Rewritten, key), FIRST_FAILURE_SECONDS
        if found and found.note.prompt:
            return found.note.prompt
        if found and found.age < found.note.seconds:
            raise RewriteFailed(found.note.reason, Fault(Outcome.REFUSED, found.note.why))
        try:
            answer = self._ask(task, prompt, key, deadline)
        except RewriteFailed as error:
            if error.fault.outcome is Outcome.REFUSED:
                if found:
                    seconds = min(MAX_FAILURE_SECONDS, 2 * found.note.seconds)
                declined = Rewritten("", str(error), error.fault.why, seconds)
                self.state.try_remember(declined, key, FAILURE_TTL)
            raise
        self.state.try_remember(Rewritten(answer), key, ANSWER_TTL)
        return answer

    def _key(self, task: str, prompt: str) -> str:
        """Return a key that covers everything that affects the answer."""
        settings = self.settings
        parts = [task, self.endpoint.url, settings.model, self.template(task) or "", prompt]
        if settings.params:
            parts.append(json.dumps(settings.params, sort_keys=True))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def _ask(self, task: str, prompt: str, key: str, deadline: Deadline) -> str:
        """Ask the LLM. A fault of the server is counted, for /status and one WARNING.

        An apology or a refusal is the prompt's fault, and is not counted.
        """
        known = self.outages.recall()
        with self.metrics.llm_call(task):
            try:
                message = self._message(self._body(task, prompt), deadline)
            except RewriteFailed as error:
                if error.fault.outcome is not Outcome.REFUSED:
                    self.outages.count(known, error.fault, str(error), key)
                raise
            self.outages.end(known)
            return read_prompt(message)

    def _body(self, task: str, prompt: str) -> dict[str, Any]:
        template = self.template(task) or PLACEHOLDER
        fields = {"model": self.settings.model, "temperature": 0.7, "max_tokens": MAX_TOKENS}
        fields |= self.settings.params
        messages = [{"role": "user", "content": template.replace(PLACEHOLDER, prompt)}]
        sent = {name: value for name, value in fields.items() if value is not None}
        return {**sent, "messages": messages}

    def _message(self, body: dict[str, Any], deadline: Deadline) -> str:
        try:
            answer = self.endpoint.ask(body, deadline=deadline, limit=LLM_LIMIT)
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
    if first_choice(answer).get("finish_reason") == "content_filter":
        raise RewriteFailed("its moderation stopped the answer", Fault(Outcome.REFUSED, "refused"))
    content = message_of(answer).get("content")
    if isinstance(content, list):
        parts = (part.get("text") if isinstance(part, dict) else part for part in content)
        content = "".join(part for part in parts if isinstance(part, str))
    text = clean_text(content)
    if text is None:
        raise RewriteFailed("no message in the answer", _NO_MESSAGE)
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


_OPEN = re.compile("(?i)<prompt>")
_CLOSE = re.compile("(?i)</prompt>")
_THOUGHTS = re.compile(r"(?is)<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)")
_END_OF_THOUGHTS = re.compile("(?i)</think(?:ing)?>")
_APOLOGIES = (
    *("i'm sorry", "i'm very sorry", "i am sorry", "i am very sorry", "sorry,", "my apologies"),
    *("i apologize", "i apologise", "i can't", "i cannot", "i won't", "i'm unable", "i am unable"),
    *("i'm not able", "i am not able", "i'm afraid i", "unfortunately, i", "as an ai"),
    *("抱歉", "很抱歉", "非常抱歉", "对不起", "我无法", "我不能"),
)
_LEAD_IN = re.compile(
    r"(?i)\A[#*]{0,6}\s?(?:(?:sure|certainly|of course|okay|好的|当然)[,.!，！]\s?)?"
    r"(?:here(?:['’]s| is| are| you go)\b[^\n:：]{0,80}|以下是[^\n:：]{0,20}"
    r"|(?:the |your )?(?:(?:enhanced|improved|optimi[sz]ed|rewritten|revised|final|new) )?prompt"
    r"|[^\n:：，,]{0,10}提示词)"
    r"\*{0,2}[:：]\*{0,2}\s*"
)
_FENCE = re.compile(r"```\w*[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
_MARKS = (
    *(("```", "```"), ("**", "**"), ('"', '"'), ("'", "'"), ("`", "`")),
    *(("“", "”"), ("‘", "’"), ("「", "」"), ("«", "»")),
)
_MAX_LAYERS = 10
_SENTENCE_END = re.compile(r"[.!?](?=\s)|[。！？]")


def _without_thoughts(text: str) -> str:
    """Return what follows the last `<think>…</think>`, or comes before it if nothing follows.

    The opening or the closing tag may be missing.
    """
    parts = [part for part in _THOUGHTS.split(text) if part.strip()] or [""]
    first, *others = _END_OF_THOUGHTS.split(parts[-1])
    return next((part for part in reversed(others) if part.strip()), "" if others else first)


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
