"""The doors of vendors' APIs: the configured URL alone says where and how to ask."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from dialect.blame import SIZE_FIELDS
from dialect.learning import Learned
from dialect.sizes import SizeRule

IMAGES = "images/generations"
CHAT = "chat/completions"

Kind = Literal["images", "minimax", "chat"]
# Paths that are asked as they are: OpenAI's, OpenRouter's, MiniMax's, and of chats.
_KINDS: Mapping[str, Kind] = {
    f"/{IMAGES}": "images",
    "/images": "images",
    "/image_generation": "minimax",
    f"/{CHAT}": "chat",
}
_VERSION = re.compile(r"(?i)/v[0-9]+[a-z0-9]*(/|$)")
_DEPLOYMENT = re.compile(r"/openai/deployments/[^/]+(/images/generations|/chat/completions)?$")

# Models that speak no text say so, which is learned like a parameter.
_OF_CHAT: Mapping[str, Any] = {"modalities": ["image", "text"], "stream": False}
_OF_MINIMAX: Mapping[str, Any] = {"n": 1, "response_format": "base64"}
# MiniMax, "Image Generation": width and height are 512 to 2048, divisible by 8.
_SIZES_OF_MINIMAX = SizeRule(multiple=8, least_side=512, most_side=2048)
_FIRST = {
    "images": Learned(),
    "minimax": Learned(size_field="width", sizes=_SIZES_OF_MINIMAX),
    "chat": Learned(size_field="image_config"),
}


@dataclass(frozen=True, slots=True)
class ApiDoor:
    """Where requests for one operation go, and what they look like there.

    `base` is the URL without the operation; both keep the query. `is_deployment`: Azure's, which
    is of one model. `first` is what is known before anything has been learned.
    """

    url: str
    base: str
    kind: Kind
    is_deployment: bool
    first: Learned

    @property
    def needs_model(self) -> bool:
        """Return whether a request without a model is pointless."""
        return self.kind == "chat" and not self.is_deployment

    def headers(self, token: str | None) -> dict[str, str]:
        """Return the headers that carry a token."""
        if not token:
            return {}
        return {"api-key": token} if self.is_deployment else {"Authorization": f"Bearer {token}"}

    def body(self, prompt: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return a request to draw `prompt`; a field that is None is left out."""
        asked: dict[str, Any] = {"prompt": prompt}
        own: Mapping[str, Any] = _OF_MINIMAX if self.kind == "minimax" else {"n": 1}
        if self.kind == "chat":
            asked, own = {"messages": [{"role": "user", "content": prompt}]}, _OF_CHAT
        if self.is_deployment:
            asked["model"] = None
        sent = {**own, **fields, **asked}
        return {name: value for name, value in sent.items() if value is not None}

    def beside(self, path: str) -> str:
        """Return the URL of `path` beside the operation, such as `/tasks/1`."""
        parts = urlsplit(self.base)
        return parts._replace(path=parts.path + path).geturl()


def has_size(fields: Mapping[str, Any]) -> bool:
    """Return whether configured fields say the size, or the shape, by themselves."""
    config = fields.get("image_config")
    if isinstance(config, dict) and "aspect_ratio" in config:
        return True
    return any(name in fields for name in SIZE_FIELDS if name != "image_config")


def door_of(url: str, operation: str) -> ApiDoor:
    """Return the door of a configured URL for `operation`, which is IMAGES or CHAT.

    The operation is appended to a path with a version segment, and to Azure's deployments; with
    `v1/` before it to any other, unless it ends in an operation already. The query stays.
    """
    parts = urlsplit(url)
    path = parts.path.rstrip("/")
    is_deployment = bool(_DEPLOYMENT.search(path))
    endings = _KINDS if operation == IMAGES else (f"/{CHAT}",)
    ending = next((end for end in endings if path.endswith(end)), "")
    root = path.removesuffix(ending)
    if not ending:
        root += "" if is_deployment or _VERSION.search(path) else "/v1"
        ending = f"/{operation}"
    url, base = (parts._replace(path=found).geturl() for found in (root + ending, root))
    return ApiDoor(url, base, _KINDS[ending], is_deployment, _FIRST[_KINDS[ending]])
