"""Signing, administration and status."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from flask import Response, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from access import MAX_EXPIRES_IN, Access, Caller, Unauthorised
from cache import Cache, Picture
from config import Settings
from drawing.verdict import forget_failures
from images.formats import Inconvertible
from picture import EXTENSIONS, PARAMETERS, BadRequest, ImageRequest, to_paste
from storage import Filter, Row, Unavailable
from storage.local.folder import THUMBNAIL, Folder
from web.pictures import Pictures
from web.problems import NotFound, as_json
from web.status import Status

MAX_BODY = 16 * 1024
ROBOTS = "# Every new URL under /prompt/ costs money.\nUser-agent: *\nDisallow: /prompt/\n"


@dataclass
class Api:
    """Every view except pictures, the OpenAI API and the page's files."""

    settings: Settings
    access: Access
    cache: Cache
    status: Status
    pictures: Pictures
    thumbnails: Folder

    def sign(self) -> Response:
        """POST /sign: a URL that shows one picture without the access key, and its final prompt."""
        caller = self.access.authorise(request.args, request.headers.get("Authorization", ""))
        body = read_body()
        wanted = read_image_request(body, self.settings.max_prompt_length)
        expires_in = read_integer(body, "expires_in", 1, MAX_EXPIRES_IN)
        extension = read_choice(body, "extension", EXTENSIONS)
        url, row = self.sign_url(wanted, caller, expires_in, extension), None
        with suppress(Unavailable):
            row = self.cache.state.find(wanted.key)
        link = to_paste(wanted, url, row.pixels if row else None)
        return as_json(link | {"final_prompt": row.final_prompt if row else None})

    def list_pictures(self) -> Response:
        """GET /cache?q&model&since&until&order&limit&before: cached pictures, a page at a time."""
        self._authorise_admin()
        query, state = request.args, self.cache.state
        search, limit = query.get("q", "").strip(), _read_number(query, "limit", 1, 200) or 50
        times = {name: _read_number(query, name, 0, 10**12 - 1) for name in ("since", "until")}
        given = {name: float(time) for name, time in times.items() if time is not None}
        only = Filter(query.get("model", "").strip(), **given)
        is_by_size = read_choice(query, "order", ("newest", "largest")) == "largest"
        find = state.largest if is_by_size else state.newest
        # One more than the page shows, to find out whether there is a next page.
        rows = find(search, limit + 1, _read_cursor(query), only)
        last = rows[limit - 1] if len(rows) > limit else None
        answer = {
            "entries": [self._describe(row) for row in rows[:limit]],
            "next": f"{last.bytes if is_by_size else last.created!r}-{last.key}" if last else None,
            "totals": asdict(state.totals()),
        }
        return as_json(answer)

    def show_picture(self, key: str) -> Response:
        """GET /cache/{key}?thumbnail: one picture, even if its prompt is unknown."""
        self._authorise_admin()
        picture = self.cache.get(key)
        if picture is None:
            raise NotFound("no_such_picture")
        if "thumbnail" in request.args:
            picture = _thumbnail(picture, self.thumbnails)
        response = self.pictures.serve(picture.row.prompt or "", picture)
        response.headers["Cache-Control"] = "private, no-cache"
        response.headers["X-Accel-Expires"] = "0"
        return response

    def delete_picture(self) -> Response:
        """POST /cache/delete: delete one picture, and forget its refusal or failure."""
        self._authorise_admin()
        body = read_body()
        key = body.get("key")
        # An adopted picture has a key and no prompt.
        if isinstance(key, str) and re.fullmatch(r"[0-9a-f]{64}", key):
            keys = [key]
        else:
            keys = read_image_request(body, self.settings.max_prompt_length).keys_to_delete
        # In this order: while the picture is being drawn, nothing is deleted.
        found = [(self.cache.delete(key), forget_failures(self.cache.state, key)) for key in keys]
        if not any(map(any, found)):
            raise NotFound("no_such_picture")
        return as_json({"deleted": True, "key": keys[-1]})

    def show_status(self) -> Response:
        """GET /status: health and configuration, without any secret; more for the administrator.

        A caller with an access key also sees what that key has drawn today, and its limit.
        """
        is_admin = "X-Admin-Token" in request.headers
        if is_admin:
            self._authorise_admin()
        found = self.status.describe(for_admin=is_admin)
        if is_admin:
            with suppress(Unavailable):  # it says why, below
                found["keys"] = self.access.usage(self.cache.state)
        # Whatever else a monitor or a proxy sends as Authorization is no reason to refuse it.
        with suppress(Unauthorised, Unavailable):
            caller = self.access.authorise({}, request.headers.get("Authorization", ""))
            usage = self.access.usage(self.cache.state)
            [found["key"]] = [one for one in usage if one["name"] == caller.name]
        response = as_json(found)
        if found["cache"]["entries"] is None:
            # Without its index or database a machine serves nothing: balancers leave it out.
            response.status_code = 503
        return response

    def robots(self) -> Response:
        """GET /robots.txt: tell crawlers not to spend money."""
        return Response(ROBOTS, mimetype="text/plain")

    def _authorise_admin(self) -> None:
        self.access.authorise_admin(request.headers.get("X-Admin-Token", ""))

    def sign_url(
        self,
        wanted: ImageRequest,
        caller: Caller,
        expires_in: int | None = None,
        extension: str | None = None,
    ) -> str:
        """Return the URL of a picture that `caller` signs, on the host of this request.

        Raises BadRequest and Forbidden.
        """
        base = self.settings.public_url or _forwarded_base()
        signature = self.access.sign(wanted, caller, expires_in)
        return base + wanted.to_url(extension, **signature)

    def _describe(self, row: Row) -> dict[str, Any]:
        link = dict[str, str]()
        if row.request and self.access.can_sign:
            link = to_paste(row.request, self.sign_url(row.request, self.access.shared))
        return row.to_json() | {"url": link.get("url"), "markdown": link.get("markdown")}


