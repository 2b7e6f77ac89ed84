"""Errors over HTTP: problem+json (RFC 9457), or a card where a picture was asked for."""

from __future__ import annotations

import html
import json
import logging
import textwrap
from collections.abc import Mapping
from typing import Any

from flask import Response, request
from werkzeug.exceptions import HTTPException

from access import Forbidden, Unauthorised
from flights import Busy
from journey import GaveUp
from picture import BadRequest
from storage import Unavailable
from web.pictures import CROSS_ORIGIN, NOSNIFF, SANDBOX, VISIT, Visit

log = logging.getLogger("prompt_image_proxy.web")

MAX_BODY = 16 * 1024


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
}
_CLEARING = " An administrator can clear it: POST /cache/delete or flask cache delete."


def as_json(value: Any) -> Response:
    """Answer with uncacheable JSON."""
    headers = [NOSNIFF, ("Cache-Control", "no-store")]
    return Response(json.dumps(value) + "\n", mimetype="application/json", headers=headers)


def problem(error: Exception, *, has_cards: bool) -> Response:
    """Answer any error with its status and a neutral sentence.

    A client that shows pictures gets a card instead, since a broken icon hides the reason.
    """
    status, detail, headers, more = describe(error)
    title = _TITLES.get(status, "Request failed")
    visit: Visit | None = request.environ.get(VISIT)
    if visit and visit.request:
        more = {"key": visit.request.key} | more
    if has_cards and wants_picture():
        advice = more.get("advice") or ""
        body, content_type = card(title, f"{detail} {advice}".strip()), "image/svg+xml"
        headers |= dict([SANDBOX])
    else:
        fields = {"type": "about:blank", "title": title, "status": status, "detail": detail}
        body, content_type = json.dumps(fields | more) + "\n", "application/problem+json"
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="Prompt Image Proxy"'
    always = {**dict(CROSS_ORIGIN), "Cache-Control": "no-store", "Vary": "Accept, Sec-Fetch-Dest"}
    return Response(body, status, always | headers, content_type=content_type)


def describe(error: Exception) -> tuple[int, str, dict[str, str], dict[str, Any]]:
    """Return an error's status, sentence, headers and further fields."""
    if isinstance(error, GaveUp):
        return _describe_failure(error)
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


def wants_picture() -> bool:
    """Return whether the client shows pictures, as an <img> and GitHub's camo do."""
    destination = request.headers.get("Sec-Fetch-Dest")
    if destination is not None:
        return destination == "image"
    accepted = request.accept_mimetypes
    readable = ("text/html", "text/plain", "application/json", "application/problem+json")
    pictures = ("image/svg+xml", "image/png")
    return max(map(accepted.quality, pictures)) > max(map(accepted.quality, readable))


def card(title: str, sentence: str) -> str:
    """Return an SVG of 480×200 pixels that shows a short text, legible on light and dark."""
    lines = textwrap.wrap(sentence, 46)[:5]
    attributes = 'font-family="system-ui, sans-serif" x="96"'
    texts = "".join(
        f'<text {attributes} y="{98 + 22 * number}" font-size="15" fill="#d7dde8">'
        f"{html.escape(line)}</text>"
        for number, line in enumerate(lines)
    )
    label = html.escape(f"{title}: {' '.join(lines)}")
    # Attributes only: the Content-Security-Policy of a card forbids a <style>.
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" width="480" height="200" viewBox="0 0 480 200"'
        f' role="img" aria-label="{label}"><rect width="480" height="200" rx="14" fill="#273043"/>'
        '<circle cx="54" cy="64" r="20" fill="none" stroke="#f2b872" stroke-width="4"/>'
        '<path d="M54 53v13m0 7v2" stroke="#f2b872" stroke-width="4" stroke-linecap="round"/>'
        f'<text {attributes} y="70" font-size="21" font-weight="600" fill="#fff">'
        f"{html.escape(title)}</text>{texts}</svg>\n"
    )
