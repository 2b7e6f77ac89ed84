"""Errors over HTTP: problem+json (RFC 9457), or a card for clients that show pictures."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flask import Response, request
from werkzeug.exceptions import HTTPException

from access import Forbidden, Unauthorised
from drawing.pool import Busy, StillRunning
from drawing.record import Ending, GaveUp
from drawing.reservation import OverLimit
from picture import BadRequest, Problem
from storage import Unavailable
from web.headers import CROSS_ORIGIN, NOSNIFF, beginning, qualities
from web.pictures import VISIT, Visit
from web.sentences import ADVICE, CLEARING, REASON, TITLES, Language, Sentence, explain, joined

# The request headers that decide between a card and JSON, and between the languages.
VARY = "Accept, Accept-Language, Sec-Fetch-Dest, User-Agent, Via"
# By an error's code, remedy or status, the first that is listed; nginx shows two more.
_CARDS: Mapping[str | int | None, str] = {
    "credentials_missing": "incomplete",
    "key_expired": "expired",
    "signature_expired": "expired",
    "signer_removed": "expired",
    "still_drawing": "drawing",
    "unknown_model": "model",
    "may_not_draw": "undrawn",
    "operator": "failed",
    401: "unauthorised",
    422: "refused",
    429: "limit",
}
# Read at once, in gunicorn's master: an upgrade on disk must not mix two versions.
_FILES = {path.name: path.read_bytes() for path in Path(__file__).with_name("cards").glob("*.png")}
_READABLE = ("text/html", "text/plain", "application/json", "application/problem+json")


def wants_picture() -> bool:
    """Return whether the client shows the answer as a picture: an <img>, or GitHub's camo."""
    destination = request.headers.get("Sec-Fetch-Dest")
    if destination is not None:
        return destination == "image"
    # Some versions of camo accept */*, and show nothing at all in place of an error.
    senders = (beginning(request.headers, name) for name in ("User-Agent", "Via"))
    if any("camo" in sender.lower() for sender in senders):
        return True
    accepted = qualities(beginning(request.headers, "Accept"))
    return _quality(accepted, "image/png") > max(_quality(accepted, one) for one in _READABLE)


def _quality(accepted: Mapping[str, float], media_type: str) -> float:
    """Return the quality of the most specific range that covers a media type, 0 without one."""
    ranges = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
    return next((accepted[one] for one in ranges if one in accepted), 0.0)


def preferred_language() -> Language:
    """Return the language of the two that the client prefers."""
    best = {"en": 0.0, "zh": 0.0}
    for tag, quality in qualities(beginning(request.headers, "Accept-Language")).items():
        language = tag.partition("-")[0]
        if language in best:
            best[language] = max(best[language], quality)
    return "zh" if best["zh"] > best["en"] else "en"


def card(code: str, remedy: str | None, status: int, language: Language) -> bytes:
    """Return the PNG for an error."""
    known = (_CARDS[sign] for sign in (code, remedy, status) if sign in _CARDS)
    name = next(known, "later" if status >= 500 else "invalid")
    return _FILES[f"{name}.{language}.png"]


log = logging.getLogger("prompt_image_proxy.web")

MAX_BODY = 16 * 1024
# Asking again costs little: the request joins the drawing under way.
RELOAD_SECONDS = 2
_BUSY_SECONDS = 5


class NotFound(Problem):
    """No picture, file or model has this name."""


class TooLarge(Problem):
    """The body of a request has too many bytes."""


_STATUSES: Mapping[type[Exception], int] = {
    BadRequest: 400,
    Unauthorised: 401,
    Forbidden: 403,
    NotFound: 404,
    TooLarge: 413,
}
_STATUS_OF_ENDING: Mapping[Ending, int] = {
    "moderation_refused": 422,
    "no_backend_drew": 502,
    "unknown_model": 502,
    "all_cooling_down": 503,
    "deadline_passed": 504,
}
# Werkzeug's own sentences are written for pages, and some repeat the request.
_HTTP_CODES = {404: "no_such_route", 405: "no_such_method", 416: "not_satisfiable"}
# Waiting does not help: the operator has to change the settings or pay a bill.
_OPERATOR_REASONS = frozenset(
    (
        *("unauthorised", "out of credit", "not found", "unknown model", "no model"),
        *("bad certificate", "blocked by Cloudflare"),
    )
)


def as_json(value: Any) -> Response:
    """Answer with uncacheable JSON."""
    headers = [NOSNIFF, ("Cache-Control", "no-store")]
    return Response(json.dumps(value) + "\n", mimetype="application/json", headers=headers)


