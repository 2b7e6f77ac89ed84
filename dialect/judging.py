"""The meaning of an error answer, decided only here: refused, rejected or failed.

The signs are those that vendors really send; tests/test_judging.py has a row for each.
"""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from dialect.error_text import ErrorText, claimed_status, complaint
from dialect.moderation import is_refusal

# A rejection that a shorter prompt avoids; it says nothing of the backend.
TOO_LONG = "prompt too long"


class Outcome(StrEnum):
    """How one call to a backend ended."""

    DRAWN = "drawn"
    REFUSED = "refused"  # moderation refused the prompt
    REJECTED = "rejected"  # this request is wrong for this backend
    FAILED = "failed"  # the backend, its account or the network


@dataclass(frozen=True, slots=True)
class Fault:
    """The meaning of an error. `why` is a word for /status, error stages and the log.

    `is_of_model`: only the model is at fault, and others may work. `is_of_account`: the operator
    has to act, so retrying soon is useless. `wait`: seconds that the server asked for. `detail`:
    the vendor's own words, for the administrator alone.
    """

    outcome: Outcome
    why: str
    is_of_model: bool = False
    is_of_account: bool = False
    wait: float | None = None
    detail: str = field(default="", compare=False)


# LiteLLM without a database answers any key but its own with "No connected db."
_KEY_WORDS = re.compile(
    r"api.?key|authenticat|unauthori[sz]ed|invalid.{0,12}\btoken|\btoken.{0,20}(?:invalid|expired)"
    r"|must be verified|verif(?:y|ied|ication).{0,30}organi[sz]ation|(?<!model )access denied"
    r"|permission.denied|invalid credentials|no_db_connection"
    r"|\b(?:location|country|region)[^.\n]{0,30} not supported"
    r"|(?:account|organi[sz]ation|resource)\b.{0,40}(?:suspended|disabled|deactivated|banned|blocked)"
    r"|令牌(?!.{0,6}(?:额度|模型))|token.{0,6}过期|未授权|密钥|账[户号].{0,10}(?:封禁|冻结|禁用)|实名|鉴权",
    re.IGNORECASE,
)
_CREDIT_WORDS = re.compile(
    r"billing|quota|(?<!pixel )budget|payment.required|arrear|overdue"
    r"|insufficient.{0,20}(?:funds|balance|credit)"
    r"|balance.{0,20}(?:insufficient|too low|not enough)"
    r"|(?:out of|no|not enough|exceeded your) credits?|credits? (?:limit|exhausted|depleted)"
    r"|spend(?:ing|) (?:limit|cap)"
    r"|余额|额度|欠费|充值",
    re.IGNORECASE,
)
_RATE_WORDS = re.compile(
    r"rate.?limit|too many requests|overloaded|请求过于频繁|速率限制|并发", re.IGNORECASE
)
# Said only of unknown models; gateways say it even with a 401, 403 or 503.
_UNKNOWN_MODEL = re.compile(
    r"model_?not_?(?:found|exist)|no available channel|no endpoints found|not supported model"
    r"|access(?: to)?(?: the)? model|model (?:is )?disabled|model.?access.?denied"
    r"|无可用渠道|没有可用.{0,4}渠道|无权(?:使用|访问).{0,4}模型",
    re.IGNORECASE,
)
# A model that "does not support the size" does exist.
_OTHERS = r"\b(?:size|parameter|argument|resolution|value|ratio|width|height)"
_MODEL_WORDS = re.compile(
    rf"model(?![^.\n]{{0,40}}{_OTHERS}[^.\n]{{0,30}}\bnot\b).{{0,80}}?"
    r"(?:not.(?:found|exist|available|recogni[sz]ed|loaded)|does.?n.t exist|unavailable"
    rf"|not.support(?![^.\n]{{0,40}}{_OTHERS})"
    r"|deprecated|retired|decommissioned|has been shut down)"
    r"|(?:invalid|unknown|unsupported|unrecogni[sz]ed|no such|nonexistent) model"
    r"|not a valid model|unknown_model|invalid_model|Model[A-Za-z]{0,12}Not(?:Found|Open)"
    r"|not activated the model|(?:provide|specify) (?:a |the )model|model (?:\w+ )?is required"
    r"|模型[^,，。]{0,40}(?:不存在|未找到|未开通|已下线|不可用)|不支持.{0,8}模型"
    r"|模型[^,，。]{0,40}不支持(?!.{0,24}(?:尺寸|参数|分辨率|大小|比例))",
    re.IGNORECASE | re.DOTALL,
)
_STATUS_WORDS = {
    401: "unauthorised",
    402: "out of credit",
    403: "unauthorised",
    404: "not found",
    407: "unreachable",  # a proxy's, for an http:// URL
    408: "timed out",
    429: "rate limited",
    504: "timed out",
    524: "timed out",
}
_ACCOUNT_WORDS = frozenset(("unauthorised", "out of credit", "not found", "blocked by Cloudflare"))
# Cloudflare in front of the backend objects to our address or User-Agent.
_CLOUDFLARE = re.compile(
    r"Just a moment|Attention Required! \| Cloudflare|error code: 10(?:0[6-9]|1[0-2]|20)\b",
    re.IGNORECASE,
)
# With a 429; "quota" and "billing" alone are also said of a rate limit, by Gemini.
_NO_CREDIT = re.compile(
    r"insufficient_quota|(?:insufficient|exhausted)[ _](?:balance|credit|funds)|余额|欠费|arrears",
    re.IGNORECASE,
)
_MINIMAX_WORDS = {
    1000: "down",
    1001: "timed out",
    1002: "rate limited",
    1004: "unauthorised",
    1008: "out of credit",
    1013: "down",
    1024: "down",
    1033: "down",
    1039: "rate limited",
    2049: "unauthorised",
}
# Only inside a 200: with a 400 they may be the request's fault.
_LATE_WORDS = re.compile(r"time-?d?[ -]?out|error code: (?:504|522|524)", re.IGNORECASE)
_DOWN_WORDS = re.compile(
    r"server_error|internal(?:[ _]server)?[ _]error|\bINTERNAL\b|upstream[ _](?:\w+ )?error"
    r"|error code: 5\d\d|service.?unavailable|bad gateway|try again later",
    re.IGNORECASE,
)
_TOO_LONG = re.compile(
    r"prompt[^.\n]{0,40}too (?:long|many (?:characters|tokens))"
    r"|(?:prompt|提示词|文本)[^.\n。]{0,20}(?:过长|超长|超[出过])"
    r"|prompt[^.\n]{0,40}length[^.\n]{0,40}(?:or less|less than|at most|exceed|limit|max)"
    r"|(?:max|exceed)[^.\n]{0,30}prompt[^.\n]{0,12}length"
    r"|prompt[^.\n]{0,40}(?:exceed|longer than|at most)[^.\n]{0,40}(?:char|token|length)"
    r"|too long[^\n]{0,20}prompt|maximum context length|context_length_exceeded",
    re.IGNORECASE,
)
_TOO_LONG_CODES = re.compile(
    r"string_above_max_length|string_too_long|at most \d+ char|too long|maximum length",
    re.IGNORECASE,
)


