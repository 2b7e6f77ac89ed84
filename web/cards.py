"""Cards: small SVG pictures that show the reason for an error in place of the picture.

An SVG that is shown as a picture loads no font and runs no script, and SVG 1.1 wraps no text:
lines are broken here, by widths that no usual font exceeds.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from unicodedata import east_asian_width

from flask import request

WIDTH, LEAST_HEIGHT = 480, 200
# What an answer depends on when it is a card for some and JSON for others.
VARY = "Accept, Accept-Language, Sec-Fetch-Dest, User-Agent, Via"
_LEFT, _RIGHT = 96, 20
_TITLE_SIZE, _SIZE, _LINE = 21, 16, 22
_FIRST_LINE, _BELOW = 98, 26

# Widths in em, rounded up from those of DejaVu Sans and Verdana, the widest of the usual fonts.
_NARROW = frozenset("ijlfrtI .,:;!'|/\\()[]-’")
_WIDE = frozenset("mwMWOQ@%&…—+=<>")
_PIECE = re.compile(
    # A Chinese character with the punctuation that may not begin a line, or a word.
    r"\s*(?:[\u2e80-\u9fff\uff00-\uffef][\u3001\u3002\uff0c\uff1a\uff1b\uff01\uff1f\uff09]*"
    r"|[^\s\u2e80-\u9fff\uff00-\uffef]+)"
)


def wants_picture() -> bool:
    """Return whether the client shows pictures, as an <img> and GitHub's camo do."""
    destination = request.headers.get("Sec-Fetch-Dest")
    if destination is not None:
        return destination == "image"
    # Some versions of camo accept */*, and show nothing at all in place of an error.
    if "camo" in f"{request.user_agent.string} {request.headers.get('Via', '')}".lower():
        return True
    accepted = request.accept_mimetypes
    readable = ("text/html", "text/plain", "application/json", "application/problem+json")
    pictures = ("image/svg+xml", "image/png")
    return max(map(accepted.quality, pictures)) > max(map(accepted.quality, readable))


def wants_chinese() -> bool:
    """Return whether the client prefers Chinese to English."""
    return request.accept_languages.best_match(("en", "zh")) == "zh"


def card(title: str, sentence: str) -> str:
    """Return an SVG 480 pixels wide and as high as its text, legible on light and dark."""
    lines = list(wrap(sentence))
    height = max(LEAST_HEIGHT, _FIRST_LINE + _LINE * (len(lines) - 1) + _BELOW)
    attributes = f'font-family="system-ui, sans-serif" x="{_LEFT}"'
    texts = "".join(
        f'<text {attributes} y="{_FIRST_LINE + _LINE * number}" font-size="{_SIZE}"'
        f' fill="#d7dde8">{html.escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    label = html.escape(f"{title}: {sentence}")
    # Attributes only: the Content-Security-Policy of a card forbids a <style>.
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
        f' viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">'
        f'<rect width="{WIDTH}" height="{height}" rx="14" fill="#273043"/>'
        '<circle cx="54" cy="64" r="20" fill="none" stroke="#f2b872" stroke-width="4"/>'
        '<path d="M54 53v13m0 7v2" stroke="#f2b872" stroke-width="4" stroke-linecap="round"/>'
        f'<text {attributes} y="70" font-size="{_TITLE_SIZE}" font-weight="600" fill="#fff">'
        f"{html.escape(title)}</text>{texts}</svg>\n"
    )


def wrap(text: str) -> Iterator[str]:
    """Yield the lines of a text as they fit into a card."""
    line, most = "", (WIDTH - _LEFT - _RIGHT) / _SIZE
    for piece in _PIECE.findall(text):
        if line and _width(line + piece) > most:
            yield line
            line = ""
        line += piece if line else piece.lstrip()
        while _width(line) > most:  # one word alone
            end = next(n for n in range(len(line), 0, -1) if _width(line[:n]) <= most)
            yield line[:end]
            line = line[end:]
    yield line