def _thumbnail(picture: Picture, folder: Folder) -> Picture:
    """Return the thumbnail of a cached picture, whose file is closed then.

    It is made on first use, and stored in a folder of this machine, which deletes it with its
    picture. Without Pillow, and for a picture that is hosted or cannot be converted, returns the
    picture itself.
    """
    if picture.file is None:  # hosted
        return picture
    row, name = picture.row, f"{picture.row.file}{THUMBNAIL}"
    try:
        if not (folder.directory / name).exists():
            from images.convert import thumbnail  # needs Pillow, which need not be installed

            folder.write(name, thumbnail(picture.file, row.media_type), row.created)
        file = folder.open(name)
    except (ImportError, Inconvertible, OSError):
        picture.file.seek(0)
        return picture
    picture.close()
    size = os.fstat(file.fileno()).st_size
    digest = hashlib.sha256(name.encode()).hexdigest()
    return Picture(replace(row, media_type="image/webp", bytes=size, digest=digest), file)


def _read_number(query: Mapping[str, str], name: str, low: int, high: int) -> int | None:
    """Return a parameter of the query, None if it is not given. Raises BadRequest."""
    if not (text := query.get(name)):
        return None
    if not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
        raise BadRequest("not_in_range", name=name, low=low, high=high)
    return int(text)


def _read_cursor(query: Mapping[str, str]) -> tuple[float, str] | None:
    """Return the time or size of the last picture of the page before, and its key."""
    if not (text := query.get("before")):
        return None
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)-([0-9a-f]{64})", text)
    if not match:
        raise BadRequest("not_a_cursor", name="before")
    return float(match[1]) if "." in text else int(match[1]), match[2]


def _forwarded_base() -> str:
    """Return scheme and host as the client sees them: nginx forwards both."""
    scheme = request.headers.get("X-Forwarded-Proto", request.scheme)
    host = request.headers.get("X-Forwarded-Host", request.headers.get("Host", ""))
    if scheme not in ("http", "https") or not re.fullmatch(r"[A-Za-z0-9._:\[\]-]{1,255}", host):
        raise BadRequest("not_a_host")
    return f"{scheme}://{host}"


def read_body(limit: int = MAX_BODY) -> dict[str, Any]:
    """Return the request's body, a JSON object of at most `limit` bytes.

    Raises BadRequest and RequestEntityTooLarge.
    """
    # One byte more than allowed: Werkzeug only cuts off a body that announces no length.
    request.max_content_length = limit + 1
    try:
        data = request.get_data()
    # Its chunks are malformed, or not all of them came.
    except (OSError, ParseException, ClientDisconnected):
        raise BadRequest("body_cut") from None
    if len(data) > limit:
        raise RequestEntityTooLarge
    with suppress(ValueError, RecursionError):
        body = json.loads(data)
        if isinstance(body, dict):
            return body
    raise BadRequest("body_not_object")


def read_image_request(body: dict[str, Any], max_prompt_length: int) -> ImageRequest:
    """Read the description and parameters of a picture from JSON. Raises BadRequest."""
    if (description := read_text(body, "description")) is None:
        raise BadRequest("parameter_missing", name="description")
    own = {name: _as_text(name, body.get(name)) for name in PARAMETERS}
    return ImageRequest.from_text(description, max_prompt_length, **own)


def _as_text(name: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        return str(value)
    raise BadRequest("not_a_scalar", name=name)


def read_integer(body: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    """Return an integer field of a body, None if it is not given. Raises BadRequest."""
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadRequest("not_in_range", name=name, low=low, high=high)
    return value


def read_text(body: Mapping[str, Any], name: str) -> str | None:
    """Return a string field of a body, None if it is not given. Raises BadRequest."""
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise BadRequest("not_a_string", name=name)
    return value


def read_choice(body: Mapping[str, Any], name: str, known: Sequence[str]) -> str | None:
    """Return a field of a body or a query, None if it is not given. Raises BadRequest."""
    value = body.get(name)
    if value is not None and value not in known:
        raise BadRequest("not_a_choice", name=name, known=", ".join(known))
    return value