def judge(status: int, error: ErrorText, headers: Mapping[str, str], answer: Any = None) -> Fault:
    """Return the fault behind an error. `status` is the HTTP status, `answer` the whole JSON."""
    if is_refusal(status, error, answer):
        return Fault(Outcome.REFUSED, "refused", detail=error.words)
    why = _why_of_place(status, error, headers, answer) or _why(error)
    if why is None or why == TOO_LONG:
        return Fault(Outcome.REJECTED, why or "rejected", detail=error.words)
    return Fault(
        Outcome.FAILED,
        why,
        is_of_model=why == "unknown model",
        is_of_account=why in _ACCOUNT_WORDS,
        wait=retry_after(headers),
        detail=error.words,
    )


def of_model(fault: Fault, error: ErrorText, model: str | None) -> Fault:
    """Return the fault of a request for `model`: it is of that model where a denial quotes it."""
    if not fault.is_of_account or model not in error.quoted:
        return fault
    why = "unknown model" if fault.why == "not found" else fault.why
    return replace(fault, why=why, is_of_model=True, is_of_account=False)


def judge_without_picture(answer: Any, sent: Collection[str] = ()) -> Fault:
    """Return the fault behind a 200 without a picture: rejected, unless its text says otherwise.

    `sent` is the free text of the request.
    """
    error = complaint(answer)
    text = ErrorText.read(claimed_status(error), error or answer, sent)
    fault = judge(200, text, {}, answer)
    return replace(fault, detail=_prose(answer) or fault.detail)


