"""Links to pictures, to paste into documents."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

from picture import ImageRequest


@dataclass(frozen=True, slots=True)
class Link:
    """A picture's URL, also as Markdown and HTML to paste into documents.

    `drawn` is the size that it was drawn at, if it is known: browsers would squash a picture into
    another one.
    """

    request: ImageRequest
    url: str
    drawn: tuple[int, int] | None = None

    @property
    def markdown(self) -> str:
        alt = re.sub(r"([\\`*_\[\]<>&!])", r"\\\1", " ".join(self.request.prompt.split()))
        return f"![{alt}]({self.url})"

    @property
    def html(self) -> str:
        width, height = self.drawn or self.request.pixels or (None, None)
        size = f' width="{width}" height="{height}"' if width else ""
        alt = html.escape(" ".join(self.request.prompt.split()))
        return f'<img src="{html.escape(self.url)}" alt="{alt}"{size} loading="lazy">'

    def to_json(self) -> dict[str, str]:
        return {"url": self.url, "markdown": self.markdown, "html": self.html}
