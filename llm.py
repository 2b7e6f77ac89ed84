"""Prompts rewritten by an LLM: for quality before drawing, for safety after a refusal."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from config import PLACEHOLDER, LlmSettings
from upstream import openai as dialect
from upstream.client import JSON_LIMIT, Deadline, Upstream, UpstreamError
from upstream.openai import clean_text

MIN_LENGTH = 5
MAX_LENGTH = 2000
# Room for an answer of MAX_LENGTH and for the thoughts of a model that thinks aloud.
MAX_TOKENS = 4096

_OPTIONAL: dialect.Optional = {
    "temperature": {},
    "max_tokens": {"max_completion_tokens": {"max_completion_tokens": MAX_TOKENS}},
}


class RewriteFailed(Exception):
    """The LLM gave no usable prompt."""


class Llm:
    """One chat-completions API with the templates that are switched on."""

    def __init__(
        self, settings: LlmSettings, upstream: Upstream, notes: dialect.Notes, *, timeout: float
    ) -> None:
        self.model = settings.model
        self.templates = {
            "optimise": settings.optimize_template,
            "rewrite": settings.safety_template,
        }
        self.safety_attempts = settings.safety_attempts if settings.safety_template else 0
        self.endpoint = dialect.Endpoint(
            upstream,
            settings.url,
            "chat/completions",
            token=settings.token,
            timeout=timeout,
            notes=notes,
        )

    def does(self, task: str) -> bool:
        """Say whether `task` ("optimise" or "rewrite") is switched on."""
        return self.templates[task] is not None

    def answer_key(self, task: str, prompt: str) -> str:
        """Return what an answer is kept under: it changes with the model and the template."""
        parts = (task, self.endpoint.url, self.model, self.templates[task] or "", prompt)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def rewrite(self, task: str, prompt: str, deadline: Deadline) -> str:
        """Return `prompt` as the template of `task` has it rewritten. Raises RewriteFailed."""
        template = self.templates[task] or PLACEHOLDER
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": template.replace(PLACEHOLDER, prompt)}],
            "temperature": 0.7,
            "max_tokens": MAX_TOKENS,
        }
        try:
            answer = self.endpoint.ask(body, _OPTIONAL, deadline=deadline, limit=JSON_LIMIT)
        except UpstreamError as error:
            raise RewriteFailed(str(error)) from error
        if answer.error is not None:
            raise RewriteFailed(f"it answered {answer.error.status}")
        return read_prompt(message_in(answer.json))


def message_in(answer: Any) -> str:
    """Return the text of a chat completion's first choice. Raises RewriteFailed."""
    try:
        content = answer["choices"][0]["message"]["content"]
    except (TypeError, KeyError, IndexError) as error:
        raise RewriteFailed("no message in the answer") from error
    if isinstance(content, list):
        parts = (part.get("text") if isinstance(part, dict) else part for part in content)
        content = "".join(part for part in parts if isinstance(part, str))
    text = clean_text(content)
    if text is None:
        raise RewriteFailed("the message is empty")
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
