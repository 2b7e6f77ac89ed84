"""Errors over HTTP: problem+json (RFC 9457), or a card for clients that show pictures."""

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
from web.headers import CROSS_ORIGIN, NOSNIFF
from web.pictures import VISIT, Visit
from web.sentences import ADVICE, CLEARING, REASON, TITLES, Language, explain, joined

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
    if any("camo" in request.headers.get(name, "").lower() for name in ("User-Agent", "Via")):
        return True
    accepted = request.accept_mimetypes
    return accepted["image/png"] > max(accepted[one] for one in _READABLE)


def preferred_language() -> Language:
    """Return the language of the two that the client prefers."""
    accepted = [tag.lower() for tag, quality in request.accept_languages if quality]
    known = [tag for text in accepted if (tag := text.partition("-")[0]) in ("en", "zh")]
    return "zh" if known[:1] == ["zh"] else "en"


def card(code: str, remedy: str | None, status: int, language: Language) -> bytes:
    """Return the PNG for an error."""
    known = (_CARDS[sign] for sign in (code, remedy, status) if sign in _CARDS)
    name = next(known, "later" if status >= 500 else "invalid")
    return _FILES[f"{name}.{language}.png"]


log = logging.getLogger("prompt_image_proxy.web")

# Asking again costs little: the request joins the drawing under way.
RELOAD_SECONDS = 2
_BUSY_SECONDS = 5


class NotFound(Problem):
    """No picture, file or model has this name."""


_STATUSES = {BadRequest: 400, Unauthorised: 401, Forbidden: 403, NotFound: 404}
# How a drawing ended: the status, and the remedy if that is certain.
_ENDINGS: Mapping[Ending, tuple[int, str | None]] = {
    "moderation_refused": (422, "reword"),
    "unknown_model": (502, "model"),
    "no_backend_drew": (502, None),
    "all_cooling_down": (503, None),
    "deadline_passed": (504, None),
}
# Werkzeug's own sentences are written for pages, and some repeat the request.
_HTTP_CODES = {
    404: "no_such_route",
    405: "no_such_method",
    413: "body_too_large",
    416: "not_satisfiable",
}
# Waiting does not help: the operator has to change the settings or pay a bill.
_OPERATOR_REASONS = {"unauthorised", "out of credit", "not found", "unknown model", "no model"}
_OPERATOR_REASONS |= {"bad certificate", "blocked by Cloudflare"}
_JSON_HEADERS = (NOSNIFF, ("Cache-Control", "no-store"))


def as_json(value: Any, headers: Iterable[tuple[str, str]] = _JSON_HEADERS) -> Response:
    """Answer with uncacheable JSON."""
    return Response(json.dumps(value) + "\n", mimetype="application/json", headers=headers)


@dataclass(frozen=True, slots=True)
class Report:
    """How an error is answered. `retry_after` is in seconds; `remedy` is None if none is named."""

    error: Problem
    status: int
    remedy: str | None = None
    retry_after: int | None = None
    http_headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        found = dict(self.http_headers)
        if self.retry_after is not None:
            found["Retry-After"] = str(self.retry_after)
        if self.status == 401:
            found["WWW-Authenticate"] = 'Bearer realm="Prompt Image Proxy"'
        return found

    def advise(self, language: Language, *, for_admin: bool = False) -> str:
        """Say what helps; to an administrator, also what nobody else can do."""
        sentences = [ADVICE[self.remedy]] if self.remedy else []
        if for_admin and (self.remedy == "operator" or self.status == 500):
            sentences.append(REASON)
        if for_admin and isinstance(self.error, GaveUp) and self.error.is_lasting:
            sentences.append(CLEARING)
        said = (sentence.say(language, seconds=self.retry_after) for sentence in sentences)
        return joined(said, language)


def problem(error: Exception, *, has_cards: bool) -> Response:
    """Answer any error with its status and a neutral sentence.

    A client that shows pictures gets a card instead, since a broken icon hides the reason.
    """
    report, language = report_of(error), preferred_language()
    headers = {**dict(CROSS_ORIGIN), "Cache-Control": "no-store", "Vary": VARY, **report.headers}
    if has_cards and wants_picture():
        picture = card(report.error.code, report.remedy, report.status, language)
        return Response(picture, report.status, headers, content_type="image/png")
    body = json.dumps(_problem_json(report, language)) + "\n"
    return Response(body, report.status, headers, content_type="application/problem+json")


def _problem_json(report: Report, language: Language) -> dict[str, Any]:
    error, visit = report.error, request.environ.get(VISIT)
    title = TITLES.get(error.code) or TITLES.get(report.status) or TITLES["other"]
    found = {"type": "about:blank", "title": title.say(language), "status": report.status}
    found["detail"] = explain(error, language)
    if isinstance(error, GaveUp):
        found["stages"] = [stage.to_json() for stage in error.stages]
        found |= {"remembered": True} if error.is_repeated else {}
        found |= {"until": error.until.isoformat(timespec="seconds")} if error.until else {}
    if report.remedy:
        found["remedy"] = None if report.remedy == "unknown" else report.remedy
    if advice := report.advise(language, for_admin=True):
        found["advice"] = advice
    if isinstance(visit, Visit):
        found["key"] = visit.request.key
    return found


def report_of(error: Exception) -> Report:
    """Return how an error is answered; an unexpected one is logged."""
    match error:
        case GaveUp():
            status, remedy = _ENDINGS[error.code]
            return Report(error, status, remedy or _remedy(error), error.retry_after)
        case StillRunning():
            return Report(error, 503, "reload", RELOAD_SECONDS)
        case Busy() | Unavailable():
            return Report(error, 503, "wait", _BUSY_SECONDS)
        case OverLimit(retry_after=None):
            return Report(error, 403)
        case OverLimit():
            return Report(error, 429, "tomorrow", error.retry_after)
        case Problem():
            return Report(error, _STATUSES[type(error)])
        case HTTPException():
            status = error.code or 500
            headers = {k: v for k, v in error.get_headers() if k in ("Allow", "Content-Range")}
            code = _HTTP_CODES.get(status, "bad_request")
            return Report(Problem(code), status, http_headers=headers)
    log.error("Unhandled exception", exc_info=error)
    return Report(Problem("internal_error"), 500)


def _remedy(error: GaveUp) -> str:
    """Return the remedy by what each stage said; `wait` only where waiting helps."""
    reasons = {why for stage in error.stages for why in (stage.why or "").split(", ")}
    if reasons & _OPERATOR_REASONS:
        return "operator"
    return "wait" if error.retry_after else "unknown"
