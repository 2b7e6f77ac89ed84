"""The paths of the OpenAI API, as clients make them from the base URLs that people enter."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

PREFIX = "/v1/"
_PATH = re.compile(r"/+(?:v1/+)*(images|models)(?:/+(.*?))?/*", re.DOTALL)


def with_openai_paths(app: WSGIApplication) -> WSGIApplication:
    """Return `app` with its /v1/images and /v1/models at all their spellings."""

    def call(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ["PATH_INFO"] = canonical(environ["PATH_INFO"])
        return app(environ, start_response)

    return call


def canonical(path: str) -> str:
    """Return a path with one /v1 and single slashes if it is one of the OpenAI API's."""
    match = _PATH.fullmatch(path)
    return PREFIX + "/".join(filter(None, match.groups())) if match else path
