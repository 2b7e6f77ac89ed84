"""The meaning of an error answer, decided only here: refused, rejected or failed.

The signs are those that vendors really send; tests/test_judging.py has a row for each. A refusal
needs positive evidence of moderation: a backend's fault that was mistaken for one would block a
harmless prompt for a day.
"""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from dialect.error_text import ErrorText


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
    the vendor's own words, for the administrator.
    """

    outcome: Outcome
    why: str
    is_of_model: bool = False
    is_of_account: bool = False
    wait: float | None = None
    detail: str = ""


# --- moderation ---------------------------------------------------------------------------------

_REFUSAL_CODES = re.compile(
    r"content[-_]?policy[-_]?violation|moderation_?(?:blocked|refused|rejected|flagged|failed)"
    r"|ResponsibleAIPolicyViolation|content_?filter|sensitive_words_detected"
    r"|SensitiveContentDetected|(?:IMAGE|PROMPT|CANDIDATE)_SAFETY|PROHIBITED_CONTENT"
    r"|DataInspectionFailed|IPInfringementSuspect|content_moderat|IllegalDetected"
    r"|censorship_block|nsfw_(?:content|prompt|image|detected)",
    re.IGNORECASE,
)
# Gemini's; too short to be searched for within a sentence.
_REFUSAL_CODE_WORDS = frozenset(("SAFETY", "BLOCKLIST"))
_REFUSAL_WORDS = re.compile(
    r"safety (?:system|check|filter|polic|guideline|violation|reasons|concerns)"
    r"|content (?:management |safety )?polic(?:y|ies)|content (?:checker|moderation)"
    r"|prohibited use|responsible ai|usage (?:guidelines|polic)|community (?:guidelines|standards)"
    r"|\bnsfw\b|considered high risk|risk control system|flagged as sensitive"
    r"|(?:request|content|prompt|image|input|output)s?"
    r" (?:was |were |is |are |has been |have been |got )?(?:moderated|flagged|censored)"
    r"|(?:blocked|flagged|rejected|refused|denied|filtered) by [\w' ]{0,40}"
    r"(?:moderation|content filter|moderator)"
    r"|(?:blocked|rejected|refused|filtered)[^.\n]{0,20}\b(?:safety|unsafe|moderation)\b"
    r"|violat(?:es?|ed|ing|ion of)\b[^.\n]{0,40}"
    r"(?:polic(?:y|ies)|terms of (?:service|use)|guidelines)"
    r"|(?:inappropriate|prohibited|unsafe|forbidden|banned|disallowed|offensive|explicit|filtered"
    r"|illegal|harmful|sexual)"
    r" (?:content(?!.type)|words?\b|prompts?\b|terms\b|material)"
    r"|sensitive (?:words?|content|information)(?: (?:was|were|is|are|has been))? detected"
    r"|(?:contains?|containing|include[sd]?|involv(?:es?|ing)) (?:\w{1,20} |)sensitive"
    r" (?:words?|content|information)"
    r"|敏感[词詞]|敏感[内內]容|敏感信息|[内內]容安全|[内內]容审核|內容審核|[违違][规規][内內]容|不[当當良][内內]容"
    r"|不安全(?:或敏感)?的?[内內]容|不安全或敏感|违禁|涉嫌违规|违法违规|审核(?:未|不)通过|未通过.{0,6}审核"
    r"|(?:内容|提示词|图片|图像|文本|输入)[^,，。]{0,8}违规|违反.{0,12}(?:政策|法律|法规|准则)|色情|涉黄",
    re.IGNORECASE,
)
# A moderation service that is down, or an account that is locked, says nothing of the prompt.
_NOT_OF_THE_PROMPT = re.compile(
    r"(?:safety|moderation|content filter|checker|nsfw)[^.\n]{0,40}"
    r"(?:unavailable|timed out|time-?out|overloaded|unreachable|not respond|failed to load)"
    r"|(?:internal|unexpected|server) error (?:in|of|from) the (?:safety|moderation|content)"
    r"|(?:account|organi[sz]ation|resource|project)\b[^.\n]{0,40}"
    r"(?:suspended|blocked|disabled|banned|deactivated)"
    r"|审核服务.{0,10}(?:超时|不可用|异常|繁忙)|账[户号].{0,20}(?:封禁|冻结|禁用)",
    re.IGNORECASE,
)
_MINIMAX_REFUSALS = (1026, 1027)


def is_refusal(status: int, error: ErrorText, answer: Any = None) -> bool:
    """Return whether an answer of HTTP status `status` is positive evidence of moderation."""
    if status == 451:
        return True
    if status not in (200, 400, 422):
        return False
    if _REFUSAL_CODES.search(error.text) or error.codes & _REFUSAL_CODE_WORDS:
        return True
    if _is_flagged(answer):
        return True
    return bool(_REFUSAL_WORDS.search(error.text)) and not _NOT_OF_THE_PROMPT.search(error.text)


def _is_flagged(answer: Any) -> bool:
    """Return whether a field reports moderation: xAI's, Ideogram's, MiniMax's or Zhipu's."""
    if not isinstance(answer, dict):
        return False
    base = answer.get("base_resp")
    if isinstance(base, dict) and base.get("status_code") in _MINIMAX_REFUSALS:
        return True
    found = [answer, *(item for item in _items(answer.get("data")) if isinstance(item, dict))]
    if any(
        item.get("respect_moderation") is False or item.get("is_image_safe") is False
        for item in found
    ):
        return True
    filters = [*_items(answer.get("contentFilter")), *_items(answer.get("content_filter"))]
    return any(isinstance(item, dict) and item.get("level") in (0, 1) for item in filters)


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


# --- everything else ----------------------------------------------------------------------------

# LiteLLM without a database answers any key but its own with "No connected db."
_KEY_WORDS = re.compile(
    r"api.?key|authenticat|unauthori[sz]ed|invalid.{0,12}\btoken|\btoken.{0,20}(?:invalid|expired)"
    r"|must be verified|verif(?:y|ied|ication).{0,30}organi[sz]ation|access denied"
    r"|permission.denied|invalid credentials|no_db_connection"
    r"|(?:account|organi[sz]ation|resource)\b.{0,40}(?:suspended|disabled|deactivated|banned|blocked)"
    r"|令牌(?!.{0,6}额度)|token.{0,6}过期|未授权|密钥|账[户号].{0,10}(?:封禁|冻结|禁用)|实名|鉴权",
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
    r"model_?not_?(?:found|exist)|no available channel|no endpoints found"
    r"|access(?: to)?(?: the)? model|无可用渠道|没有可用.{0,4}渠道",
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
    r"|not a valid model|unknown_model|invalid_model|Model[A-Za-z]{0,12}NotFound"
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
_ACCOUNT_WORDS = frozenset(("unauthorised", "out of credit", "not found"))


def judge(status: int, error: ErrorText, headers: Mapping[str, str], answer: Any = None) -> Fault:
    """Return the fault behind an error. `status` is the HTTP status, `answer` the whole JSON."""
    if is_refusal(status, error, answer):
        return Fault(Outcome.REFUSED, "refused")
    why, wait = _why(error), retry_after(headers)
    if why == "unknown model":
        return Fault(Outcome.FAILED, why, is_of_model=True, wait=wait)
    if why is None:
        return Fault(Outcome.REJECTED, "rejected")
    return Fault(Outcome.FAILED, why, is_of_account=why in _ACCOUNT_WORDS, wait=wait)


def judge_without_picture(answer: Any) -> Fault:
    """Return the fault behind a 200 without a picture: rejected, unless its text says otherwise."""
    return judge(200, ErrorText.read(400, answer), {}, answer)


def _why(error: ErrorText) -> str | None:
    """Return the word for a failure, or None for a request that was rejected."""
    if error.status in (400, 404, 422):
        return _why_of_words(error) or _STATUS_WORDS.get(error.status)
    is_of_key = _KEY_WORDS.search(error.text)
    if "model" in error.params or (_UNKNOWN_MODEL.search(error.text) and not is_of_key):
        return "unknown model"
    if error.status == 429 and "insufficient_quota" in error.codes:
        return "out of credit"
    if error.status == 403 and _CREDIT_WORDS.search(error.text):
        return "out of credit"
    return _STATUS_WORDS.get(error.status, "down")


def _why_of_words(error: ErrorText) -> str | None:
    # "Must be verified to use the model" concerns the account.
    if _KEY_WORDS.search(error.text):
        return "unauthorised"
    if _CREDIT_WORDS.search(error.text):
        return "out of credit"
    if "model" in error.params or any(p.search(error.text) for p in (_UNKNOWN_MODEL, _MODEL_WORDS)):
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
