"""How long a cold request takes, and how often a backend is asked for one picture."""

import statistics
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from benchmarks.figures.plan import KB, MIB, Figure, Plan, median
from benchmarks.stack import Unmeasurable, ask, backend, gunicorn

WARM_UP = 5


def added_time(plan: Plan) -> Iterator[Figure]:
    cold: list[float] = []
    direct: list[float] = []
    with backend(MIB) as upstream, gunicorn(plan.folder / "cold", upstream.url) as app:
        for seed in range(WARM_UP + plan.cold_requests):
            body = {"prompt": "apple", "n": 1, "size": "64x64", "seed": seed}
            direct.append(ask(f"{upstream.url}/v1/images/generations", body).seconds * 1000)
            answer = ask(app.picture("apple", seed))
            if (answer.status, len(answer.body)) != (200, MIB):
                raise Unmeasurable(f"a cold request was answered with {answer.status}")
            cold.append(answer.seconds * 1000)
    cold, direct = cold[WARM_UP:], direct[WARM_UP:]
    added = [whole - alone for whole, alone in zip(cold, direct, strict=True)]
    details = {
        "cold ms": median(cold),
        "backend alone ms": median(direct),
        "added ms, by quartile": [round(cut, 2) for cut in statistics.quantiles(added)],
    }
    value = round(statistics.median(cold) - statistics.median(direct), 2)
    title = "added by a cold request, 1 MiB as base64"
    yield Figure("cold", title, value, 5.0, "ms", details=details)


def identical_requests(plan: Plan) -> Iterator[Figure]:
    folder = plan.folder / "identical"
    with backend(50 * KB, 1.0) as upstream, gunicorn(folder, upstream.url) as app:
        with ThreadPoolExecutor(200) as pool:
            asked = [pool.submit(ask, app.picture("apple")) for _ in range(200)]
        statuses = Counter(future.result().status for future in asked)
        calls = upstream.calls()
    details = {"answers by status": dict(sorted(statuses.items()))}
    title = "upstream calls for 200 identical requests"
    yield Figure("identical", title, calls, 1, details=details)
    yield Figure("identical", "… of them answered with 200", statuses[200], 200, at_least=True)
