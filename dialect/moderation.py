"""Positive evidence that moderation refused a prompt.

The signs are those that vendors really send; tests/test_judging.py has a row for each. A
backend's fault that was mistaken for a refusal would block a harmless prompt for a day.
"""

from __future__ import annotations

import re
from typing import Any

from dialect.error_text import ErrorText, nodes

_REFUSAL_CODES = re.compile(
    r"content[-_]?policy[-_]?violation|moderation_?(?:blocked|refused|rejected|flagged|failed)"
    r"|ResponsibleAIPolicyViolation|content_?filter|sensitive_words_detected"
    r"|SensitiveContentDetected|(?:IMAGE|PROMPT|CANDIDATE)_SAFETY|PROHIBITED_CONTENT"
    r"|DataInspectionFailed|IPInfringementSuspect|content_moderat\w{0,12}|IllegalDetected"
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
# Gateways report the apology of a chat model as an error of their own.
_APOLOGY = re.compile(
    r"model (?:has |had )?(?:replied|responded|answered|returned|said)[^\n]{0,60}?"
    r"(?:\b(?:can(?:no|')?t|can not|won't|unable to|not able to)\b|sorry|抱歉|无法)",
    re.IGNORECASE,
)
# Codes that mean moderation whatever the status; gateways send them with a 500.
_SURE_CODES = re.compile(
    r"content_policy_violation|prompt_blocked|(?:IMAGE_|PROMPT_)?SAFETY"
    r"|(?:IMAGE_)?PROHIBITED_CONTENT",
    re.IGNORECASE,
)
_MINIMAX_REFUSALS = (1026, 1027)


def is_refusal(status: int, error: ErrorText, answer: Any = None) -> bool:
    """Return whether an answer of HTTP status `status` is positive evidence of moderation."""
    if status == 451 or _is_flagged(answer):
        return True
    if _NOT_OF_THE_PROMPT.search(error.text):
        return False
    if _APOLOGY.search(error.text.replace("’", "'")) or any(
        _SURE_CODES.fullmatch(code) for code in error.codes
    ):
        return True
    if status not in (200, 400, 422):
        # A gateway's own status; its message alone may speak of a fault of the moderation.
        is_wrapped = status == 403 or status >= 500
        return is_wrapped and any(_REFUSAL_CODES.fullmatch(code) for code in error.codes)
    if _REFUSAL_CODES.search(error.text) or error.codes & _REFUSAL_CODE_WORDS:
        return True
    return bool(_REFUSAL_WORDS.search(error.text))


def _is_flagged(answer: Any) -> bool:
    """Return whether a field reports moderation, rather than a code or a sentence."""
    for name, value, _ in nodes(answer):
        if not isinstance(value, dict):
            continue
        match name:
            case "metadata":  # OpenRouter
                is_flagged = bool(value.get("reasons") or value.get("flagged_input"))
            case "base_resp":  # MiniMax
                is_flagged = value.get("status_code") in _MINIMAX_REFUSALS
            case "contentFilter" | "content_filter":  # Zhipu
                is_flagged = value.get("level") in (0, 1)
            case _:  # xAI, Ideogram
                is_flagged = False in (
                    value.get("respect_moderation"),
                    value.get("is_image_safe"),
                )
        if is_flagged:
            return True
    return False
