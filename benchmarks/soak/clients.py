"""Clients that mix hits, misses, deletions and bad requests, and check every answer."""

import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPException
from urllib.parse import quote

from benchmarks.soak.ledger import Ledger
from benchmarks.soak.vendors import picture_of
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
    """What all clients together have found."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    # Pictures that were lost or paid for again, by the fault that explains it.
    explained: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    # Prompts whose pictures some client has received, and nobody has deleted.
    received: set[str] = field(default_factory=set)

    # The fault that is being committed.
    meanwhile: str = "no fault"

    def fault(self, text: str) -> None:
        if len(self.faults) < MAX_REPORTED:
            self.faults.append(f"{text} (during {self.meanwhile})")


class Client:
    """One client."""

    def __init__(
        self, name: str, app: App, tally: Tally, ledger: Ledger, rng: random.Random
    ) -> None:
        self.name = name
        self.app = app
        self.tally = tally
        self.ledger = ledger
        self.rng = rng
        self.drawn = 0
        self.deleted: set[str] = set()

    def run(self, end: float) -> None:
        actions = [self.popular, self.new, self.delete, self.knock]
        while time.monotonic() < end:
            [action] = self.rng.choices(actions, [60, 20, 8, 12])
            try:
                action()
            except (OSError, HTTPException) as error:
                # A worker that was killed takes its connections with it.
                self.tally.outcomes["cut off"] += 1
                if not self.ledger.is_in_danger:
                    self.tally.fault(f"no answer: {type(error).__name__}")

    def popular(self) -> None:
        self.ask_again(f"popular {self.rng.randrange(40)}")

    def new(self) -> None:
        self.drawn += 1
        self.ask_again(f"{self.name} new {self.drawn}")

    def delete(self) -> None:
        prompt = f"{self.name} deleted {self.rng.randrange(5)}"
        was_deleted = prompt in self.deleted
        # First: a request that is cut off may still have the picture drawn.
        self.deleted.discard(prompt)
        answer = self.ask(prompt)
        if was_deleted and is_hit(answer):
            self.tally.fault(f"deleted picture lives on: {prompt}")
        body = {"description": prompt, "width": 64, "height": 64}
        deletion = ask(f"{self.app.url}/cache/delete", body, headers={"X-Admin-Token": ADMIN})
        self.ledger.forget(prompt)
        self.tally.outcomes["deleted"] += 1
        if deletion.status == 200:
            self.deleted.add(prompt)
        elif answer.status == 200 and not self._is_excused(prompt):
            self.tally.fault(f"deletion answered {deletion.status}")

    def knock(self) -> None:
        target, status = self.rng.choice(KNOCKS)
        answer = ask(self.app.url + target)
        self.tally.outcomes["knocked"] += 1
        if answer.status != status:
            self.tally.fault(f"{target[:30]} answered {answer.status}, not {status}")

    def ask_again(self, prompt: str) -> Answer:
        """Ask for a picture that has to be there from its first answer on."""
        answer = self.ask(prompt)
        if answer.status == 200:
            self.tally.received.add(prompt)
        elif prompt in self.tally.received and not self._is_excused(prompt):
            self.tally.fault(f"lost picture, {answer.status}: {prompt}")
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

    def _is_excused(self, prompt: str) -> bool:
        return self.ledger.is_in_danger or self.ledger.was_unstored(prompt)


def is_hit(answer: Answer) -> bool:
    return answer.headers.get("Cache-Status", "").endswith("hit")


def load(
    app: App, tally: Tally, ledger: Ledger, seconds: float, rng: random.Random, phase: str
) -> None:
    """Let all clients run for `seconds`. Prompts of different phases differ."""
    end = time.monotonic() + seconds
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [
            Client(f"{phase} {number}", app, tally, ledger, random.Random(rng.random()))
            for number in range(CLIENTS)
        ]
        for running in [pool.submit(client.run, end) for client in clients]:
            running.result()


def verify(app: App, tally: Tally, ledger: Ledger) -> int:
    """Account for every picture that was paid for; return how many those are."""
    unstored = ledger.unstored()
    for prompt, times in ledger.paid_again().items():
        settle_account("paid again", prompt, ledger.explain(prompt, unstored, times), tally)
    client = Client("verifier", app, tally, ledger, random.Random(0))
    paid = ledger.paid()
    for prompt in paid:
        why = ledger.explain(prompt, unstored)
        if not is_hit(client.ask(prompt)):
            settle_account("lost", prompt, why, tally)
    return len(paid)


def settle_account(event: str, prompt: str, why: str | None, tally: Tally) -> None:
    if why:
        tally.explained[f"{event} after {why}"] += 1
    else:
        tally.fault(f"{event}: {prompt}")
