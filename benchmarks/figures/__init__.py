"""The figures of a single machine: functions from a `Plan` to `Figure`s, each independent."""

from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.figures import cold, conversion, cost, hits, index, inputs, large, processes
from benchmarks.figures.plan import Figure, Plan

Figures = dict[str, Callable[[Plan], Iterator[Figure]]]

ALL: Figures = {
    "nginx": hits.through_nginx,
    "gunicorn": hits.from_gunicorn,
    "metrics": hits.with_metrics,
    "cold": cold.added_time,
    "cost": partial(cost.of_cold_requests, scheme="http"),
    "tls": partial(cost.of_cold_requests, scheme="https"),
    "identical": cold.identical_requests,
    "busy": hits.beside_misses,
    "large": large.beside_large_answers,
    "formats": conversion.pages_as_webp,
    "index": index.look_up,
    "inputs": inputs.largest_inputs,
    "start": processes.start,
    "memory": processes.memory,
}
