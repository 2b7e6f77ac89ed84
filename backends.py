"""Where pictures are drawn: OpenAI-compatible backends, and Pollinations as the last resort.

Which backend is asked next, what its answer means, and how long a failing one is left alone.
What vendors send, and the sources for it, are written down in README.md, "What backends send".
"""

from __future__ import annotations

import binascii
import contextlib
import email.utils
import logging
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from config import BackendSettings, PollinationsSettings
from formats import media_type_of
from picture import ImageRequest
from upstream import openai as dialect
from upstream.client import JSON_LIMIT, Deadline, Reply, Upstream, UpstreamError, joined
from upstream.openai import Answer, ErrorDetail, clean_text
from values import printable_url

log = logging.getLogger("prompt_image_proxy.backends")

FIRST_COOLDOWN = 5.0
ACCOUNT_COOLDOWN = 60.0
MAX_COOLDOWN = 300.0


class Refused(Exception):
    """Moderation refused this prompt; another prompt may pass.

    `everywhere` is False where a backend failed beside it, which might have drawn.
    """

    def __init__(self, reason: str, *, everywhere: bool = True) -> None:
        super().__init__(reason)
        self.everywhere = everywhere


class Failed(Exception):
    """The backend, or its account, gave no picture; another backend may.

    `cooldown` is how many seconds it should be left alone: None for the usual, growing ones,
    0 where the fault lies in this request alone.
    """

    def __init__(
        self, reason: str, *, cooldown: float | None = None, needs_attention: bool = False
    ) -> None:
        super().__init__(reason)
        self.cooldown = cooldown
        self.needs_attention = needs_attention


@dataclass(frozen=True, slots=True)
class Image:
    """A picture just drawn: its bytes, their media type, and who drew it from what."""

    data: bytes
    media_type: str
    drawn_by: str
    revised_prompt: str | None = None


# --- what an answer means -----------------------------------------------------------------------

_REFUSAL_CODES = re.compile(
    r"content_policy_violation|moderation_blocked|ResponsibleAIPolicyViolation|content_?filter"
    r"|sensitive_words_detected|SensitiveContentDetected|ContentPolicyViolationError"
    r"|IMAGE_SAFETY|IMAGE_PROHIBITED_CONTENT",
    re.IGNORECASE,
)
_REFUSAL_WORDS = re.compile(
    r"safety system|safety checks?|content policy|content management policy|nsfw"
    r"|(?<!case.)sensitive",
    re.IGNORECASE,
)
# A fault of the backend or of its account, whatever the text beside it says.
_FAULT_STATUSES = frozenset((401, 402, 403, 404, 408, 409, 429))
_ACCOUNT_STATUSES = frozenset((401, 402, 403, 404))
# OpenAI says with a 400 that the account's limit is reached; gateways put such faults into a 200.
_ACCOUNT_WORDS = re.compile(
    r"billing|quota|insufficient.?(funds|balance|credit)|rate.?limit|overloaded|api.?key",
    re.IGNORECASE,
)
_MINIMAX_REFUSALS = (1026, 1027)


def is_refusal(error: ErrorDetail) -> bool:
    """Say whether an error is moderation's. Raises nothing."""
    if error.status == 451:
        return True
    if error.status in _FAULT_STATUSES or error.status >= 500:
        return False
    if any(_REFUSAL_CODES.search(word) for word in error.words):
        return True
    return bool(_REFUSAL_CODES.search(error.text) or _REFUSAL_WORDS.search(error.text))


def raise_for_error(error: ErrorDetail, headers: Mapping[str, str]) -> None:
    """Raise what an error answer means: Refused or Failed."""
    if is_refusal(error):
        raise Refused("its moderation refused the prompt")
    if error.status in (400, 422):
        if error.names("model") == 3 or re.search(r"model.not.(found|exist)", error.text):
            raise Failed("it does not know the model", cooldown=0)
        if _ACCOUNT_WORDS.search(error.text):
            raise Failed(
                "its account is at a limit", cooldown=ACCOUNT_COOLDOWN, needs_attention=True
            )
        # It is about this request, and no parameter: another prompt may pass.
        raise Refused(f"it answered {error.status} to the prompt")
    is_account = error.status in _ACCOUNT_STATUSES
    raise Failed(
        f"it answered {error.status}",
        cooldown=ACCOUNT_COOLDOWN if is_account else retry_after(headers),
        needs_attention=is_account,
    )


