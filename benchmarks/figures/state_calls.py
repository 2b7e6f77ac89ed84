"""PostgreSQL as the state: what a round trip takes, and a look-up among a million rows."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing

from benchmarks import cluster_servers
from benchmarks.figures.plan import Figure, Plan, median
from benchmarks.figures.two_services import quantiles
from drawing.cooldowns import Cooldown
from picture import ImageRequest
from storage import Row
from storage.cluster.postgres import PostgresState
from storage.cluster.tables import translate
from storage.local.sqlite import SqliteState
from storage.state import State

MEASURED = 500
CALLS = 1000

# As benchmarks/figures/index.py fills a SQLite database.
_FILLER = """
INSERT INTO entries (key, file, media_type, bytes, digest, created, used,
                     prompt, width, height, seed, drawn_by)
SELECT key, key || '-0123456789abcdef.png', 'image/png', 100000, key, number, number,
       'a picture of the number ' || number, 1024, 1024, number, 'https://backend.example/v1'
FROM (SELECT encode(sha256(CAST('filler ' || number AS bytea)), 'hex') AS key, number
      FROM generate_series(1, {count}) AS number) AS filler
"""


def row_of(number: int) -> Row:
    key = ImageRequest(f"measured {number}").key
    return Row(
        key=key,
        file=f"{key}-0123456789abcdef.png",
        media_type="image/png",
        bytes=100_000,
        digest=key,
        created=1.0,
        prompt=f"measured {number}",
        seed=42,
    )


def round_trips(plan: Plan) -> Iterator[Figure]:
    with (
        cluster_servers.postgres() as server,
        closing(PostgresState(server.schema())) as state,
        closing(SqliteState(plan.folder / "trips")) as alone,
    ):
        states: dict[str, State] = {"": state, "SQLite: ": alone}
        found = {name: _seconds_of_calls(of) for name, of in states.items()}
    details = {
        f"{name}{call}, p50 and p99 µs": quantiles(values, 1e6)
        for name, calls in found.items()
        for call, values in calls.items()
    }
    p50 = quantiles(found[""]["find"], 1e6)[0]
    yield Figure("trips", "look-up of a row in PostgreSQL, p50", p50, None, "µs", details=details)


def _seconds_of_calls(state: State) -> dict[str, list[float]]:
    rows = [row_of(number) for number in range(CALLS)]
    wanted = [str(number) for number in range(5)]

    def hold(row: Row) -> None:
        with state.hold(row.key, 1.0):
            pass

    calls: dict[str, Callable[[Row], object]] = {
        "store": state.store,
        "find": lambda row: state.find(row.key),
        "recall of five notes": lambda row: state.recall_all(Cooldown, wanted),
        "hold and release": hold,
    }
    return {name: [_seconds(call, row) for row in rows] for name, call in calls.items()}


def _seconds(call: Callable[[Row], object], row: Row) -> float:
    began = time.perf_counter()
    call(row)
    return time.perf_counter() - began


def look_up(plan: Plan) -> Iterator[Figure]:
    seconds: dict[int, list[float]] = {1000: [], plan.entries: []}
    with cluster_servers.postgres() as server:
        states = {}
        for entries in seconds:
            url = server.schema()
            states[entries] = PostgresState(url)
            states[entries].check()
            states[entries].add([row_of(number) for number in range(MEASURED)])
            fill = translate(_FILLER.format(count=entries - MEASURED))
            server.execute(fill, translate("ANALYZE entries"), url=url)
        for _ in range(20 * plan.rounds):
            for entries, state in states.items():
                seconds[entries].append(_look_up(state))
        for state in states.values():
            state.close()
    few, many = seconds.values()
    details = {"µs among many": median(many), "µs among 1,000": median(few)}
    ratio = median([one / other for one, other in zip(many, few, strict=True)])
    title = f"look-up among {plan.entries:,} ÷ 1,000 in PostgreSQL"
    yield Figure("rows", title, ratio, 1.3, details=details)


def _look_up(state: State) -> float:
    """Return the microseconds of a look-up."""
    keys = [row_of(number).key for number in range(MEASURED)]
    random.shuffle(keys)
    began = time.perf_counter()
    for key in keys:
        assert state.find(key)
    return (time.perf_counter() - began) / len(keys) * 1e6
