"""Render the error cards in web/cards/: `python -m demo.render_cards`.

Needs Pillow (requirements-formats.txt), and Debian's chromium and fonts-noto-cjk. Run it after a
change here, and commit the pictures: the service serves them as they are.
"""

import html
import io
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from web.sentences import Language, Sentence

FOLDER = Path(__file__).resolve().parent.parent / "web" / "cards"
# Between a square and 16:9: an <img> with a width and a height stretches the card to its own shape.
WIDTH, HEIGHT = 480, 320
_COLOURS = 16
_FLAGS = "--headless=new --no-sandbox --disable-gpu --hide-scrollbars --force-device-scale-factor=1"

# By cause: a title, and what the reader can do. What only an administrator can do is in the JSON.
CARDS: Mapping[str, tuple[Sentence, Sentence]] = {
    "invalid": (
        Sentence("Invalid link", "链接无效"),
        Sentence(
            "This link names no picture. Open it in a new tab to see why.",
            "此链接不指向任何图片。在新标签页中打开可查看原因。",
        ),
    ),
    "incomplete": (
        Sentence("Incomplete link", "链接不完整"),
        Sentence(
            "It has no key or signature. In the description, write #, ? and ) as %23, %3F and %29.",
            "缺少密钥或签名。描述中的 #、?、) 须写作 %23、%3F、%29。",
        ),
    ),
    "unauthorised": (
        Sentence("Unauthorised", "未授权"),
        Sentence(
            "The key or the signature in this link is not valid. Ask its author for a new link.",
            "链接中的密钥或签名无效。请向作者索取新的链接。",
        ),
    ),
    "expired": (
        Sentence("Link expired", "链接已过期"),
        Sentence(
            "This link is no longer valid. Ask its author for a new one.",
            "此链接已失效。请向作者索取新的链接。",
        ),
    ),
    "refused": (
        Sentence("Refused by moderation", "未通过审核"),
        Sentence(
            "This description cannot be drawn. Change it and try again.",
            "此描述无法生成图片。请修改后重试。",
        ),
    ),
    "limit": (
        Sentence("Daily limit reached", "今日次数已用完"),
        Sentence(
            "New pictures are drawn again after midnight UTC. Earlier ones are still shown.",
            "UTC 零点后可再生成新图片。已生成的图片仍可查看。",
        ),
    ),
    "undrawn": (
        Sentence("Not drawn yet", "尚未生成"),
        Sentence(
            "This link only shows pictures that were drawn before. Ask its author for another.",
            "此链接只能查看已生成的图片。请向作者索取新的链接。",
        ),
    ),
    "model": (
        Sentence("Unknown model", "没有此模型"),
        Sentence(
            "The model in this link is unknown here. Write another one into it, or none.",
            "此处没有链接中的模型。请换一个模型，或不写模型。",
        ),
    ),
    "many": (
        Sentence("Too many requests", "请求过多"),
        Sentence(
            "Wait a few seconds, then reload the page.",
            "请等待几秒，然后刷新页面。",
        ),
    ),
    "drawing": (
        Sentence("Being drawn", "正在生成"),
        Sentence(
            "The picture will be ready soon. Reload the page in a few seconds.",
            "图片即将完成。请在几秒后刷新页面。",
        ),
    ),
    "failed": (
        Sentence("Drawing failed", "生成失败"),
        Sentence(
            "Reloading does not help. Tell whoever runs this service.",
            "刷新没有用。请告知服务的管理员。",
        ),
    ),
    "later": (
        Sentence("Try again later", "请稍后再试"),
        Sentence(
            "This picture is not available at the moment. Reload the page in a few minutes.",
            "图片暂时不可用。请在几分钟后刷新页面。",
        ),
    ),
}
# nginx's own 400 and 414, which it answers before it has read a header: in both languages.
UNREADABLE = (
    Sentence("Invalid link", "链接无效"),
    Sentence("Write % as %25. Shorten a very long link.", "% 须写作 %25。过长的链接须缩短。"),
)

_PAGE = """<!doctype html><meta charset="utf-8"><style>
  body {{ margin: 0; font: 26px/1.35 "Noto Sans CJK SC"; color: #e3e8f1 }}
  main {{ box-sizing: border-box; height: {height}px; padding: 20px 34px;
    border: 2px solid #55637f; background: #273043;
    display: flex; flex-direction: column; justify-content: center }}
  h1 {{ margin: 0 0 12px; font-size: 34px; line-height: 1.2; color: #ffc57d }}
  p {{ margin: 0; text-wrap: pretty }}
  p + h1 {{ margin-top: 22px }}
</style><main>{body}</main>"""


def render(parts: list[tuple[str, str]], browser: str) -> bytes:
    """Return a PNG of titles and texts, which it also holds as its description."""
    body = "".join(f"<h1>{html.escape(title)}</h1><p>{_lines(text)}</p>" for title, text in parts)
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        page, picture = Path(folder, "card.html"), Path(folder, "card.png")
        page.write_text(_PAGE.format(height=HEIGHT, body=body), "utf-8")
        command = [browser, *_FLAGS.split(), f"--user-data-dir={folder}/profile"]
        command += [f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={picture}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        return _packed(picture, describe(parts))


def _lines(text: str) -> str:
    return html.escape(text).replace(". ", ".<br>").replace("。", "。<br>")


def describe(parts: list[tuple[str, str]]) -> str:
    """Return the text of a card."""
    return "\n".join(f"{title}: {text}" for title, text in parts)


def _packed(picture: Path, description: str) -> bytes:
    info, packed = PngInfo(), io.BytesIO()
    info.add_itxt("Description", description)
    with Image.open(picture) as image:
        few = image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
        few.save(packed, "PNG", optimize=True, bits=4, pnginfo=info)
    return packed.getvalue()


def parts_of_each() -> dict[str, list[tuple[str, str]]]:
    """Return the titles and texts of every card by its file's name."""
    both: tuple[Language, ...] = get_args(Language)
    title, text = UNREADABLE
    found = {"unreadable.png": [(title.say(one), text.say(one)) for one in both]}
    for name, (title, text) in CARDS.items():
        found |= {f"{name}.{one}.png": [(title.say(one), text.say(one))] for one in both}
    return found


def main() -> None:
    """Replace all cards."""
    browser = shutil.which("chromium") or sys.exit("Chromium is missing: apt-get install chromium")
    FOLDER.mkdir(exist_ok=True)
    for name, parts in parts_of_each().items():
        data = render(parts, browser)
        (FOLDER / name).write_bytes(data)
        print(f"{name}: {len(data):,} bytes")


if __name__ == "__main__":
    main()
