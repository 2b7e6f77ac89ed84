"""The picture that an answer names by its URL: it is paid for, and fetched with patience."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from upstream.client import Deadline, Upstream, UpstreamError, Why, joined, origin

# Vendors name pictures that have yet to reach their storage.
PAUSES = (1.0, 2.0, 4.0)
_MAY_PASS = frozenset((404, 408, 425, 429))
_LOST = (Why.UNREACHABLE, Why.UNREADABLE)


class _Passing(UpstreamError):
    """A failure of a download that may pass."""


def fetch(
    upstream: Upstream,
    url: str,
    *,
    base: str,
    home: str,
    headers: Mapping[str, str],
    deadline: Deadline,
    timeout: float,
    limit: int,
    sleep: Callable[[float], None],
) -> bytes:
    """Return what a URL names; a failure that may pass is tried again after 1, 2 and 4 s.

    `url` may be relative to `base`, and has `headers` only at the origin of `home`. Each attempt
    has `timeout` seconds. Raises UpstreamError.
    """
    url = joined(base, url)
    for pause in PAUSES:
        try:
            return _fetch_once(upstream, url, home, headers, deadline.within(timeout), limit)
        except _Passing as error:
            is_nowhere = error.why is Why.UNREACHABLE and _is_local(url, home)
            if is_nowhere or deadline.remaining() <= pause:
                raise
        sleep(pause)
    return _fetch_once(upstream, url, home, headers, deadline.within(timeout), limit)


def _fetch_once(
    upstream: Upstream,
    url: str,
    home: str,
    headers: Mapping[str, str],
    deadline: Deadline,
    limit: int,
) -> bytes:
    try:
        reply = upstream.download(url, home=home, deadline=deadline, limit=limit, headers=headers)
    except UpstreamError as error:
        # Before the deadline only connecting times out.
        is_lost = error.why in _LOST or (error.why is Why.TIMED_OUT and not deadline.is_over)
        if is_lost:
            raise _Passing(str(error), error.why) from error
        raise
    if reply.status == 200 and reply.body:
        return reply.body
    may_pass = reply.status < 300 or reply.status >= 500 or reply.status in _MAY_PASS
    kind = _Passing if may_pass else UpstreamError
    raise kind(f"the URL of its picture answered {reply.status}", Why.NOT_A_PICTURE)


def _is_local(url: str, home: str) -> bool:
    """Return whether only the network of the backend at `home` may know a name: `localai`."""
    return "." not in origin(url)[1] and origin(url) != origin(home)
