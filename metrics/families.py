"""The metrics: names, help texts and labels. docs/metrics.md explains them.

Names follow https://prometheus.io/docs/practices/naming/. A label has few values, and none is
a prompt or a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

PREFIX = "prompt_image_proxy_"
_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 90, 120, 180)
_LATENCIES = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5)
_OUTCOMES = ("ok", "failed")
BACKEND_OUTCOMES = ("drawn", "refused", "rejected", "failed")
STAGES = ("optimise", "generate", "rewrite", "fallback", "convert", "upload")


class Family(NamedTuple):
    """A metric: its help text, its labels, and the label values that start at 0."""

    text: str
    labels: Sequence[str] = ()
    known: Sequence[Sequence[str]] = ()
    buckets: Sequence[float] = _SECONDS


# `_total` is appended to their names.
COUNTERS = {
    "requests": Family("HTTP requests answered.", ["route", "status"]),
    "pictures": Family(
        "Pictures found in the cache (hit), drawn (backend; rewritten: from a prompt rewritten"
        " for safety; fallback), or obtained by waiting for another request's drawing (waited).",
        ["source"],
        [[source] for source in ("hit", "backend", "rewritten", "fallback", "waited")],
    ),
    "backend_calls": Family(
        "Drawings requested from a backend or the fallback.", ["backend", "outcome"]
    ),
    "retries": Family("Backends tried because the one before had not drawn the prompt."),
    "refusals": Family("Prompts refused by the moderation of a backend or the fallback."),
    "rewrites": Family("Prompts rewritten for safety."),
    "llm_calls": Family(
        "Calls to the LLM.", ["task", "outcome"], [*product(("optimise", "rewrite"), _OUTCOMES)]
    ),
    "uploads": Family(
        "Uploads to the image host.", ["outcome"], [[outcome] for outcome in _OUTCOMES]
    ),
    "cache_evictions": Family("Pictures deleted to stay within CACHE_MAX_BYTES."),
    "cache_adoptions": Family("Picture files added to the index, which lacked them."),
    "upstream_connections_opened": Family("Connections opened to other servers."),
    "upstream_connections_reused": Family("Calls to other servers over a kept connection."),
}

# `_duration_seconds` is appended to their names.
TIMINGS = {
    "drawing": Family(
        "Time from the start of a drawing, after any wait in the queue, to its end.",
        ["outcome"],
        [["drawn"], ["refused"], ["failed"]],
    ),
    "stage": Family(
        "Time that a stage of a drawing took.",
        ["stage", "outcome"],
        [*product(STAGES, _OUTCOMES)],
    ),
    "backend_call": Family("Time that a backend or the fallback took to answer.", ["backend"]),
    "state_call": Family("Time that a call to the index took.", ["call"], buckets=_LATENCIES),
    "store_call": Family(
        "Time that a call to the store of pictures took.", ["call"], buckets=_LATENCIES
    ),
}

# Of each worker; the sum over the living ones is shown.
GAUGES = {
    "drawings_in_progress": Family("Drawings under way."),
    "drawings_limit": Family("Most drawings that can be under way: DRAWINGS in each worker."),
    "waiting_requests": Family("Requests waiting for a drawing, or for a picture from the bucket."),
    "waiting_requests_limit": Family("Most requests that can wait: THREADS - 16 in each worker."),
}

# Read at each scrape (web/metrics.py).
FACTS = {
    "backend_state": Family(
        "Whether a backend is ready, cooling down or drained: 1 for its state.",
        ["backend", "state"],
    ),
    "backend_cooldown_seconds": Family("Time until a backend is asked again.", ["backend"]),
    "cache_entries": Family("Pictures in the cache."),
    "cache_bytes": Family("Size of the pictures in the cache."),
    "cache_limit_bytes": Family("CACHE_MAX_BYTES, if there is a limit."),
    "key_drawings_today": Family("Drawings of an access key since midnight UTC.", ["key"]),
    "key_drawings_limit": Family("Drawings that an access key may cause per UTC day.", ["key"]),
    "build_info": Family("Version of the service and of Python.", ["version", "python"]),
}
