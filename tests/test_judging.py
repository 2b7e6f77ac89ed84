"""The meaning of errors, in the vendors' own words."""

import email.utils
import json
import time
from collections.abc import Collection
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialect.endpoint import Answer
from dialect.error_text import ErrorText
from dialect.judging import Fault, Outcome, retry_after
from dialect.learning import Learned
from upstream.client import Reply

from .wire import unhurried


def reply(status: int, body: Any, headers: dict[str, str] | None = None) -> Reply:
    """Return an answer; a body that is not bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Reply(status, headers or {}, content)


def judged(
    status: int, body: Any, headers: dict[str, str] | None = None, sent: Collection[str] = ()
) -> Fault:
    """Return the fault of an answer without a picture."""
    answer = Answer.of(reply(status, body, headers), sent)
    return answer.fault or answer.without_picture()


def error(message: str = "No.", **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


def inside(body: Any, message: str = "upstream error: ") -> dict[str, Any]:
    """Return a gateway's error that quotes the vendor's as a text."""
    return error(message + json.dumps(body))


# --- refused ------------------------------------------------------------------------------------

OPENAI = "Your request was rejected as a result of our safety system."
ZHIPU = "系统检测到输入或生成内容可能包含不安全或敏感内容，请您避免输入易产生敏感内容的提示语。"
# LiteLLM ends every error of a model with this.
LITELLM = ("\n\nLiteLLM: model group 'gpt-image-1' failed with the error above."
           " No fallback was attempted.")  # fmt: skip
OPENROUTER = (
    "Your chosen model requires moderation and your input was flagged. No credits were charged."
)
AZURE = error(code="x", inner_error={"code": "ResponsibleAIPolicyViolation"})
REFUSALS: dict[str, tuple[int, Any]] = {
    "dall-e": (400, error(code="content_policy_violation", type="invalid_request_error")),
    "GPT-image": (400, error(type="image_generation_user_error", code="moderation_blocked")),
    "OpenAI, its sentence alone": (400, error(OPENAI, code=None)),
    "Azure": (400, AZURE),
    "Azure, other spelling": (400, error(innererror={"code": "ResponsibleAIPolicyViolation"})),
    "Azure, contentFilter": (400, error(code="contentFilter")),
    "Azure, content_filter": (400, error(code="content_filter", status=400)),
    "Azure, a sentence": (400, error("triggering Azure OpenAI's content management policy.")),
    "new-api": (400, error(code="sensitive_words_detected", type="new_api_error")),
    "new-api, in Chinese": (400, error("用户请求包含敏感词：…", type="new_api_error")),
    "Ark": (400, error(code="InputTextSensitiveContentDetected", param="")),
    "Ark, inside a 200": (200, error(code="OutputImageSensitiveContentDetected.Policy")),
    "Ark, of one picture": (200, {"data": [{"error": {"code": "SensitiveContentDetected"}}]}),
    "LiteLLM": (400, error("litellm.ContentPolicyViolationError: AzureException", code="400")),
    # It keeps the type of a GPT-image refusal, which a bill has too, and loses the code.
    "LiteLLM, GPT-image": (400, error("litellm.BadRequestError: OpenAIException - Your request was"
                                      " rejected by the safety system." + LITELLM,
                                      type="image_generation_user_error", code="400")),
    "xAI": (200, {"data": [{"url": "", "respect_moderation": False}]}),
    "xAI, a sentence": (400, {"code": "400", "error": "Generated image rejected by content"
                              " moderation."}),
    "MiniMax, prompt": (200, {"base_resp": {"status_code": 1026}, "data": None}),
    "MiniMax, picture": (200, {"base_resp": {"status_code": 1027, "status_msg": "x"}}),
    "Zhipu": (400, {"contentFilter": [{"role": "user", "level": 1}], "error": {"code": "1301"}}),
    "Zhipu, other spelling": (400, {"content_filter": [{"level": 0}], "error": {"code": "1301"}}),
    "Zhipu, a sentence": (400, error(ZHIPU, code="1301")),
    "Gemini": (400, error("x", status="IMAGE_SAFETY")),
    "Gemini, in a list": (400, [error("IMAGE_PROHIBITED_CONTENT")]),
    "Gemini, in a 200": (200, {"candidates": [{"finishReason": "IMAGE_PROHIBITED_CONTENT"}]}),
    "Gemini, of the prompt": (200, {"promptFeedback": {"blockReason": "SAFETY"}}),
    "Imagen": (400, error("The image violated Google's Generative AI Prohibited Use policy.")),
    "Imagen, words": (400, error("This prompt contains sensitive words that violate Google's"
                                 " Responsible AI practices.")),
    "safety checks": (422, error("It did not pass the safety checks")),
    "content policy": (400, {"message": "against our content policy"}),
    "nsfw": (422, {"detail": "NSFW content"}),
    "451": (451, b""),
    "DashScope": (400, {"code": "DataInspectionFailed", "message": "Input data may contain"
                        " inappropriate content.", "request_id": "1"}),
    "Hunyuan": (200, error("文本包含违法违规信息", code="OperationDenied.TextIllegalDetected")),
    "iFlytek": (400, {"header": {"code": 10021, "message": "输入内容审核不通过，涉嫌违规"}}),
    "StepFun": (451, error("The content you provided may be blocked", type="censorship_blocked")),
    "Moonshot": (400, error("The request was rejected because it was considered high risk")),
    "Kling": (400, {"code": 1301, "message": "Failure to pass the risk control system"}),
    "fal": (422, {"detail": [{"loc": ["body", "prompt"], "type": "content_policy_violation",
                              "msg": "It contained material flagged by a content checker."}]}),
    "BFL": (200, {"id": "x", "status": "Request Moderated", "result": None}),
    "Replicate": (422, {"detail": "The input or output was flagged as sensitive. (E005)"}),
    "Replicate, other": (200, {"error": "NSFW content detected. Try a different prompt."}),
    "Stability v1": (400, {"name": "invalid_prompts", "message": "One or more prompts contains"
                           " filtered words."}),
    "Ideogram": (200, {"data": [{"url": None, "is_image_safe": False}]}),
    "Cloudflare": (400, {"success": False, "errors": [
        {"code": 3030, "message": "AiError: Input prompt contains NSFW content"}]}),
    "OpenRouter": (400, error("The model requires moderation and your input was flagged.")),
    "Midjourney gateways": (400, {"description": "Banned prompt detected", "code": 24}),
    "a policy": (400, error("The prompt contains content that violates our policies")),
    "safety": (400, error("The content is blocked due to safety.")),
    "Baidu": (400, {"error_code": 282004, "error_msg": "input text contains illegal content"}),
    "OpenRouter, reasons": (403, error(OPENROUTER, code=403, metadata={"reasons": ["violence"]})),
    "OpenRouter, input": (403, error(OPENROUTER, metadata={"flagged_input": "a bill"})),
    "OpenRouter, inside": (200, {"choices": [{"error": {"metadata": {"reasons": ["x"]}}}]}),
    "new-api, prompt_blocked": (400, error("Quota: blocked by Gemini", type="prompt_blocked")),
    "new-api, prompt_blocked, 500": (500, error("upstream error", code="prompt_blocked")),
    "finishReason": (500, inside({"candidates": [{"finishReason": "SAFETY"}]})),
    "blockReason": (502, {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}),
    "IMAGE_SAFETY": (500, error("empty response", code="IMAGE_SAFETY")),
    "xAI, 403": (403, {
        "code": "The caller does not have permission to execute the specified operation",
        "error": "Content violates usage guidelines. Team: x, API key ID: y,"
                 " Failed check: SAFETY_CHECK_TYPE_BIO"}),
    "new-api, Grok": (400, error("x", code="violation_fee.grok.csam")),
    "a gateway, 403": (403, error("no", code="content_policy_violation")),
    "Stability": (403, {"name": "content_moderation", "errors": ["Your request was flagged."]}),
    "a gateway, 429": (429, error("no", code="content_policy_violation")),
    "a gateway, 500": (500, error("no", type="content_policy_violation")),
    "a gateway, 500, GPT-image": (500, error("bad response", code="moderation_blocked")),
    "a chat model's apology": (502, error("Bad upstream: model replied: I can't help with that")),
    "an apology, typographic": (502, error("The model responded: “I’m sorry, but I can’t”")),
    "chat": (200, {"choices": [{"finish_reason": "content_filter", "message": {"content": ""}}]}),
    "chat, its own error": (200, {"choices": [{"error": {"code": "content_policy_violation"},
                                               "message": {"content": None}}]}),
    "JSON in JSON": (400, inside(error(OPENAI))),
    "JSON in JSON in JSON": (400, inside(inside({"error": ZHIPU}))),
    "JSON in JSON in a text": (400, ("failed: " + json.dumps(inside(AZURE))).encode()),
    "escaped for HTML": (400, b"<p>Azure&#39;s content&#32;management policy</p>"),
    "cut off": (400, json.dumps(error(OPENAI, more="x" * 2**16)).encode()[: 2**16]),
    "in traditional Chinese": (400, error("提示詞包含敏感詞")),
    "with a byte order mark": (400, b"\xef\xbb\xbf" + json.dumps(error(ZHIPU)).encode()),
    "beside the name of a parameter": (400, error("Invalid 'size': nsfw", param="seed")),
}  # fmt: skip


@pytest.mark.parametrize("vendor", REFUSALS)
def test_refusal_is_recognised(vendor: str) -> None:
    assert judged(*REFUSALS[vendor]) == Fault(Outcome.REFUSED, "refused")


# --- anything but refused -----------------------------------------------------------------------

REJECTED = Fault(Outcome.REJECTED, "rejected")
TOO_LONG = Fault(Outcome.REJECTED, "prompt too long")
KEY, CREDIT, GONE, CLOUDFLARE = OF_ACCOUNT = tuple(
    Fault(Outcome.FAILED, why)
    for why in ("unauthorised", "out of credit", "not found", "blocked by Cloudflare")
)
MODEL = Fault(Outcome.FAILED, "unknown model", is_of_model=True)
RATE, DOWN, UNREACHABLE, LATE = (
    Fault(Outcome.FAILED, why) for why in ("rate limited", "down", "unreachable", "timed out")
)
LOCKED_OUT = "Your resource has been temporarily blocked since it may violate our content policy."
VERIFY = "Your organization must be verified to use the model `gpt-image-1`."
NO_CHANNEL = "No available channel for model flux under group default (distributor)"
NO_ACCESS = "key not allowed to access model. This key can only access models=['a']"
OTHERS: dict[str, tuple[int, Any, Fault]] = {
    # "Never a refusal without positive evidence."
    "Model does not exist": (400, {"code": 20012, "message": "Model does not exist."}, MODEL),
    "LiteLLM, model": (400, error("Invalid model name passed in model=x.", code="400"), MODEL),
    "LiteLLM, key": (400, error("Authentication Error, Invalid proxy server token"), KEY),
    "LiteLLM, budget": (400, error("Budget has been exceeded! Current cost: 1"), CREDIT),
    "LiteLLM, key, without a database": (400, error("No connected db.", type="no_db_connection"),
                                         KEY),
    "LiteLLM, billing": (400, error("Billing hard limit has been reached" + LITELLM, code="400",
                                    type="image_generation_user_error"), CREDIT),
    # Gemini says the same when it limits the rate.
    "LiteLLM, quota": (429, error("OpenAIException - You exceeded your current quota, please check"
                                  " your plan and billing details." + LITELLM,
                                  type="throttling_error", code="429"), RATE),
    "LiteLLM, cooldown": (429, error("No deployments available for selected model, Try again in 17"
                                     " seconds.", type="all_deployments_in_cooldown"), RATE),
    "LiteLLM, no model": (400, error("400: {'error': '/image/generations: Invalid model name passed"
                                     " in model=None. Call `/v1/models` to view available models"
                                     " for your key.'}"), MODEL),
    "LiteLLM, vendor's model": (404, error("litellm.NotFoundError: OpenAIException - The model `x`"
                                           " does not exist or you do not have access to it."
                                           + LITELLM, code="404"), MODEL),
    "LiteLLM, parameter": (400, error("litellm.UnsupportedParamsError: Setting `style` is not"
                                      " supported by openai, gpt-image-1." + LITELLM), REJECTED),
    "LiteLLM, size": (400, error("litellm.BadRequestError: OpenAIException - Invalid value:"
                                 " '1024x768'. Supported values are: '1024x1024' and 'auto'."
                                 + LITELLM, param="size", code="400"), REJECTED),
    "verification": (400, error(VERIFY), KEY),
    "verification, 403": (403, error(VERIFY), KEY),
    "billing": (400, error("Billing hard limit has been reached"), CREDIT),
    "new-api, no channel": (400, error(NO_CHANNEL), MODEL),
    "new-api, no channel, as it is": (503, error(NO_CHANNEL, code="model_not_found"), MODEL),
    "new-api, no channel, in Chinese": (503, error("分组 default 下模型 x 无可用渠道"), MODEL),
    "Ark, not activated": (404, error("Your account 2 has not activated the model seedream.",
                                      code="ModelNotOpen", type="NotFound"), MODEL),
    "SiliconFlow, disabled": (403, {"code": 30003, "message": "Model disabled."}, MODEL),
    "DashScope, no access": (403, {"code": "Model.AccessDenied", "message": "Model access denied."},
                             MODEL),
    "new-api, a token's models": (403, error("该令牌无权使用模型：flux"), MODEL),
    "OpenAI, no model": (400, error("you must provide a model parameter"), MODEL),
    "Gemini, free tier": (400, error("Imagen API is only accessible to billed users at this time."),
                          CREDIT),
    "Gemini, country": (400, error("Image generation is not available in your country."), KEY),
    "a page's address": (405, b"<html><h1>405 Not Allowed</h1></html>", GONE),
    "http:// for https://": (301, b"", GONE),
    "Gemini, from elsewhere": (400, error("User location is not supported for the API use."), KEY),
    "aspect ratio": (400, error("The aspect ratio is out of range for this tier"), REJECTED),
    "nginx": (400, b"<html><head><title>400 Bad Request</title></head></html>", REJECTED),
    "CUDA": (400, error("CUDA out of memory"), REJECTED),
    "gateway's time-out": (400, error("upstream request timeout"), REJECTED),
    "server_error in a 200": (200, error("The server had an error", code="server_error"), DOWN),
    "upstream_error in a 200": (200, error("bad response", type="upstream_error"), DOWN),
    "INTERNAL_ERROR in a 200": (200, {"error": "INTERNAL_ERROR"}, DOWN),
    "Cloudflare's error in a 200": (200, error("error code: 520"), DOWN),
    "Cloudflare's time-out in a 200": (200, error("error code: 524"), LATE),
    "text alone": (200, {"choices": [{"finish_reason": "stop", "message": {
        "role": "assistant", "content": "That violates our content policy. Billing? API key?"}}]},
        REJECTED),
    "chat's own error": (200, {"choices": [{"error": {"code": 429, "message": "slow"}}]}, RATE),
    "a task id": (200, {"task_id": "8f6", "status": "PENDING"}, REJECTED),
    "case-sensitive": (400, error("Names are case-sensitive."), REJECTED),
    "no data": (200, {"created": 1}, REJECTED),
    "nothing in data": (200, {"data": [{}]}, REJECTED),
    "empty images": (200, {"images": [""]}, REJECTED),
    "an empty body": (400, b"", REJECTED),
    "moderation is down": (400, error("The moderation service is unavailable."), REJECTED),
    "safety checker is down": (422, error("safety checker: failed to load"), REJECTED),
    "a parameter of that name": (400, error("Unknown parameter: 'moderation'."), REJECTED),
    "a size of a model": (400, error("This model does not support the size 512x512"), REJECTED),
    "pixel budget": (400, error("below the current minimum pixel budget."), REJECTED),
    # The account.
    "401": (401, error("Incorrect API key", code="invalid_api_key"), KEY),
    "402": (402, b"", CREDIT),
    "403": (403, error("nsfw"), KEY),
    "Azure's lock-out": (403, error(LOCKED_OUT, code="ResponsibleAIPolicyViolation"), KEY),
    "lock-out as a 422": (422, error(LOCKED_OUT, code="content_policy_violation"), KEY),
    "insufficient quota": (429, error(code="insufficient_quota"), CREDIT),
    "new-api, quota": (403, error("用户额度不足", code="insufficient_user_quota"), CREDIT),
    "one-api, quota": (400, error("该令牌额度已用尽"), CREDIT),
    "one-api, token": (400, error("无效的令牌"), KEY),
    "SiliconFlow, balance": (400, {"message": "Sorry, your account balance is insufficient"},
                             CREDIT),
    "spending": (400, {"error": "Project has reached its monthly spending cap"}, CREDIT),
    "DashScope, key": (400, {"code": "InvalidApiKey", "message": "Invalid API-key provided."}, KEY),
    "DashScope, arrears": (400, {"code": "Arrearage", "message": "Your account is overdue."},
                           CREDIT),
    "MiniMax, balance": (200, {"base_resp": {"status_code": 1008,
                                             "status_msg": "insufficient balance"}}, CREDIT),
    "MiniMax, rate": (200, {"base_resp": {"status_code": 1002, "status_msg": "x"}}, RATE),
    "MiniMax, key": (200, {"base_resp": {"status_code": 1004, "status_msg": "x"}}, KEY),
    "MiniMax, parameters": (200, {"base_resp": {"status_code": 2013, "status_msg": "x"}}, REJECTED),
    "Zhipu, balance": (429, error("您的账户已欠费，请充值后重试", code="1113"), CREDIT),
    "Zhipu, balance, code alone": (429, error("x", code=1113), CREDIT),
    "balance, 429": (429, error("余额不足或无可用资源包"), CREDIT),
    "Zhipu, rate": (429, error("您当前使用该API的并发数过高", code="1302"), RATE),
    "Cloudflare, a page": (403, b"<html><title>Just a moment...</title></html>", CLOUDFLARE),
    "Cloudflare, a code": (403, b"error code: 1010", CLOUDFLARE),
    # The prompt's length.
    "dall-e-2": (400, error("Prompt must be length 1000 or less."), TOO_LONG),
    "GPT-image, length": (400, error("Invalid 'prompt': string too long. Expected at most 32000.",
                                     param="prompt", code="string_above_max_length"), TOO_LONG),
    "an old OpenAI": (400, error("'a fox' is too long - 'prompt'"), TOO_LONG),
    "pydantic": (422, {"detail": [{"loc": ["body", "prompt"], "type": "string_too_long",
                                   "msg": "String should have at most 1000 characters"}]},
                 TOO_LONG),
    "MiniMax, length": (200, {"base_resp": {"status_code": 2013, "status_msg":
                              "invalid params, prompt length exceeds 1500"}}, TOO_LONG),
    "in Chinese, length": (400, error("提示词长度超过限制"), TOO_LONG),
    "chat, length": (400, error("maximum context length is 8192", code="context_length_exceeded"),
                     TOO_LONG),
    # The model.
    "404 of a model": (404, error("The model `x` does not exist", code="model_not_found"), MODEL),
    "404 of a path": (404, {"detail": "Not Found"}, GONE),
    "a model's parameter": (400, error("model x not found, check the parameter"), MODEL),
    "a model of text": (400, error("Model x is not supported for image generation"), MODEL),
    "param model": (400, error("Bad.", param="model", code="invalid_value"), MODEL),
    "OpenRouter, nobody": (404, error("No endpoints found for x."), MODEL),
    "a local server": (400, {"detail": "Model x is not loaded"}, MODEL),
    "OpenRouter, model": (400, error("x/y is not a valid model ID"), MODEL),
    "Ark, model": (404, error("The model or endpoint x does not exist",
                              code="InvalidEndpointOrModel.NotFound"), MODEL),
    "LiteLLM, model of a key": (401, error(NO_ACCESS, param="model"), MODEL),
    "OpenAI, no access": (403, error("Project `p` does not have access to model `x`",
                                     code="model_not_found"), MODEL),
    "new-api, convert": (500, error("not supported model for image generation",
                                    code="convert_request_failed"), MODEL),
    "new-api, convert, 400": (400, error("x", code="convert_request_failed"), MODEL),
    "in Chinese, model": (400, error("模型 x 不存在，请检查模型名称"), MODEL),
    "in Chinese, a size of a model": (400, error("该模型不支持 512x512 尺寸"), REJECTED),
    # The backend.
    "429": (429, error("Rate limited", code="rate_limit_exceeded"), RATE),
    "429 with a sign of moderation": (429, error(code="moderation_blocked"), RATE),
    "429 in a 200": (200, error(code="429"), RATE),
    "rate limit, 400": (400, error("Rate limit reached for images per minute"), RATE),
    "500": (500, error("Internal error in the safety system"), DOWN),
    "500 that wraps a refusal": (500, inside(error(OPENAI)), DOWN),
    "502": (502, b"<html>Bad gateway</html>", DOWN),
    "409": (409, b"", DOWN),
    "302": (302, b"", DOWN),
    "530": (530, b"", DOWN),
    "407 of a proxy": (407, b"<html>ERR_CACHE_ACCESS_DENIED</html>", UNREACHABLE),
    "408": (408, b"", LATE),
    "504": (504, b"", LATE),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHERS)
def test_fault_is_no_refusal_and_has_its_word(case: str) -> None:
    status, body, expected = OTHERS[case]
    fault = judged(status, body)
    assert fault == expected
    assert fault.is_of_account == (expected in OF_ACCOUNT)


@pytest.mark.parametrize("status", [403, 503])
def test_cloudflares_challenge_is_named(status: int) -> None:
    assert judged(status, b"", {"cf-mitigated": "challenge"}) == CLOUDFLARE


# --- what the client wrote ----------------------------------------------------------------------

NO_MODEL = "The model '{}' does not exist"
# What a client wrote, how vendors quote it, and what that means.
QUOTED: list[tuple[str, int, Any, Fault]] = [
    ("billing", 404, NO_MODEL, MODEL),
    ("billing", 400, NO_MODEL, MODEL),
    ("Billing", 400, "model billing is not supported", MODEL),
    ("api key", 400, "Invalid value: 'api key'", REJECTED),
    ("nsfw", 400, "Invalid value: 'nsfw'. Supported values are: 'low'.", REJECTED),
    ("content policy", 422, "'content  policy' is no style", REJECTED),
    ("a poster about our content policy", 422, 'cannot draw "{}"', REJECTED),
    ("a poster\nabout quota", 400, inside(error('cannot draw "a poster\nabout quota"')), REJECTED),
    ("an API-key, please: now", 400, "cannot draw 'an api key please now'", REJECTED),
    ("no quota left, " * 40, 400, "cannot draw '" + "no quota left, " * 10 + "…'", REJECTED),
    ('{"code":"insufficient_quota","type":"server_error"}', 400, "bad style: {}", REJECTED),
    ('x","code":"billing_hard_limit_reached', 400, 'bad: {"style":"{}"}', REJECTED),
    ('{"code": 401, "error": {"code": "moderation_blocked"}}', 400, "cannot draw {}", REJECTED),
    ("x", 400, "Invalid model name passed in model='x'", MODEL),
    ("a", 400, "Billing hard limit has been reached", CREDIT),
    # Words that a vendor uses as well never make more of an error than it is.
    ("exist", 404, NO_MODEL, MODEL),
    ("available", 503, "No available channel for model available", MODEL),
    ("safety", 400, error(code="safety_system", type="moderation_blocked"),
     Fault(Outcome.REFUSED, "refused")),
]  # fmt: skip


@pytest.mark.parametrize(("wrote", "status", "body", "expected"), QUOTED)
def test_what_the_client_wrote_is_no_evidence(
    wrote: str, status: int, body: Any, expected: Fault
) -> None:
    body = error(body.replace("{}", wrote)) if isinstance(body, str) else body
    assert judged(status, body, sent=(wrote,)) == expected


EVIL = st.sampled_from((
    '{"code":"insufficient_quota"}', "billing", "api key", "quota", "nsfw", "content policy",
    "rate limit", "'size' must be", "one of 64x64", "Unknown parameter: 'seed'", "model not found",
    "stream", "\\billing", '"', "must be set to true", "prompt too long", "set header X-A=b",
    "exist", "违禁", "余额", "İ",
))  # fmt: skip
WRITTEN = st.lists(EVIL | st.text(max_size=8), min_size=1, max_size=4).map(" ".join)
SAYING = st.sampled_from(
    (
        (404, "The model '{}' does not exist"),
        (400, "Invalid value: '{}'. Supported values are: 'low' and 'high'."),
        (400, "Invalid model name passed in model='{}'."),
        (422, 'I cannot draw "{}"'),
        (500, "No channel for '{}' is free"),
    )
)


@unhurried
@given(WRITTEN, SAYING, st.sampled_from(("as it is", "in capitals", "as JSON", "in JSON")))
def test_free_text_never_worsens_the_outcome(
    wrote: str, saying: tuple[int, str], form: str
) -> None:
    status, sentence = saying
    if not any(sign.isalnum() for sign in wrote):
        return
    shown = {"in capitals": wrote.upper(), "as JSON": json.dumps(wrote)}.get(form, wrote)
    body = error(sentence.replace("{}", shown))
    fault = judged(status, inside(body) if form == "in JSON" else body, sent=(wrote,))
    alone, harmless = judged(status, error()), judged(status, error(sentence.replace("{}", "x1y2")))
    is_milder = alone.outcome is Outcome.FAILED and fault.is_of_model
    assert is_milder or fault in (alone, harmless)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (error("The model 'x'\n does not\x1b[31m exist"), "The model 'x' does not [31m exist"),
        (error("Incorrect API key: sk-proj-abc123def."), "Incorrect API key: ***"),
        (error("Wrong token, Bearer abc"), "Wrong token, ***"),
        (b"<html>Just a moment", "<html>Just a moment"),
        (error("x" * 4000), "x" * 1000),
        ({"errors": {"message": "No."}}, "No."),
        ({"code": 5}, "5"),
        (b"", ""),
    ],
)
def test_administrator_reads_the_vendors_own_words(body: Any, words: str) -> None:
    fault = Answer.of(reply(400, body), ("x",)).fault
    assert fault is not None
    assert fault.detail == words


@pytest.mark.parametrize(
    ("given_error", "status"),
    [
        *(({"code": 429, "message": "slow down"}, 429), ({"code": "503"}, 503)),
        *(({"code": None, "status": 402}, 402), ({"code": "rate_limit_exceeded"}, 400)),
        *(({"code": 400, "status": "INVALID_ARGUMENT"}, 400), ({"code": 200}, 400)),
        *(({"code": 4290}, 400), ({"code": "٤٠٤"}, 400), ({"code": ["429"]}, 400)),
        *(("no", 400), (["no"], 400)),
    ],
)
def test_error_inside_a_200_has_the_status_it_claims(given_error: Any, status: int) -> None:
    answer = Answer.of(reply(200, {"error": given_error, "data": []}))
    assert answer.error is not None
    assert answer.error.status == status


@pytest.mark.parametrize("empty", [None, "", {}, [], False, 0])
def test_empty_error_inside_a_200_is_none(empty: Any) -> None:
    assert Answer.of(reply(200, {"error": empty})).fault is None


# --- how long to wait ---------------------------------------------------------------------------

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        *(({"retry-after": "17"}, 17), ({"retry-after": " 90 "}, 90), ({"retry-after": "0"}, 0)),
        *(({"retry-after": "1.5"}, 1.5), ({"retry-after-ms": "2500"}, 2.5)),
        ({"retry-after": "9", "retry-after-ms": "2500"}, 2.5),
        ({"retry-after": "9", "retry-after-ms": "soon"}, 9),
        ({"retry-after": email.utils.formatdate(NOW + 30, usegmt=True)}, 30),
        ({"retry-after": email.utils.formatdate(NOW - 60, usegmt=True)}, 0),
        ({"retry-after": "Fri, 15 Jan 2027 09:00:10 +0100"}, 10),
        ({"retry-after": "Fri, 99 Jan 2027 08:00:10 GMT"}, None),
        *(({"retry-after": odd}, None) for odd in ("soon", "-5", "nan", "9" * 5000, "")),
    ],
)
def test_retry_after_is_read_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, lambda: NOW) == seconds


def test_fault_carries_retry_after() -> None:
    assert judged(503, b"", {"retry-after": "17"}).wait == 17


# --- any answer ---------------------------------------------------------------------------------


def test_error_is_read_in_any_nesting() -> None:
    read = ErrorText.read(
        400,
        {
            "a": [{"innererror": {"code": "Deep", "type": 7}}],
            "param": "body.size/x",
            "errors": {"seed": ["is &quot;wrong&quot;"]},
            "b": [True],
        },
    )
    assert read.codes == {"Deep", "7"}
    assert read.params == {"body", "size", "x", "seed"}
    assert 'is "wrong"' in read.text.split("\n")


@pytest.mark.parametrize(
    "unit",
    [
        *(
            "model ",
            "model not ",
            "content ",
            "blocked by a ",
            "safety ",
            "敏感",
            "{",
            "[",
            '{"a":',
        ),
        *("invalid ", "token ", "&amp;", "\\", '\\"', "insufficient ", "verify ", "a", "\n", "'"),
        *("1024x1024 ", "1", "1,", "1:1 ", "at least ", "between 1 and ", "maximum", "最大", "px"),
        *("size ", "parameter ", "not support ", "unknown ", "divisible by ", "exceeds"),
    ],
)
def test_hostile_answer_is_read_in_linear_time(unit: str) -> None:
    text = "size must be " + unit * (2**18 // len(unit))
    began = time.process_time()
    for body in (
        *(text.encode(), error(text), {"error": [text[:4000]] * 64}, inside(inside(text))),
        b"[" * 2**18,
    ):
        found = Answer.of(reply(400, body)).error
        assert found
        Learned().learn(found, {"size": "512x512", "seed": 42}, (512, 512))
    # Quadratic time would be minutes.
    assert time.process_time() - began < 3
