"""A soak: `python -m benchmarks.soak [--seconds 120]`, against a real gunicorn.

Two workers that may open few files, eight backends that fail in every way and one that cannot be
reached, and clients that mix hits, misses, deletions and bad requests. In the first part, the
faults of faults.py are committed one after the other. Every prompt has one known picture. Exits
with 1 if a picture that was paid for is wrong, if one is lost or was paid twice and no named fault
explains it, if a request got no answer or an unexpected one, or if anything grew beyond the margins
below.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.soak.clients import ADMIN, Tally, load, verify
from benchmarks.soak.disk import disk
from benchmarks.soak.faults import BACKENDS, Saboteur
from benchmarks.soak.ledger import Ledger
from benchmarks.soak.scene import Scene, is_ready, reload
from benchmarks.soak.vendors import FailingBackend
from benchmarks.stack import Unmeasurable, gunicorn, wait_until
from tests.scripted import free_port

SECONDS_BETWEEN_FAULTS = 1.5
# Per process: fewer than the crowd of faults.py would take.
MAX_FILES = 256

SETTINGS = {
    "ADMIN_TOKEN": ADMIN,
    "WORKERS": "2",
    "THREADS": "32",
    "DRAWINGS": "16",
    "BACKEND_TIMEOUT": "2",
    "GENERATION_DEADLINE": "10",
}


@dataclass(frozen=True)
class Usage:
    """What the service holds: MiB of memory, open files, threads, and litter on the disk.

    Litter is every file in CACHE_DIR and TMPDIR that is neither a picture in the index nor the
    index itself, its backup or its locks.
    """

    memory: float
    files: int
    threads: int
    litter: int

    @classmethod
    def of(cls, scene: Scene) -> Usage:
        """Measure at rest: when nothing has been opened or closed for a quarter of a second."""
        app, counts = scene.app, [-1]

        def is_at_rest() -> bool:
            counts.append(app.descriptors())
            return counts[-1] == counts[-2]

        wait_until(is_at_rest, "the service to come to rest", pause=0.25)
        threads = sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in app.pids())
        return cls(app.memory() / 2**20, counts[-1], threads, litter(scene))


# From when the workers have settled to the end. Each of a worker's connections to the index has two
# files and up to 1 MiB of cache, which fills as the index grows.
MARGINS = Usage(memory=32.0, files=32, threads=16, litter=0)


def litter(scene: Scene) -> int:
    known = {scene.index.name + suffix for suffix in ("", "-wal", "-shm", ".lock")}
    found = {path.name for path in scene.folder.iterdir()} - known - {"locks", "backup"}
    return len(found - scene.indexed()) + len(list(temporary(scene.folder).iterdir()))


def temporary(folder: Path) -> Path:
    """Return the TMPDIR of the service."""
    return folder.with_name("temporary")


@dataclass(frozen=True)
class Outcome:
    """What a soak came to."""

    tally: Tally
    ledger: Ledger
    committed: Counter[str]
    upstream: Counter[str]
    usages: dict[str, Usage]
    paid: int


def soak(seconds: float, seed: int, folder: Path) -> tuple[Outcome, list[str]]:
    """Run; return what happened, and the faults that were found."""
    rng, tally, ledger = random.Random(seed), Tally(), Ledger(folder / "gunicorn.log")
    with ExitStack() as stack:
        backends = [
            stack.enter_context(FailingBackend(random.Random(rng.random()), ledger))
            for _ in range(BACKENDS)
        ]
        scene = start(stack, folder, [backend.url for backend in backends], ledger)
        saboteur = Saboteur(scene, tally, min(SECONDS_BETWEEN_FAULTS, seconds / 10))
        usages = {"start": Usage.of(scene)}
        with saboteur.at_work():
            load(scene.app, tally, ledger, seconds * 0.55, rng, "early")
        # Growth is measured over workers that live from here to the end.
        load(scene.app, tally, ledger, seconds * 0.15, rng, "settling")
        usages["settled"] = Usage.of(scene)
        load(scene.app, tally, ledger, seconds * 0.3, rng, "late")
        paid = verify(scene.app, tally, ledger)
        usages["end"] = Usage.of(scene)
    failures = sum((backend.failures for backend in backends), Counter[str]())
    outcome = Outcome(tally, ledger, saboteur.committed, failures, usages, paid)
    return outcome, [*tally.faults, *saboteur.failures, *growth(usages)]


def start(stack: ExitStack, folder: Path, urls: list[str], ledger: Ledger) -> Scene:
    """Start the service, with few descriptors."""
    cache = folder / "pictures"
    temporary(cache).mkdir()
    is_disk = stack.enter_context(disk(cache))
    unreachable = f"http://127.0.0.1:{free_port()}"
    settings = SETTINGS | {"TMPDIR": str(temporary(cache))}
    app = stack.enter_context(gunicorn(folder, ",".join([*urls, unreachable]), **settings))
    scene = Scene(app, cache, ledger, is_disk)
    wait_until(lambda: is_ready(app), "both workers")
    resource.prlimit(app.process.pid, resource.RLIMIT_NOFILE, (MAX_FILES, MAX_FILES))
    reload(scene)
    return scene


def growth(usages: dict[str, Usage]) -> list[str]:
    """Return what has grown beyond its margin."""
    settled, end, margins = asdict(usages["settled"]), asdict(usages["end"]), asdict(MARGINS)
    return [
        f"{name} grew beyond its margin"
        for name in margins
        if end[name] > settled[name] + margins[name]
    ]


def report(outcome: Outcome) -> list[str]:
    """Return the lines to print."""
    tally, ledger = outcome.tally, outcome.ledger
    lines = {
        "requests": f"{tally.outcomes.total()} ({listed(tally.outcomes)})",
        "failed": listed(tally.failures),
        "upstream": f"{ledger.calls.total()} calls ({listed(outcome.upstream)})",
        "faults": listed(outcome.committed),
        "pictures": f"{outcome.paid} paid for and not deleted, all requested again at the end",
        "explained": listed(tally.explained),
    }
    for name, margin in asdict(MARGINS).items():
        found = [f"{at} {asdict(usage)[name]:.0f}" for at, usage in outcome.usages.items()]
        lines[name] = f"{', '.join(found)} (may grow by {margin:.0f} once settled)"
    return [f"{name:12} {text}" for name, text in lines.items()]


def listed(counter: Counter[str]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counter.most_common()) or "none"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description="Soak the service and report what happened."
    )
    seconds = float(os.environ.get("SOAK_SECONDS", "120"))
    parser.add_argument(
        "--seconds", type=float, default=seconds, help="of load; SOAK_SECONDS or 120 by default"
    )
    parser.add_argument("--seed", type=int, default=1, help="of everything that is random")
    arguments = parser.parse_args()
    # Terminated, it ends the processes it has started, as it does at Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as folder:
        try:
            outcome, faults = soak(arguments.seconds, arguments.seed, Path(folder))
            lines = report(outcome)
        except Unmeasurable as reason:
            lines, faults = [], [str(reason)]
    print("\n".join(lines))
    print("\n".join(f"FAILED       {fault}" for fault in faults) or "ok")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
