"""Errors under /v1/, in OpenAI's form, so that its SDKs raise their own exceptions.

Statuses and codes are those of https://platform.openai.com/docs/guides/error-codes.
"""

from __future__ import annotations

import json
import re
from typing import Any

from flask import Response

from drawing.pool import Busy
from drawing.record import GaveUp
from picture import BadRequest
from storage import Unavailable
from web.cross_origin import OPEN
from web.problems import report_of

MAX_BODY = 64 * 1024
# SDKs in a browser obey x-should-retry only if they may read it.
OPEN_HEADERS = (
    *OPEN,
    ("Access-Control-Expose-Headers", "Retry-After, x-should-retry"),
    ("Cache-Control", "no-store"),
)

_CODES = {
    401: "invalid_api_key",
    404: "unknown_url",
    405: "method_not_supported",
    422: "content_policy_violation",
    429: "rate_limit_exceeded",
}
_MESSAGES = {
    # LiteLLM recognises a wrong key by the first four words alone.
    401: "Incorrect API key provided: send the access key as a Bearer token.",
    404: (
        "There is no such route. Pictures are drawn by POST /v1/images/generations;"
        " the base URL of a client ends in /v1."
    ),
}


def openai_error(error: Exception) -> Response:
    """Answer any error with its status, but a refusal with 400, as OpenAI does."""
    report = report_of(error)
    status, is_of_model = report.status, report.error.code == "no_such_model"
    detail = report.detail("en")
    message = detail if is_of_model else _MESSAGES.get(status, detail)
    message = f"{message} {report.advise('en')}".strip()
    about = {
        "message": message,
        "type": _type(status),
        "param": "model" if is_of_model else _parameter(error),
        "code": "model_not_found" if is_of_model else _CODES.get(status),
    }
    response = open_json({"error": about})
    # Some clients, Open WebUI among them, show nothing but the reason in the status line.
    response.status = f"{400 if status == 422 else status} {re.sub('[^ -~]+', '?', message)}"
    response.headers.update(report.headers)
    if status >= 429 and not may_retry(error):
        # The SDKs would send the request twice more, for the same failure or another paid call.
        response.headers["x-should-retry"] = "false"
    return response


def open_json(value: Any) -> Response:
    """Answer with uncacheable JSON that any page may read."""
    return Response(json.dumps(value) + "\n", mimetype="application/json", headers=OPEN_HEADERS)


def _parameter(error: Exception) -> str | None:
    name = error.parameters.get("name") if isinstance(error, BadRequest) else None
    return "prompt" if name == "description" else name


def _type(status: int) -> str:
    if status >= 500:
        return "server_error"
    return "rate_limit_error" if status == 429 else "invalid_request_error"


def may_retry(error: Exception) -> bool:
    """Return whether a client may repeat the request by itself: no call has been paid for."""
    if isinstance(error, GaveUp):
        has_fallen_back = any(stage.stage == "fallback" for stage in error.stages)
        return error.code == "all_cooling_down" and not has_fallen_back
    return isinstance(error, Busy | Unavailable)
