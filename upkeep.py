"""What the cache needs done now and then, in a thread of its own in every worker."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from cache import Cache
from storage.sqlite import Unavailable

FLUSH_SECONDS = 30.0
EXPIRE_SECONDS = 60.0
SWEEP_SECONDS = 86400.0


class Upkeep:
    """Flushes, expires and sweeps a cache, from start() until close()."""

    def __init__(self, cache: Cache, clock: Callable[[], float] = time.monotonic) -> None:
        self.cache = cache
        self.clock = clock
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cache-upkeep", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread, and write down what has not been yet."""
        self._closing.set()
        self._thread.join()
        self.cache.close()

    def _run(self) -> None:
        now = self.clock()
        flushed, expired, swept = now, now, now - SWEEP_SECONDS
        while not self._closing.wait(1.0):
            now = self.clock()
            with contextlib.suppress(Unavailable, OSError):
                if now - flushed >= FLUSH_SECONDS or self.cache.is_filling():
                    flushed = now
                    self.cache.flush()
                if now - expired >= EXPIRE_SECONDS:
                    expired = now
                    self.cache.expire()
                if now - swept >= SWEEP_SECONDS:
                    swept = now
                    self.cache.sweep()
