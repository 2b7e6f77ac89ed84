"""The meaning of an error answer, decided only here: refused, rejected or failed.

The signs are those that vendors really send; tests/test_judging.py has a row for each. A
backend's fault that was mistaken for a refusal would block a harmless prompt for a day.
"""

import email.utils
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from dialect.error_text import ErrorText, nodes

# A rejection that a shorter prompt avoids; it says nothing of the backend.
TOO_LONG = "prompt too long"
UNKNOWN_MODEL = "unknown model"
# Only the operator can act on these.
_ACCOUNT_WORDS = ("unauthorised", "out of credit", "not found", "blocked by Cloudflare")


class Outcome(StrEnum):
    """How one call to a backend ended."""

    DRAWN = "drawn"
    REFUSED = "refused"  # moderation refused the prompt
    REJECTED = "rejected"  # this request is wrong for this backend
    FAILED = "failed"  # the backend, its account or the network


@dataclass(frozen=True, slots=True)
class Fault:
    """The meaning of an error. `why` is a word for /status, error stages and the log.

    `is_of_model`: only the model is at fault, and others may work. `wait`: seconds that the server
    asked for. `detail`: the vendor's own words, for the administrator alone.
    """

    outcome: Outcome
    why: str
    is_of_model: bool = False
    wait: float | None = None
    detail: str = field(default="", compare=False)

    @property
    def is_of_account(self) -> bool:
        """Return whether the operator has to act, so that retrying soon is useless."""
        return self.why in _ACCOUNT_WORDS and not self.is_of_model


_LOCKED_OUT = (
    r"(?:account|organi[sz]ation|resource|project)\b[^.\n]{0,40}"
    r"(?:suspended|blocked|disabled|banned|deactivated)|账[户号].{0,20}(?:封禁|冻结|禁用)"
)
# A moderation service that is down, or an account that is locked, says nothing of the prompt.
_NOT_OF_THE_PROMPT = re.compile(
    r"(?i)(?:safety|moderation|content filter|checker|nsfw)[^.\n]{0,40}"
    r"(?:unavailable|timed out|time-?out|overloaded|unreachable|not respond|failed to load)"
    r"|(?:internal|unexpected|server) error (?:in|of|from) the (?:safety|moderation|content)"
    rf"|审核服务.{{0,10}}(?:超时|不可用|异常|繁忙)|{_LOCKED_OUT}"
)
# Codes that mean moderation whatever the status; gateways send them with a 500.
_SURE_CODES = re.compile(
    r"(?i)content_policy_violation|prompt_blocked|(?:IMAGE_|PROMPT_)?SAFETY"
    r"|(?:IMAGE_)?PROHIBITED_CONTENT|BLOCKLIST|violation_fee\.grok\.csam"
)
# xAI says this with a 403 whose code is about a permission.
_SURE_WORDS = re.compile(r"(?i)SAFETY_CHECK_TYPE_\w|content violates usage guidelines")
_REFUSAL_CODES = re.compile(
    r"(?i)content[-_]?policy[-_]?violation|moderation_?(?:blocked|refused|rejected|flagged|failed)"
    r"|ResponsibleAIPolicyViolation|content_?filter|sensitive_words_detected"
    r"|SensitiveContentDetected|(?:IMAGE|PROMPT|CANDIDATE)_SAFETY|PROHIBITED_CONTENT"
    r"|DataInspectionFailed|IPInfringementSuspect|content_moderat\w{0,12}|IllegalDetected"
    r"|censorship_block|nsfw_(?:content|prompt|image|detected)"
)
_REFUSAL_WORDS = re.compile(
    r"(?i)safety (?:system|check|filter|polic|guideline|violation|reasons|concerns)"
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
    r"|(?:内容|提示词|图片|图像|文本|输入)[^,，。]{0,8}违规|违反.{0,12}(?:政策|法律|法规|准则)|色情|涉黄"
)
# Gateways report the apology of a chat model as an error of their own.
_APOLOGY = re.compile(
    r"(?i)model (?:has |had )?(?:replied|responded|answered|returned|said)[^\n]{0,60}?"
    r"(?:\b(?:can(?:no|')?t|can not|won't|unable to|not able to)\b|sorry|抱歉|无法)"
)


