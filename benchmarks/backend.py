"""The demo backend with one picture, drawn beforehand: `python -m benchmarks.backend`.

Drawing takes the demo longer than all that is measured here, and each time another while.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

from demo import server
from demo.canvas import pad_png
from demo.picture import draw
from demo.server import DemoServer, ImageRequest


class Backend(DemoServer):
    """Answers every prompt with the same picture after its delay, and counts."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.calls = 0
        self._counting = threading.Lock()
        self._delaying = threading.Event()
        self._picture = pad_png(draw("a red apple", 64, 64, 42), self.min_bytes)

    def picture_of(self, wanted: ImageRequest) -> bytes:
        with self._counting:
            self.calls += 1
        self._delaying.wait(self.delay)
        return self._picture


if __name__ == "__main__":
    server.DemoServer = Backend  # type: ignore[misc] # its main() then starts ours
    sys.exit(server.main(None))