def retry_after(headers: Mapping[str, str], now: Callable[[], float] = time.time) -> float | None:
    """Return the seconds that `retry-after-ms` or `retry-after` (seconds, HTTP date) asks for."""
    milliseconds = headers.get("retry-after-ms", "").strip()
    text = headers.get("retry-after", "").strip()
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]+)?", milliseconds):
        return float(milliseconds) / 1000
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", text):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now())
    except (ValueError, TypeError, OverflowError, IndexError):
        return None


def first_picture(answer: Any) -> tuple[Any, str | None]:
    """Return the first picture of a JSON answer, base64 or a URL or None, and its revised prompt.

    Takes `data` or `images`, of objects or texts. Raises Refused where a 200 says that
    moderation kept the picture back, Failed where it says that something else went wrong.
    """
    if not isinstance(answer, dict):
        raise Failed("its answer is not a JSON object")
    base = answer.get("base_resp")
    code = base.get("status_code") if isinstance(base, dict) else None
    if code in _MINIMAX_REFUSALS:
        raise Refused("its moderation refused the prompt")
    if code:
        raise Failed("its answer says that it failed")
    for name in ("data", "images"):
        items = answer.get(name)
        if not isinstance(items, list) or not items:
            continue
        item = items[0]
        if not isinstance(item, dict):
            return item, None
        revised = clean_text(item.get("revised_prompt"))
        return item.get("b64_json") or item.get("url"), revised
    return None, None


def decode_base64(text: str) -> bytes:
    """Decode base64 as it really comes: with a data-URI prefix, white space, without padding.

    Raises Failed.
    """
    if text[:5].lower() == "data:":
        text = text.partition(",")[2]
    # The usual case first: over megabytes, looking for white space costs more than decoding.
    with contextlib.suppress(ValueError):
        # As bytes: of a str it takes twice as long.
        return binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    text = re.sub(r"\s", "", text).rstrip("=").translate(_FROM_URL_SAFE)
    try:
        return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except ValueError as error:
        raise Failed("its base64 is none") from error


_FROM_URL_SAFE = str.maketrans("-_", "+/")


# --- one backend --------------------------------------------------------------------------------