def _is_refusal(status: int, error: ErrorText, answer: Any) -> bool:
    """Return whether an answer of HTTP status `status` is positive evidence of moderation."""
    if status == 451 or any(_is_flag(name, value) for name, value, _ in nodes(answer)):
        return True
    if _NOT_OF_THE_PROMPT.search(error.text):
        return False
    if any(map(_SURE_CODES.fullmatch, error.codes)):
        return True
    if _SURE_WORDS.search(error.text) or _APOLOGY.search(error.text.replace("’", "'")):
        return True
    if status in (200, 400, 422):
        return bool(_REFUSAL_CODES.search(error.text) or _REFUSAL_WORDS.search(error.text))
    # A gateway's own status; its message alone may speak of a fault of the moderation.
    is_wrapped = status == 403 or status >= 500
    return is_wrapped and any(map(_REFUSAL_CODES.fullmatch, error.codes))


def _is_flag(name: str, value: Any) -> bool:
    """Return whether a field reports moderation, rather than a code or a sentence."""
    match name, value:
        case "metadata", dict():  # OpenRouter
            return bool(value.get("reasons") or value.get("flagged_input"))
        case "base_resp", {"status_code": 1026 | 1027}:  # MiniMax
            return True
        case "contentFilter" | "content_filter", {"level": 0 | 1}:  # Zhipu
            return True
        case _, {"respect_moderation": False} | {"is_image_safe": False}:  # xAI, Ideogram
            return True
    return False


# LiteLLM without a database answers any key but its own with "No connected db."
_KEY_WORDS = re.compile(
    r"(?i)api.?key|authenticat|unauthori[sz]ed|invalid.{0,12}\btoken|\btoken.{0,20}(?:invalid|expired)"
    r"|must be verified|verif(?:y|ied|ication).{0,30}organi[sz]ation|(?<!model )access denied"
    r"|permission.denied|invalid credentials|no_db_connection"
    r"|\b(?:location|country|region)[^.\n]{0,30} not supported"
    r"|not (?:supported|available) in your (?:location|country|region)"
    r"|令牌(?!.{0,6}(?:额度|模型))|token.{0,6}过期|未授权|密钥|实名|鉴权"
    rf"|{_LOCKED_OUT}"
)
_CREDIT_WORDS = re.compile(
    r"(?i)billing|billed users|quota|(?<!pixel )budget|payment.required|arrear|overdue"
    r"|insufficient.{0,20}(?:funds|balance|credit)"
    r"|balance.{0,20}(?:insufficient|too low|not enough)"
    r"|(?:out of|no|not enough|exceeded your) credits?|credits? (?:limit|exhausted|depleted)"
    r"|spend(?:ing|) (?:limit|cap)"
    r"|余额|额度|欠费|充值"
)
# With a 429; "quota" and "billing" alone are also said of a rate limit, by Gemini.
_NO_CREDIT = re.compile(
    r"(?i)insufficient_quota|(?:insufficient|exhausted)[ _](?:balance|credit|funds)|arrears"
    r"|余额|欠费"
)
_RATE_WORDS = re.compile(r"(?i)rate.?limit|too many requests|overloaded|请求过于频繁|速率限制|并发")
# Said only of unknown models; gateways say it even with a 401, 403 or 503.
_UNKNOWN_MODEL = re.compile(
    r"(?i)model_?not_?(?:found|exist)|no available channel|no endpoints found|not supported model"
    r"|convert_request_failed"
    r"|access(?: to)?(?: the)? model|model (?:is )?disabled|model.?access.?denied"
    r"|无可用渠道|没有可用.{0,4}渠道|无权(?:使用|访问).{0,4}模型"
)
# A model that "does not support the size" does exist.
_OTHERS = r"\b(?:size|parameter|argument|resolution|value|ratio|width|height)"
_MODEL_WORDS = re.compile(
    rf"(?is)model(?![^.\n]{{0,40}}{_OTHERS}[^.\n]{{0,30}}\bnot\b).{{0,80}}?"
    r"(?:not.(?:found|exist|available|recogni[sz]ed|loaded)|does.?n.t exist|unavailable"
    rf"|not.support(?![^.\n]{{0,40}}{_OTHERS})"
    r"|deprecated|retired|decommissioned|has been shut down)"
    r"|(?:invalid|unknown|unsupported|unrecogni[sz]ed|no such|nonexistent) model"
    r"|not a valid model|unknown_model|invalid_model|Model[A-Za-z]{0,12}Not(?:Found|Open)"
    r"|not activated the model|(?:provide|specify) (?:a |the )model|model (?:\w+ )?is required"
    r"|模型[^,，。]{0,40}(?:不存在|未找到|未开通|已下线|不可用)|不支持.{0,8}模型"
    r"|模型[^,，。]{0,40}不支持(?!.{0,24}(?:尺寸|参数|分辨率|大小|比例))"
)
# Cloudflare in front of the backend objects to our address or User-Agent.
_CLOUDFLARE = re.compile(
    r"(?i)Just a moment|Attention Required! \| Cloudflare|error code: 10(?:0[6-9]|1[0-2]|20)\b"
)
# Only inside a 200: with a 400 they may be the request's fault.
_LATE_WORDS = re.compile(r"(?i)time-?d?[ -]?out|error code: (?:504|522|524)")
_DOWN_WORDS = re.compile(
    r"(?i)server_error|internal(?:[ _]server)?[ _]error|\bINTERNAL\b|upstream[ _](?:\w+ )?error"
    r"|error code: 5\d\d|service.?unavailable|bad gateway|try again later"
)
_TOO_LONG = re.compile(
    r"(?i)prompt[^.\n]{0,40}too (?:long|many (?:characters|tokens))"
    r"|(?:prompt|提示词|文本)[^.\n。]{0,20}(?:过长|超长|超[出过])"
    r"|prompt[^.\n]{0,40}length[^.\n]{0,40}(?:or less|less than|at most|exceed|limit|max)"
    r"|(?:max|exceed)[^.\n]{0,30}prompt[^.\n]{0,12}length"
    r"|prompt[^.\n]{0,40}(?:exceed|longer than|at most)[^.\n]{0,40}(?:char|token|length)"
    r"|too long[^\n]{0,20}prompt|maximum context length|context_length_exceeded"
)
_TOO_LONG_CODES = re.compile(
    r"(?i)string_above_max_length|string_too_long|at most \d+ char|too long|maximum length"
)
_STATUS_WORDS = {
    401: "unauthorised",
    402: "out of credit",
    403: "unauthorised",
    # A page's address, or http:// in place of https://, is as wrong as a missing path.
    **dict.fromkeys((301, 308, 404, 405), "not found"),
    407: "unreachable",  # a proxy's, for an http:// URL
    408: "timed out",
    429: "rate limited",
    504: "timed out",
    524: "timed out",
}


