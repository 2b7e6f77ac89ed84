"""The messages for clients: one sentence per error code, in English and in Chinese.

The command line says the same sentences in English. The page's own words are in web/page/.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from drawing.record import GaveUp
from picture import Problem

Language = Literal["en", "zh"]


class Sentence(NamedTuple):
    """One sentence in both languages, with `{name}` for each parameter."""

    en: str
    zh: str

    def say(self, language: Language, **parameters: Any) -> str:
        return (self.zh if language == "zh" else self.en).format(**parameters)


def explain(error: Problem, language: Language = "en") -> str:
    """Return the sentence of an error and, if it is lasting, how long it is remembered."""
    said = [SENTENCES[error.code].say(language, **error.parameters)]
    if isinstance(error, GaveUp) and error.is_lasting:
        said.append(_REMEMBERED.say(language, until=error.until))
    return joined(said, language)


def joined(sentences: Iterable[str], language: Language) -> str:
    """Join sentences; Chinese ones without a space."""
    return ("" if language == "zh" else " ").join(sentences)


# By status, or by code where one error of a status has a title of its own.
TITLES: Mapping[int | str, Sentence] = {
    400: Sentence("Bad request", "请求有误"),
    401: Sentence("Unauthorised", "未授权"),
    403: Sentence("Forbidden", "禁止访问"),
    404: Sentence("Not found", "未找到"),
    422: Sentence("Refused by moderation", "未通过审核"),
    429: Sentence("Daily limit reached", "今日次数已用完"),
    500: Sentence("Internal error", "内部错误"),
    502: Sentence("Drawing failed", "生成失败"),
    503: Sentence("Try again later", "请稍后再试"),
    504: Sentence("Deadline passed", "生成超时"),
    "still_drawing": Sentence("Being drawn", "正在生成"),
    "unknown_model": Sentence("Unknown model", "没有此模型"),
    "other": Sentence("Request failed", "请求失败"),
}
# By the remedy in problem+json, which is null where it is unknown.
ADVICE: Mapping[str, Sentence] = {
    "reword": Sentence("Change the description.", "请修改描述。"),
    "model": Sentence("Name another model, or none.", "请换一个模型，或不指定模型。"),
    "operator": Sentence("Only the operator can fix this.", "请联系服务管理员。"),
    "wait": Sentence("Try again in {seconds} s.", "请在 {seconds} 秒后重试。"),
    "reload": Sentence(
        "It will be ready soon. Reload in {seconds} s.", "即将完成，请在 {seconds} 秒后重新加载。"
    ),
    "tomorrow": Sentence(
        "The next day begins at midnight UTC. Pictures drawn before are still served.",
        "新的一天从 UTC 零点开始。已生成的图片仍可查看。",
    ),
    "unknown": Sentence("Try again later.", "请稍后再试。"),
}
# For administrators: neither on a card nor under /v1.
REASON = Sentence("See /status or the log.", "原因见 /status 或日志。")
CLEARING = Sentence(
    "An administrator can clear it: POST /cache/delete or python -m commands cache delete.",
    "管理员可以清除它：POST /cache/delete 或 python -m commands cache delete。",
)
_REMEMBERED = Sentence(
    "This result is cached until {until:%Y-%m-%d %H:%M:%S} UTC.",
    "此结果会缓存到 {until:%Y-%m-%d %H:%M:%S} UTC。",
)

SENTENCES: Mapping[str, Sentence] = {
    # the picture that is asked for
    "prompt_empty": Sentence("The description is empty.", "描述为空。"),
    "prompt_too_long": Sentence(
        "The description is longer than {limit} characters.", "描述超过 {limit} 个字符。"
    ),
    "prompt_has_nul": Sentence("The description contains a NUL character.", "描述含有 NUL 字符。"),
    "prompt_has_key": Sentence(
        "The access key has become part of the description.", "访问密钥混进了描述。"
    ),
    "prompt_not_utf8": Sentence("The description is not valid UTF-8.", "描述不是有效的 UTF-8。"),
    "parameter_not_utf8": Sentence("A parameter is not valid UTF-8.", "有参数不是有效的 UTF-8。"),
    "parameter_twice": Sentence("The parameter {name} is given twice.", "参数 {name} 出现了两次。"),
    "too_many_parameters": Sentence(
        "There are more than {limit} parameters.", "参数超过 {limit} 个。"
    ),
    "not_in_range": Sentence(
        "The parameter {name} must be an integer from {low} to {high}.",
        "参数 {name} 须为 {low} 到 {high} 的整数。",
    ),
    "not_a_model": Sentence(
        "The parameter model must be 1 to 100 of A-Z a-z 0-9 . _ : / @ + - and not def.",
        "参数 model 须为 1 到 100 个字符，可用 A-Z a-z 0-9 . _ : / @ + -，且不能是 def。",
    ),
    "not_a_seed": Sentence(
        "The parameter seed must be an integer of at most 18 digits.",
        "参数 seed 须为不超过 18 位的整数。",
    ),
    "not_an_option": Sentence(
        "The parameter {name} must be 1 to 200 printable characters.",
        "参数 {name} 须为 1 到 200 个可显示的字符。",
    ),
    # access
    "key_missing": Sentence("An access key is required.", "需要访问密钥。"),
    "credentials_missing": Sentence(
        "This URL has neither a key nor a signature. "
        "A #, ? or ) in the description must be written %23, %3F or %29.",
        "此链接既没有密钥也没有签名。描述中的 #、? 和 ) 须写作 %23、%3F 和 %29。",
    ),
    "key_wrong": Sentence("The access key is wrong.", "访问密钥不正确。"),
    "key_expired": Sentence(
        "This access key was valid until {day}.", "此访问密钥的有效期至 {day}。"
    ),
    "signature_incomplete": Sentence("The signature is incomplete.", "签名不完整。"),
    "signature_wrong": Sentence(
        "The signature is wrong: it belongs to another picture or key.",
        "签名不正确：它属于另一张图片或另一个密钥。",
    ),
    "signature_expired": Sentence("The signature has expired.", "签名已过期。"),
    "signer_removed": Sentence(
        "The access key with which this URL was signed has been removed.",
        "签署此链接的访问密钥已被移除。",
    ),
    "not_a_time": Sentence(
        "The parameter {name} must be a Unix time in seconds.",
        "参数 {name} 须为以秒计的 Unix 时间。",
    ),
    "signing_off": Sentence(
        "Signing is off: neither SIGNING_KEY nor PROXY_ACCESS_KEY is set.",
        "签名未开启：SIGNING_KEY 和 PROXY_ACCESS_KEY 都没有设置。",
    ),
    "administration_off": Sentence(
        "Administration is off: ADMIN_TOKEN is not set.", "管理功能未开启：没有设置 ADMIN_TOKEN。"
    ),
    "admin_token_wrong": Sentence(
        "The admin token is wrong or missing.", "管理令牌不正确或未提供。"
    ),
    "daily_attempts_reached": Sentence(
        "With this key, {limit} drawings have been tried today.",
        "此密钥今天已尝试生成 {limit} 次。",
    ),
    "daily_limit_reached": Sentence(
        "The daily limit of drawings is reached: {limit}.", "每天 {limit} 次生成已用完。"
    ),
    "may_not_draw": Sentence(
        "This key or link only opens pictures that have been drawn before.",
        "此密钥或链接只能查看已生成的图片。",
    ),
    # drawings
    "still_drawing": Sentence("The picture is still being drawn.", "图片仍在生成。"),
    "moderation_refused": Sentence(
        "Every backend's moderation refused this prompt.", "所有后端的审核都拒绝了此提示词。"
    ),
    "deadline_passed": Sentence("The picture was not drawn in time.", "生成超时。"),
    "all_cooling_down": Sentence(
        "All backends have failed recently and are cooling down.",
        "所有后端最近都出错，正在冷却。",
    ),
    "unknown_model": Sentence("The requested model is unknown here.", "此处没有所请求的模型。"),
    "no_backend_drew": Sentence("No backend could draw the picture.", "没有后端能生成图片。"),
    "too_many_drawings": Sentence(
        "Too many pictures are being drawn at the moment.", "目前正在生成的图片过多。"
    ),
    "no_room": Sentence(
        "New pictures cannot be stored at the moment, so none are drawn.",
        "目前无法保存新图片，因此不生成。",
    ),
    "cache_unavailable": Sentence("The cache cannot be used at the moment.", "缓存暂时无法使用。"),
    # the API
    "body_cut": Sentence("The body did not arrive whole.", "请求体没有完整到达。"),
    "body_not_object": Sentence("The body is not a JSON object.", "请求体不是 JSON 对象。"),
    "body_too_large": Sentence("The body is too large.", "请求体过大。"),
    "parameter_missing": Sentence("The parameter {name} is required.", "缺少参数 {name}。"),
    "not_a_string": Sentence("The parameter {name} must be a string.", "参数 {name} 须为字符串。"),
    "not_a_scalar": Sentence(
        "The parameter {name} must be a number or a string.", "参数 {name} 须为数字或字符串。"
    ),
    "not_a_choice": Sentence(
        "The parameter {name} must be one of: {known}.", "参数 {name} 须为以下之一：{known}。"
    ),
    "not_a_cursor": Sentence(
        "The parameter before must be the next of an earlier answer.",
        "参数 before 须为之前响应中的 next。",
    ),
    "not_a_size": Sentence(
        "The parameter size must be auto or WIDTHxHEIGHT, each from 1 to {high}.",
        "参数 size 须为 auto 或 WIDTHxHEIGHT，各为 1 到 {high}。",
    ),
    "not_a_host": Sentence(
        "The Host of the request is not a host name.", "请求的 Host 不是主机名。"
    ),
    "no_streaming": Sentence("Streaming is not supported.", "不支持流式输出。"),
    "no_edits": Sentence(
        "Pictures cannot be edited here, only drawn: POST /v1/images/generations.",
        "不支持编辑图片，只能生成：POST /v1/images/generations。",
    ),
    "no_such_picture": Sentence("There is no such picture in the cache.", "缓存中没有此图片。"),
    "no_such_model": Sentence(
        "There is no such model. GET /v1/models lists those that are offered.",
        "没有此模型。GET /v1/models 列出可用的模型。",
    ),
    # HTTP
    "bad_request": Sentence("Bad request.", "请求有误。"),
    "no_such_route": Sentence(
        "There is nothing here. Pictures are at /prompt/{{description}}.",
        "这里什么也没有。图片在 /prompt/{{description}}。",
    ),
    "no_such_method": Sentence("This method is not allowed here.", "此处不允许这种请求方法。"),
    "not_satisfiable": Sentence("The range cannot be satisfied.", "无法提供请求的范围。"),
    "internal_error": Sentence("Something went wrong.", "出错了。"),
}