class Backend:
    """One OpenAI-compatible image backend."""

    def __init__(
        self,
        settings: BackendSettings,
        upstream: Upstream,
        notes: dialect.Notes,
        *,
        timeout: float,
        max_image_bytes: int,
    ) -> None:
        self.url = settings.url
        self.name = printable_url(settings.url)
        self.weight = settings.weight
        self.models = settings.models
        self.max_image_bytes = max_image_bytes
        self.timeout = timeout
        self.upstream = upstream
        self.endpoint = dialect.Endpoint(
            upstream,
            settings.url,
            "images/generations",
            token=settings.token,
            timeout=timeout,
            notes=notes,
        )

    def draw(self, prompt: str, request: ImageRequest, deadline: Deadline) -> Image:
        """Draw `prompt` at the size, seed and model of `request`. Raises Refused or Failed."""
        deadline = deadline.within(self.timeout)
        try:
            return self._draw(prompt, request, deadline)
        except UpstreamError as error:
            raise Failed(str(error)) from error

    def _draw(self, prompt: str, request: ImageRequest, deadline: Deadline) -> Image:
        body: dict[str, Any] = {"prompt": prompt, "n": 1}
        if request.model:
            body["model"] = self.models.get(request.model, request.model)
        optional: dict[str, dict[str, dict[str, Any]]] = {"seed": {}, "size": {}, "n": {}}
        if request.pixels:
            width, height = request.pixels
            body["size"] = request.size
            optional["size"] = {
                "image_size": {"image_size": request.size},  # SiliconFlow
                "width": {"width": width, "height": height},  # Together
            }
        body["seed"] = request.seed
        answer = self.endpoint.ask(
            body,
            optional,
            deadline=deadline,
            # A picture as base64 is a third larger, and some JSON stands around it.
            limit=self.max_image_bytes * 4 // 3 + JSON_LIMIT,
            is_final=is_refusal,
        )
        data, revised_prompt = self._picture_in(answer, deadline)
        media_type = media_type_of(data)
        if media_type is None:
            raise Failed("what it sent is not a picture")
        if len(data) > self.max_image_bytes:
            raise Failed("its picture is larger than MAX_IMAGE_BYTES")
        return Image(data, media_type, self.name, revised_prompt)

    def _picture_in(self, answer: Answer, deadline: Deadline) -> tuple[bytes, str | None]:
        if answer.error is not None:
            raise_for_error(answer.error, answer.reply.headers)
        if answer.json is None:
            return answer.reply.body, None
        picture, revised_prompt = first_picture(answer.json)
        if not picture:
            raise Refused("it answered without a picture")
        if not isinstance(picture, str):
            raise Failed("its picture is neither base64 nor a URL")
        if re.match(r"(?i)https?://|/(?!9j/)", picture):  # "/9j/" begins every JPEG in base64
            return self._download(picture, deadline), revised_prompt
        if re.match(r"(?i)(?!data:)[a-z][a-z0-9+.-]*:", picture):
            raise Failed("it named a URL that is not http or https")
        return decode_base64(picture), revised_prompt

    def _download(self, url: str, deadline: Deadline) -> bytes:
        reply = self.upstream.download(
            joined(self.endpoint.url, url),
            home=self.url,
            deadline=deadline,
            limit=self.max_image_bytes,
            headers=self.endpoint.headers,
        )
        if reply.status != 200:
            raise Failed(f"the picture it named answered {reply.status}")
        return reply.body


# --- which backend is next ----------------------------------------------------------------------


class Cooldowns:
    """Which backends are left alone, until when: one truth for all workers.

    A note holds `failures` in a row, `at` and `until` in seconds since the epoch.
    """

    def __init__(self, notes: dialect.Notes, clock: Callable[[], float] = time.time) -> None:
        self.notes = notes
        self.clock = clock

    def remaining(self, backend: Backend) -> float:
        """Return for how many seconds more the backend is to be left alone; 0 if it is not."""
        note = self.notes.recall("backend", backend.url)
        left = note["until"] - self.clock() if note else 0.0
        # More than the longest there is: the clock was set back, and the note means nothing.
        return left if 0.0 < left <= MAX_COOLDOWN else 0.0

    def failed(self, backend: Backend, failure: Failed, began: float) -> None:
        """Count a failure of a call that began at `began`, and let the backend cool down."""
        if failure.cooldown == 0:
            return
        note = self.notes.recall("backend", backend.url) or {"failures": 0, "at": 0.0}
        if began < note["at"] <= self.clock():
            return  # one outage, which a call that began after this one has counted already
        failures = note["failures"] + 1
        # The exponent is bounded too: 2.0 ** 1024 is an OverflowError.
        growing = FIRST_COOLDOWN * 2.0 ** min(failures - 1, 10)
        seconds = min(MAX_COOLDOWN, growing if failure.cooldown is None else failure.cooldown)
        now = self.clock()
        self.notes.remember(
            "backend",
            backend.url,
            {"failures": failures, "at": now, "until": now + seconds},
            ttl=2 * MAX_COOLDOWN,
        )
        level = logging.WARNING if failure.needs_attention or failures == 1 else logging.INFO
        log.log(level, "Backend %s: %s; left alone for %.0f s", backend.name, failure, seconds)

    def succeeded(self, backend: Backend) -> None:
        if self.notes.recall("backend", backend.url) and self.notes.forget("backend", backend.url):
            log.info("Backend %s draws again", backend.name)


