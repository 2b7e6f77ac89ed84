"""Backends that draw one known picture for each prompt, and fail in every way they can."""

import hashlib
import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from benchmarks.fake_backend import Backend, Reply, drawing
from benchmarks.soak.ledger import Ledger
from demo.canvas import IEND, Canvas, chunk

# A failure cools its backend down for at least 5 s: more of them would leave nothing to soak.
FAULT_RATE = 0.03
SLOW_SECONDS = 3.0  # longer than BACKEND_TIMEOUT
# Prompts that begin so are never drawn: each call for one is money for nothing.
UNUSABLE = "unusable"


def picture_of(prompt: str) -> bytes:
    """Return the picture of a prompt: a PNG of up to 30 KB that no other prompt has."""
    digest = hashlib.sha256(prompt.encode()).digest()
    png = Canvas(1 + digest[0] % 64, 1 + digest[1] % 64).png()
    filler = digest * (1 + int.from_bytes(digest[2:4], "big") % 950)
    return png.removesuffix(IEND) + chunk(b"fiLl", filler) + IEND


def cut_short(picture: Reply) -> Reply:
    headers = {"Content-Length": str(len(picture.body) + 1), "Connection": "close"}
    return Reply(picture.body, headers=headers)


def slow(picture: Reply) -> Reply:
    threading.Event().wait(SLOW_SECONDS)
    return picture


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


# To add a way to fail: what it does to the answer that would have been right.
FAULTS: dict[str, Callable[[Reply], Reply]] = {
    "500": lambda _: Reply(as_json({"error": {"message": "boom"}}), 500),
    "429": lambda _: Reply(b"", 429, {"Retry-After-Ms": "100"}),
    "HTML": lambda _: Reply(b"<html>busy</html>"),
    "not a picture": lambda _: drawing(b"\x89PNG\r\n\x1a\n and no more"),
    "invalid base64": lambda _: Reply(as_json({"data": [{"b64_json": "@@@@"}]})),
    "deep JSON": lambda _: Reply(b"[" * 100_000),
    "private URL": lambda _: Reply(as_json({"data": [{"url": "http://127.0.0.1:9/x.png"}]})),
    "cut short": cut_short,
    "slow": slow,
    "42 MB": lambda _: Reply(b"[" + b"[]," * 14_000_000, 500),
}


class FailingBackend(Backend):
    """Draws `picture_of` the prompt, except for a few requests; counts its failures."""

    def __init__(self, rng: random.Random, ledger: Ledger) -> None:
        super().__init__(self._answer)
        self.rng = rng
        self.ledger = ledger
        self.failures: Counter[str] = Counter()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def _answer(self, body: Any) -> Reply:
        prompt = body["prompt"]
        self.ledger.call(prompt)
        if prompt.startswith(UNUSABLE):
            return Reply(as_json({"data": []}))
        picture = drawing(picture_of(prompt))
        if self.rng.random() > FAULT_RATE:
            self.ledger.pay(prompt)
            return picture
        name = self.rng.choice(list(FAULTS))
        self.failures[name] += 1
        return FAULTS[name](picture)

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