def _prose(answer: Any) -> str:
    """Return what a chat model wrote in place of a picture, on one line and shortened."""
    try:
        content = answer["choices"][0]["message"]["content"]
    except (TypeError, KeyError, IndexError):
        return ""
    return " ".join(content.split())[:300] if isinstance(content, str) else ""


def _why_of_place(
    status: int, error: ErrorText, headers: Mapping[str, str], answer: Any
) -> str | None:
    """Return the word for what an answer shows beside its text, if anything."""
    is_challenge = headers.get("cf-mitigated") == "challenge"
    if is_challenge or (status == 403 and _CLOUDFLARE.search(error.text)):
        return "blocked by Cloudflare"
    base = answer.get("base_resp") if isinstance(answer, dict) else None
    code = base.get("status_code") if isinstance(base, dict) else None
    if isinstance(code, int) and code in _MINIMAX_WORDS:
        return _MINIMAX_WORDS[code]
    if "convert_request_failed" in error.codes:  # new-api: the model cannot draw
        return "unknown model"
    if status >= 300 or error.status != 400 or _why_of_words(error):
        return None
    if _LATE_WORDS.search(error.text):
        return "timed out"
    return "down" if _DOWN_WORDS.search(error.text) else None


def _why(error: ErrorText) -> str | None:
    """Return the word for a failure, or None for a request that was rejected."""
    if error.status in (400, 404, 422):
        return _why_of_words(error) or _STATUS_WORDS.get(error.status)
    is_of_key = _KEY_WORDS.search(error.text)
    # Client's words included: a model of that name is avoided, instead of the whole backend.
    is_of_model = _UNKNOWN_MODEL.search(error.raw) and not is_of_key
    if "model" in error.params or is_of_model:
        return "unknown model"
    if error.status == 429 and ("1113" in error.codes or _NO_CREDIT.search(error.text)):
        return "out of credit"
    if error.status == 403 and _CREDIT_WORDS.search(error.text):
        return "out of credit"
    if error.status == 500 and _MODEL_WORDS.search(error.raw):
        return "unknown model"
    return _STATUS_WORDS.get(error.status, "down")


def _why_of_words(error: ErrorText) -> str | None:
    if _TOO_LONG.search(error.text) or (
        "prompt" in error.params and _TOO_LONG_CODES.search(error.text)
    ):
        return TOO_LONG
    # "Must be verified to use the model" concerns the account.
    if _KEY_WORDS.search(error.text):
        return "unauthorised"
    if _CREDIT_WORDS.search(error.text):
        return "out of credit"
    text = error.raw if error.status == 404 else error.text
    if "model" in error.params or _UNKNOWN_MODEL.search(text) or _MODEL_WORDS.search(text):
        return "unknown model"
    return "rate limited" if _RATE_WORDS.search(error.text) else None


def retry_after(headers: Mapping[str, str], now: Callable[[], float] = time.time) -> float | None:
    """Return the seconds in `retry-after-ms` or `retry-after` (seconds or an HTTP date), if any.

    RFC 9110, section 10.2.3; the milliseconds are OpenAI's and Azure's.
    """
    milliseconds = headers.get("retry-after-ms", "").strip()
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]+)?", milliseconds):
        return float(milliseconds) / 1000
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", text):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