def _width(text: str) -> float:
    return sum(map(_width_of, text))


def _width_of(character: str) -> float:
    if character in _NARROW:
        return 0.42
    if character in _WIDE or east_asian_width(character) in "WF":
        return 1.0
    return 0.79 if character.isupper() else 0.65


def in_chinese(text: str) -> str:
    """Return a title or the sentences of a card in Chinese; unknown ones stay English."""
    for english, chinese in _CHINESE:
        text = english.sub(chinese, text)
    return re.sub(r"(?<=[\u3002\uff1a]) ", "", text)


_SENTENCES = {
    # titles
    "Bad request": "请求有误",
    "Unauthorised": "未授权",
    "Forbidden": "禁止访问",
    "Not found": "未找到",
    "Refused by moderation": "未通过审核",
    "Daily limit reached": "今日次数已用完",
    "Internal error": "内部错误",
    "Drawing failed": "绘制失败",
    "Try again later": "请稍后再试",
    "Deadline passed": "绘制超时",
    "Being drawn": "正在绘制",
    "Request failed": "请求失败",
    # access
    r"An access key is required\.": "需要访问密钥。",
    r"The access key is wrong\.": "访问密钥不正确。",
    r"This access key was valid until (\S+)\.": r"此访问密钥的有效期至 \1。",
    r"The signature is incomplete\.": "签名不完整。",
    r"The signature is wrong: it belongs to another picture or key\.": (
        "签名不正确：它属于另一张图片或另一个密钥。"
    ),
    r"The signature has expired\.": "签名已过期。",
    r"The limit of (\d+) drawings a day is reached\.": r"每天 \1 次绘图已用完。",
    # the picture asked for
    r"The description is empty\.": "描述为空。",
    r"The description is longer than (\d+) characters\.": r"描述超过 \1 个字符。",
    r"The parameter (\w+) is given twice\.": r"参数 \1 出现了两次。",
    r"The parameter (\w+) must be an integer from 1 to (\d+)\.": r"参数 \1 须为 1 到 \2 的整数。",
    # drawings
    r"The picture is still being drawn\.": "图片仍在绘制。",
    r"The picture was not drawn in time\.": "图片未能及时绘制完成。",
    r"Moderation refused the prompt everywhere\.": "所有后端都拒绝了此提示词。",
    r"All backends have failed lately and are avoided for a while\.": (
        "所有后端最近都出错，暂不使用。"
    ),
    r"No backend could draw the picture\.": "没有后端能完成绘制。",
    r"Too many pictures are being drawn at the moment\.": "目前正在绘制的图片过多。",
    r"The cache cannot be used at the moment\.": "缓存暂时无法使用。",
    r"Something went wrong\. The log has the details\.": "出错了，详情见日志。",
    r"This is remembered until (\S+ \S+) UTC\.": r"此结果会记住到 \1 UTC。",
    # advice
    r"Change the description\.": "请修改描述。",
    r"The operator has to fix it: /status or the log says why\.": (
        "需要服务的管理者来解决，原因见 /status 或日志。"
    ),
    r"Try again in (\d+) s\.": r"请在 \1 秒后重试。",
    r"Try again later\.": "请稍后再试。",
    r"It will be here soon: load it again in (\d+) s\.": r"即将完成，请在 \1 秒后重新加载。",
    r"The next day begins at midnight UTC\. Pictures drawn before are still served\.": (
        "新的一天从 UTC 零点开始。已画好的图片仍可查看。"
    ),
    r"An administrator can clear it: POST /cache/delete or python -m commands cache delete\.": (
        "管理员可以清除它：POST /cache/delete 或 python -m commands cache delete。"
    ),
}
# Titles are whole texts.
_CHINESE = tuple(
    (re.compile(english if english.endswith(r"\.") else f"^{english}$"), chinese)
    for english, chinese in _SENTENCES.items()
)