@dataclass(frozen=True, slots=True)
class Report:
    """How an error is answered: status, sentences, headers and more fields of problem+json.

    `retry_after` is in seconds. `administration` says what only an administrator can do.
    """

    status: int
    error: Problem
    retry_after: int | None = None
    advice: tuple[Sentence, ...] = ()
    administration: tuple[Sentence, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    http_headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        found = dict(self.http_headers)
        if self.retry_after is not None:
            found["Retry-After"] = str(self.retry_after)
        if self.status == 401:
            found["WWW-Authenticate"] = 'Bearer realm="Prompt Image Proxy"'
        return found

    @property
    def remedy(self) -> str | None:
        return self.fields.get("remedy")

    def title(self, language: Language) -> str:
        title = TITLES.get(self.error.code) or TITLES.get(self.status) or TITLES["other"]
        return title.say(language)

    def detail(self, language: Language) -> str:
        return explain(self.error, language)

    def advise(self, language: Language) -> str:
        return self._say(self.advice, language)

    def _say(self, sentences: Iterable[Sentence], language: Language) -> str:
        said = (sentence.say(language, seconds=self.retry_after) for sentence in sentences)
        return joined(said, language)

    def to_json(self, language: Language) -> dict[str, Any]:
        """Return problem+json."""
        about = {"type": "about:blank", "title": self.title(language), "status": self.status}
        about |= {"detail": self.detail(language), **self.fields}
        advice = self._say((*self.advice, *self.administration), language)
        return about | ({"advice": advice} if advice else {})


def problem(error: Exception, *, has_cards: bool) -> Response:
    """Answer any error with its status and a neutral sentence.

    A client that shows pictures gets a card instead, since a broken icon hides the reason.
    """
    report, language = report_of(error), preferred_language()
    headers = {**dict(CROSS_ORIGIN), "Cache-Control": "no-store", "Vary": VARY, **report.headers}
    if has_cards and wants_picture():
        picture = card(report.error.code, report.remedy, report.status, language)
        return Response(picture, report.status, headers, content_type="image/png")
    about = report.to_json(language)
    visit: Visit | None = request.environ.get(VISIT)
    if visit and visit.request:
        about["key"] = visit.request.key
    body = json.dumps(about) + "\n"
    return Response(body, report.status, headers, content_type="application/problem+json")


def report_of(error: Exception) -> Report:
    """Return how an error is answered; an unexpected one is logged."""
    if isinstance(error, GaveUp):
        return _report_failure(error)
    if isinstance(error, StillRunning):
        return _report(503, error, "reload", RELOAD_SECONDS)
    if isinstance(error, OverLimit):
        if error.retry_after is None:
            return Report(403, error)
        return _report(429, error, "tomorrow", error.retry_after)
    if isinstance(error, Busy | Unavailable):
        return _report(503, error, "wait", _BUSY_SECONDS)
    if isinstance(error, Problem):
        return Report(_STATUSES[type(error)], error)
    if isinstance(error, HTTPException):
        status = error.code or 500
        headers = {k: v for k, v in error.get_headers() if k in ("Allow", "Content-Range")}
        code = _HTTP_CODES.get(status, "bad_request")
        return Report(status, Problem(code), http_headers=headers)
    log.error("Unhandled exception", exc_info=error)
    return Report(500, Problem("internal_error"), administration=(REASON,))


def _report(status: int, error: Problem, remedy: str, seconds: int) -> Report:
    return Report(status, error, seconds, (ADVICE[remedy],), fields={"remedy": remedy})


def _report_failure(error: GaveUp) -> Report:
    remedy = _remedy(error)
    administration = [REASON] if remedy == "operator" else []
    administration += [CLEARING] if error.is_lasting else []
    fields: dict[str, Any] = {"stages": [stage.to_json() for stage in error.stages]}
    if error.is_repeated:
        fields["remembered"] = True
    if error.until:
        fields["until"] = error.until.isoformat(timespec="seconds")
    status = _STATUS_OF_ENDING[error.code]
    fields["remedy"] = remedy
    advice = (ADVICE[remedy],)
    return Report(status, error, error.retry_after, advice, tuple(administration), fields)


def _remedy(error: GaveUp) -> str | None:
    """Return the remedy, None if it is unknown; `wait` only where waiting helps."""
    reasons = {why for stage in error.stages for why in (stage.why or "").split(", ")}
    if error.code == "moderation_refused":
        return "reword"
    if error.code == "unknown_model":
        return "model"
    if reasons & _OPERATOR_REASONS:
        return "operator"
    return "wait" if error.retry_after else None
