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
    """Return the text of the first choice of a chat completion. Raises RewriteFailed."""
    try:
        content = answer["choices"][0]["message"]["content"]
    except (TypeError, KeyError, IndexError) as error:
        raise RewriteFailed("its answer holds no message") from error
    if isinstance(content, list):
        parts = (part.get("text") if isinstance(part, dict) else part for part in content)
        content = "".join(part for part in parts if isinstance(part, str))
    text = clean_text(content)
    if text is None:
        raise RewriteFailed("its message is empty")
    return text


def read_prompt(text: str) -> str:
    """Read the prompt out of what an LLM wrote around it.

    Thoughts go first, even where they hold a `<prompt>` tag. Then it is what stands in the last
    `<prompt>` tag, closed or only opened; else the text without lead-in, fence, quotes and bold
    marks. Raises RewriteFailed under 5 characters or where it apologises instead; over 2,000 are
    cut, at a sentence's end where one is near.
    """
    text = _without_thoughts(text)
    first, *rest = (re.split(r"(?i)</prompt>", part)[0] for part in re.split(r"(?i)<prompt>", text))
    tagged = [part for part in rest if part.strip()]
    prompt = _unwrapped(tagged[-1] if tagged else first)
    if len(prompt) < MIN_LENGTH:
        raise RewriteFailed("its prompt is too short to be one")
    if not tagged and _APOLOGY.match(prompt):
        raise RewriteFailed("it would not write a prompt")
    return _cut(prompt)


def _without_thoughts(text: str) -> str:
    """Drop what a reasoning model thought: `<think>…</think>`, never closed, or only closed."""
    answer, *rest = re.split(r"(?i)(</?think(?:ing)?>)", text)
    is_thinking = False
    for tag, part in zip(rest[::2], rest[1::2], strict=True):
        closes = tag.startswith("</")
        if closes and not is_thinking:
            answer = ""  # what stood before it were thoughts too
        is_thinking = not closes
        if closes and part.strip():
            answer = part
    return answer


_APOLOGY = re.compile(
    r"(?:(?:i['’]?m|i am|we['’]re) (?:very |so )?(?:sorry|afraid|unable to|not able to)\b"
    r"|(?:very |so )?sorry\b|unable to\b|i apologi[sz]e\b|my apologies\b"
    r"|(?:unfortunately|as an ai)\b[^\n.]{0,40}\bi\b"
    r"|i (?:can['’]?t|cannot|can not|won['’]?t)\b|(?:很|非常|十分)?抱歉|对不起|我无法|我不能)",
    re.IGNORECASE,
)
_LEAD_IN = re.compile(
    r"[#*]{0,6}\s*"
    r"(?:(?:sure|certainly|of course|okay|ok|absolutely)\b[^\n:：]{0,80}[:：!.,]\s*"
    r"|(?:好的|好|当然|當然|可以|没问题|沒問題)[，,。.！!]\s*)?"
    r"(?:here(?:['’]s| is| are| you (?:go|are))\b[^\n:：]{0,80}"
    r"|(?:the |your |my |an? )?"
    # A few words may follow, but not those that say what is in a picture ("a new sign with the").
    r"(?:(?:enhanced|improved|optimi[sz]ed|re-?written|revised|refined|safer?|final|new|updated"
    r"|image|modified|better|compliant|alternative)"
    r"(?:[ -](?!(?:with|in|on|at|by|from|under|showing|saying|of an?)\b)\w{1,20}){0,5}?[ -])?"
    r"(?:prompt|version|rewrite|description)(?: \([^)\n]{0,40}\))?"
    r"|[^\n:：，,]{0,12}(?:提示词|提示詞|改写|改寫|优化后|優化後|描述)[^\n:：，,]{0,8})"
    r"\s{0,4}\*{0,3}[:：]\*{0,3}\s*",
    re.IGNORECASE,
)
_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "「": "」", "«": "»"}


def _unwrapped(text: str) -> str:
    """Take off what stands around a prompt, a layer at a time."""
    text = text.strip()[: 10 * MAX_LENGTH]
    if fence := re.search(r"```[a-zA-Z]*[ \t]*\n(.*?)(?:```|$)", text, re.DOTALL):
        text = fence[1].strip()
    for _ in range(10):
        before = text
        text = _LEAD_IN.sub("", text, count=1) if _LEAD_IN.match(text) else text
        for mark in ("```", "**"):
            inner = text.removeprefix(mark).removesuffix(mark)
            # Inside, the marks are the prompt's own: "**Fog** over **Paris**".
            text = text if mark in inner else inner.strip()
        if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
            text = text[1:-1].strip()
        if text == before:
            break
    return text


def _cut(prompt: str) -> str:
    if len(prompt) <= MAX_LENGTH:
        return prompt
    kept = prompt[:MAX_LENGTH]
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s)|[。！？]", prompt[: MAX_LENGTH + 1])]
    near = [end for end in ends if MAX_LENGTH // 2 <= end <= MAX_LENGTH]
    return kept[: near[-1]] if near else kept.rstrip()