def judge(status: int, error: ErrorText, headers: Mapping[str, str], answer: Any = None) -> Fault:
    """Return the fault behind an error. `status` is the HTTP status, `answer` the whole JSON."""
    if _is_refusal(status, error, answer):
        return Fault(Outcome.REFUSED, "refused", detail=error.words)
    is_challenge = headers.get("cf-mitigated") == "challenge"
    is_blocked = is_challenge or (status == 403 and _CLOUDFLARE.search(error.text))
    why = "blocked by Cloudflare" if is_blocked else _why(status, error)
    if why is None or why == TOO_LONG:
        return Fault(Outcome.REJECTED, why or "rejected", detail=error.words)
    wait = retry_after(headers)
    return Fault(Outcome.FAILED, why, why == UNKNOWN_MODEL, wait, error.words)


def _why(status: int, error: ErrorText) -> str | None:
    """Return the word for a failure, or None for a request that was rejected."""
    text, is_rejection = error.text, error.status in (400, 404, 422)
    is_of_prompt = "prompt" in error.params and _TOO_LONG_CODES.search(text)
    if is_rejection and (is_of_prompt or _TOO_LONG.search(text)):
        return TOO_LONG
    # "Must be verified to use the model" concerns the account.
    is_of_key = _KEY_WORDS.search(text)
    if is_rejection and is_of_key:
        return "unauthorised"
    if (is_rejection or error.status == 403) and _CREDIT_WORDS.search(text):
        return "out of credit"
    if error.status == 429 and ("1113" in error.codes or _NO_CREDIT.search(text)):
        return "out of credit"
    # Client's words included: a model of that name is avoided, instead of the whole backend.
    said = text if error.status in (400, 422) else error.raw
    if "model" in error.params or (_UNKNOWN_MODEL.search(said) and not is_of_key):
        return UNKNOWN_MODEL
    if (is_rejection or error.status == 500) and _MODEL_WORDS.search(said):
        return UNKNOWN_MODEL
    if is_rejection and _RATE_WORDS.search(text):
        return "rate limited"
    if is_rejection and status < 300 and _LATE_WORDS.search(text):
        return "timed out"
    if is_rejection and status < 300 and _DOWN_WORDS.search(text):
        return "down"
    return _STATUS_WORDS.get(error.status, None if is_rejection else "down")


def of_model(fault: Fault, error: ErrorText, model: str | None) -> Fault:
    """Return the fault of a request for `model`: it is of that model where a denial quotes it."""
    if not fault.is_of_account or model not in error.quoted:
        return fault
    why = UNKNOWN_MODEL if fault.why == "not found" else fault.why
    return replace(fault, why=why, is_of_model=True)


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
