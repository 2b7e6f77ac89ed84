"""Errors over HTTP: problem+json (RFC 9457), or a card where a picture was asked for."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from flask import Response, request
from werkzeug.exceptions import HTTPException

from access import Forbidden, Unauthorised
from drawing.pool import Busy, StillRunning
from drawing.record import GaveUp
from limits import OverLimit
from picture import BadRequest
from storage import Unavailable
from web.cards import VARY, card, in_chinese, wants_chinese, wants_picture
from web.pictures import CROSS_ORIGIN, NOSNIFF, SANDBOX, VISIT, Visit

log = logging.getLogger("prompt_image_proxy.web")

MAX_BODY = 16 * 1024
# Asking again costs little: the request joins the drawing under way.
RELOAD_SECONDS = 2


class NotFound(Exception):
    """There is nothing by that name. The text is a sentence for the client."""


_STATUSES: Mapping[type[Exception], int] = {
    BadRequest: 400,
    Unauthorised: 401,
    Forbidden: 403,
    NotFound: 404,
}
_TITLES = {
    400: "Bad request",
    401: "Unauthorised",
    403: "Forbidden",
    404: "Not found",
    422: "Refused by moderation",
    429: "Daily limit reached",
    500: "Internal error",
    502: "Drawing failed",
    503: "Try again later",
    504: "Deadline passed",
}
# Werkzeug's own sentences are written for pages, and some repeat the request.
_HTTP_DETAILS = {
    404: "There is nothing here. Pictures are at /prompt/{description}.",
    405: "This method is not allowed here.",
    413: f"The body is larger than {MAX_BODY} bytes.",
    416: "The range cannot be satisfied.",
}
# Waiting does not help against these: someone has to change the settings or pay a bill.
_OPERATOR_REASONS = frozenset(
    ("unauthorised", "out of credit", "unknown model", "not found", "bad certificate")
)
# `remedy` in problem+json, and the sentence for people. The page has its own, in two languages.
_ADVICE = {
    "reword": "Change the description.",
    "operator": "The operator has to fix it: /status or the log says why.",
    "wait": "Try again in {seconds} s.",
    "reload": "It will be here soon: load it again in {seconds} s.",
    "tomorrow": "The next day begins at midnight UTC. Pictures drawn before are still served.",
}
_CLEARING = " An administrator can clear it: POST /cache/delete or python -m commands cache delete."


def as_json(value: Any) -> Response:
    """Answer with uncacheable JSON."""
    headers = [NOSNIFF, ("Cache-Control", "no-store")]
    return Response(json.dumps(value) + "\n", mimetype="application/json", headers=headers)


def problem(error: Exception, *, has_cards: bool) -> Response:
    """Answer any error with its status and a neutral sentence.

    A client that shows pictures gets a card instead, since a broken icon hides the reason.
    """
    status, detail, headers, more = describe(error)
    title = more.pop("title", None) or _TITLES.get(status, "Request failed")
    visit: Visit | None = request.environ.get(VISIT)
    if visit and visit.request:
        more = {"key": visit.request.key} | more
    advice = more.get("advice") or ""
    translate = in_chinese if wants_chinese() else str
    if has_cards and wants_picture():
        body = card(translate(title), translate(f"{detail} {advice}".strip()))
        content_type = "image/svg+xml"
        headers |= dict([SANDBOX])
    else:
        fields = {"type": "about:blank", "title": translate(title), "status": status}
        fields |= {"detail": translate(detail)} | more
        fields |= {"advice": translate(advice)} if advice else {}
        body, content_type = json.dumps(fields) + "\n", "application/problem+json"
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="Prompt Image Proxy"'
    always = {**dict(CROSS_ORIGIN), "Cache-Control": "no-store", "Vary": VARY}
    return Response(body, status, always | headers, content_type=content_type)


def describe(error: Exception) -> tuple[int, str, dict[str, str], dict[str, Any]]:
    """Return an error's status, sentence, headers and further fields."""
    if isinstance(error, GaveUp):
        return _describe_failure(error)
    if isinstance(error, StillRunning):
        advice = _ADVICE["reload"].format(seconds=RELOAD_SECONDS)
        more = {"title": "Being drawn", "remedy": "reload", "advice": advice}
        headers = {"Retry-After": str(RELOAD_SECONDS)}
        return 503, "The picture is still being drawn.", headers, more
    if isinstance(error, OverLimit):
        more = {"remedy": "tomorrow", "advice": _ADVICE["tomorrow"]}
        return 429, str(error), {"Retry-After": str(error.retry_after)}, more
    if isinstance(error, Busy):
        return _busy("Too many pictures are being drawn at the moment.")
    if isinstance(error, Unavailable):
        return _busy("The cache cannot be used at the moment.")
    if type(error) in _STATUSES:
        return _STATUSES[type(error)], str(error), {}, {}
    if isinstance(error, HTTPException):
        code = error.code or 500
        headers = {k: v for k, v in error.get_headers() if k in ("Allow", "Content-Range")}
        return code, _HTTP_DETAILS.get(code, "The request cannot be understood."), headers, {}
    log.error("A request failed for an unforeseen reason", exc_info=error)
    return 500, "Something went wrong. The log has the details.", {}, {}


def _busy(detail: str) -> tuple[int, str, dict[str, str], dict[str, Any]]:
    advice = _ADVICE["wait"].format(seconds=5)
    return 503, detail, {"Retry-After": "5"}, {"remedy": "wait", "advice": advice}


def _describe_failure(error: GaveUp) -> tuple[int, str, dict[str, str], dict[str, Any]]:
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
    more: dict[str, Any] = {"stages": [stage.to_json() for stage in error.stages]}
    remedy, detail = _remedy(error), error.sentence
    advice = _ADVICE[remedy].format(seconds=error.retry_after) if remedy else "Try again later."
    if error.is_repeated:
        more["remembered"] = True
    if error.until:
        more["until"] = error.until.isoformat(timespec="seconds")
    if detail != error.detail:
        advice += _CLEARING
    return error.status, detail, headers, more | {"remedy": remedy, "advice": advice}


def _remedy(error: GaveUp) -> str | None:
    """Return the remedy, None if it is unknown; `wait` only where waiting helps."""
    reasons = {why for stage in error.stages for why in (stage.why or "").split(", ")}
    if error.status == 422:
        return "reword"
    if reasons & _OPERATOR_REASONS:
        return "operator"
    return "wait" if error.retry_after else None