class Backends:
    """All backends: weighted choice without replacement among those that are not cooling down."""

    def __init__(
        self,
        backends: Sequence[Backend],
        cooldowns: Cooldowns,
        blocked_retry_attempts: int,
        rng: random.Random | None = None,
    ) -> None:
        self.all = tuple(backends)
        self.cooldowns = cooldowns
        self.blocked_retry_attempts = blocked_retry_attempts
        self.rng = rng or random.Random()

    def order(self) -> list[Backend]:
        """Return who is asked, in turn: the ready ones, or the one that is ready soonest."""
        waits = {b: self.cooldowns.remaining(b) for b in self.all if b.weight > 0}
        ready = [backend for backend, wait in waits.items() if not wait]
        if not ready:
            return [min(waits, key=lambda backend: waits[backend])]
        # Exponential races: the first is drawn by weight, the second by weight from the rest ...
        return sorted(ready, key=lambda backend: self.rng.expovariate(backend.weight))

    def ready_in(self) -> float:
        """Return the seconds until a backend is ready, 0 where one is."""
        return min(self.cooldowns.remaining(b) for b in self.all if b.weight > 0)

    def draw(self, prompt: str, request: ImageRequest, deadline: Deadline) -> Image:
        """Draw with the first backend that can.

        A failure moves on until all are tried, a refusal at most `blocked_retry_attempts` times.
        Raises Refused where any refused, else Failed.
        """
        refusals = 0
        failure: Failed | None = None
        for backend in self.order():
            if deadline.is_over:
                failure = Failed("the deadline passed", cooldown=0)
                break
            began = self.cooldowns.clock()
            try:
                image = backend.draw(prompt, request, deadline)
            except Refused as refused:
                log.info("Backend %s: %s", backend.name, refused)
                refusals += 1
                if refusals > self.blocked_retry_attempts:
                    break
            except Failed as failed:
                self.cooldowns.failed(backend, failed, began)
                failure = failed
            else:
                self.cooldowns.succeeded(backend)
                return image
        if refusals:
            raise Refused("moderation refused the prompt", everywhere=failure is None)
        raise failure or Failed("there is no backend to ask", cooldown=0)


# --- the last resort ----------------------------------------------------------------------------


class Pollinations:
    """Pollinations.ai: a GET whose path is the prompt."""

    name = "pollinations"

    def __init__(
        self,
        settings: PollinationsSettings,
        upstream: Upstream,
        *,
        timeout: float,
        max_image_bytes: int,
    ) -> None:
        self.settings = settings
        self.upstream = upstream
        self.timeout = timeout
        self.max_image_bytes = max_image_bytes

    def draw(self, prompt: str, request: ImageRequest, deadline: Deadline) -> Image:
        """Draw `prompt` at the size and seed of `request`. Raises Refused or Failed."""
        headers = {"Accept": "image/*"}
        if self.settings.token:
            headers["Authorization"] = f"Bearer {self.settings.token}"
        try:
            reply = self.upstream.download(
                self._url(prompt, request),
                home=self.settings.url,
                deadline=deadline.within(self.timeout),
                limit=self.max_image_bytes,
                headers=headers,
            )
        except UpstreamError as error:
            raise Failed(str(error)) from error
        return self._image_in(reply)

    def _url(self, prompt: str, request: ImageRequest) -> str:
        width, height = request.pixels or (None, None)
        query = {
            "model": self.settings.model,
            "width": width,
            "height": height,
            "seed": request.seed,
            "nofeed": "true",
            "private": "true",
        }
        base, _, own_query = self.settings.url.partition("?")
        sent = urlencode({name: value for name, value in query.items() if value is not None})
        return f"{base}/{quote(prompt, safe='')}?" + (f"{own_query}&" if own_query else "") + sent

    def _image_in(self, reply: Reply) -> Image:
        if reply.status != 200:
            error = Answer.of(reply).error
            raise_for_error(error or ErrorDetail.of(502, None), reply.headers)
        if "X-Error-Type" in reply.headers:
            # A rate limit can come as a 200 with a placeholder for a picture.
            raise Failed("it sent a placeholder for a picture")
        media_type = media_type_of(reply.body)
        if media_type is None:
            raise Failed("what it sent is not a picture")
        return Image(reply.body, media_type, self.name)
