"""Pollinations.ai: a GET whose path is the prompt. Source: APIDOCS.md in its repository."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode

from upstream.client import Deadline, Reply, Upstream


class PollinationsApi:
    """The image API at `url`, the supported one with a token, the legacy one without."""

    def __init__(self, upstream: Upstream, url: str, token: str | None, model: str | None) -> None:
        self.upstream = upstream
        self.url = url
        self.model = model
        self.headers = {"Accept": "image/*"}
        if token:
            self.headers["Authorization"] = f"Bearer {token}"

    def get(self, prompt: str, query: dict[str, Any], deadline: Deadline, limit: int) -> Reply:
        """Ask for a picture, followed over redirects. Raises UpstreamError."""
        return self.upstream.download(
            self._picture_url(prompt, query),
            home=self.url,
            deadline=deadline,
            limit=limit,
            headers=self.headers,
        )

    def _picture_url(self, prompt: str, query: dict[str, Any]) -> str:
        wanted = {"model": self.model, **query, "nofeed": "true", "private": "true"}
        base, _, own_query = self.url.partition("?")
        sent = urlencode({name: value for name, value in wanted.items() if value is not None})
        return f"{base}/{quote(prompt, safe='')}?" + (f"{own_query}&" if own_query else "") + sent
