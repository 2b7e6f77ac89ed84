"""Clients that mix hits, misses, deletions and bad requests, and check every answer."""

from __future__ import annotations

import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.parse import quote

from benchmarks.soak.backends import picture_of
from benchmarks.stack import KEY, Answer, App, ask

CLIENTS = 6
ADMIN = "admin-token-of-the-soak"
EXPECTED_FAILURES = (502, 503, 504)
MAX_REPORTED = 20

# Requests that are rejected, or cost nothing: the target, and the status it must have.
KNOCKS = [
    ("/prompt/x?key=wrong", 401),
    (f"/prompt/x?key={KEY}&width=5000", 400),
    (f"/prompt/x?key={KEY}&seed=1&seed=2", 400),
    ("/prompt/" + "x" * 70_000, 414),
    ("/../../etc/passwd", 404),
    ("/status", 200),
    ("/robots.txt", 200),
]


@dataclass
class Tally:
    """What all clients have seen."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    # Prompts whose pictures were stored, by their Cache-Status, and never deleted.
    stored: set[str] = field(default_factory=set)

    def fault(self, text: str) -> None:
        if len(self.faults) < MAX_REPORTED:
            self.faults.append(text)


class Client:
    """One client."""

    def __init__(self, name: str, app: App, tally: Tally, rng: random.Random) -> None:
        self.name = name
        self.app = app
        self.tally = tally
        self.rng = rng
        self.drawn = 0

    def run(self, end: float) -> None:
        actions = [self.popular, self.new, self.delete, self.knock]
        while time.monotonic() < end:
            [action] = self.rng.choices(actions, [60, 20, 8, 12])
            try:
                action()
            except OSError as error:
                self.tally.fault(f"no answer: {type(error).__name__}")

    def popular(self) -> None:
        self.ask_and_keep(f"popular {self.rng.randrange(40)}")

    def new(self) -> None:
        self.drawn += 1
        self.ask_and_keep(f"{self.name} new {self.drawn}")

    def delete(self) -> None:
        prompt = f"{self.name} deleted {self.rng.randrange(5)}"
        existed = self.ask(prompt).status == 200
        body = {"description": prompt, "width": 64, "height": 64}
        headers = {"X-Admin-Token": ADMIN}
        answer = ask(f"{self.app.url}/cache/delete", body, headers=headers)
        self.tally.outcomes["deleted"] += 1
        if existed and answer.status != 200:
            self.tally.fault(f"deletion answered {answer.status}")

    def knock(self) -> None:
        target, status = self.rng.choice(KNOCKS)
        answer = ask(self.app.url + target)
        self.tally.outcomes["knocked"] += 1
        if answer.status != status:
            self.tally.fault(f"{target[:30]} answered {answer.status}, not {status}")

    def ask_and_keep(self, prompt: str) -> Answer:
        """Ask for a picture that must be stored now, and still be there at the end."""
        answer = self.ask(prompt)
        status = answer.headers.get("Cache-Status", "")
        if answer.status != 200:
            if prompt in self.tally.stored:
                self.tally.fault(f"lost picture: {prompt}")
        elif "hit" in status or "stored" in status:
            self.tally.stored.add(prompt)
        else:
            self.tally.fault(f"not stored: {prompt}")
        return answer

    def ask(self, prompt: str) -> Answer:
        answer = ask(self.app.picture(quote(prompt)))
        if answer.status == 200:
            self.tally.outcomes["hit" if is_hit(answer) else "drawn"] += 1
            if answer.body != picture_of(prompt):
                self.tally.fault(f"wrong picture: {prompt}")
        else:
            self.tally.outcomes["failed"] += 1
            self.tally.failures[str(answer.status)] += 1
            if answer.status not in EXPECTED_FAILURES:
                self.tally.fault(f"unexpected status {answer.status}: {prompt}")
        return answer


def is_hit(answer: Answer) -> bool:
    return answer.headers.get("Cache-Status", "").endswith("hit")


def load(app: App, tally: Tally, seconds: float, rng: random.Random, phase: str) -> None:
    """Let all clients run for `seconds`. Prompts of different phases differ."""
    end = time.monotonic() + seconds
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [
            Client(f"{phase} {number}", app, tally, random.Random(rng.random()))
            for number in range(CLIENTS)
        ]
        for running in [pool.submit(client.run, end) for client in clients]:
            running.result()


def verify(app: App, tally: Tally) -> None:
    """Check that every stored picture is still there."""
    client = Client("verifier", app, tally, random.Random(0))
    for prompt in sorted(tally.stored):
        if not is_hit(client.ask_and_keep(prompt)):
            tally.fault(f"lost picture: {prompt}")
