"""The files that the workers count in, and gunicorn's hooks for them.

The master makes a folder and forks workers that count each in files of its own.
prometheus_client is imported in the workers only, so that an upgraded one needs no restart.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

log = logging.getLogger("prompt_image_proxy.metrics")

# A worker with ten backends fills half of one. It is allocated at once: a process that writes to
# a mapped file for which a full disk has no room is killed (SIGBUS).
FILE_BYTES = 2**18
_PREFIX = "prompt-image-proxy-metrics-"
_NAME = re.compile(_PREFIX + r"([0-9]{1,9})-\w+")
# As prometheus_client names it.
_LIVE = "gauge_livesum"
# In memory where there is such a folder, so that counting never waits for a disk.
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Files:
    """The files in a folder that belongs to one master process and its workers.

    Each worker has a number that no other living one has, and counts on where the last worker of
    that number ended: counters never go backwards, and many deaths do not make many files.
    """

    folder: Path

    @classmethod
    def make(cls) -> Self:
        """Make the folder, and remove those of masters that were killed. Raises OSError."""
        in_memory = os.access(_SHARED_MEMORY, os.W_OK)
        parent = _SHARED_MEMORY if in_memory else Path(tempfile.gettempdir())
        for folder in parent.iterdir():
            if (found := _NAME.fullmatch(folder.name)) and not _is_alive(int(found[1])):
                shutil.rmtree(folder, ignore_errors=True)
        made = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = made  # where prometheus_client looks for it
        return cls(Path(made))

    def hooks(self, *, is_counting: bool) -> dict[str, Callable[..., None]]:
        """Return gunicorn's hooks by their names. `is_counting`: new workers count."""
        names = ["child_exit", "on_exit", *(["pre_fork", "post_fork"] if is_counting else [])]
        return {name: getattr(self, name) for name in names}

    def pre_fork(self, server: Any, worker: Any) -> None:
        """Give the worker the lowest number that is free. In the master."""
        taken = {getattr(other, "number", None) for other in server.WORKERS.values()}
        worker.number = next(number for number in itertools.count() if number not in taken)

    def post_fork(self, server: Any, worker: Any) -> None:
        """Have the worker count in its files, or only in memory if there is no room for them."""
        from prometheus_client import values

        values.ValueClass = values.MutexValue
        self.child_exit(server, worker)
        try:
            for kind in ("counter", "histogram", _LIVE):
                _allocate(self.folder / f"{kind}_{worker.number}.db")
        except OSError as error:
            log.error("This worker is missing from /metrics: %s", error.strerror)
        else:
            values.ValueClass = values.MultiProcessValue(lambda: worker.number)  # type: ignore[no-untyped-call]

    def child_exit(self, server: Any, worker: Any) -> None:
        """Forget what a worker had in progress, as prometheus_client's mark_process_dead does.

        A worker from before METRICS was set has no number.
        """
        with suppress(OSError, AttributeError):
            (self.folder / f"{_LIVE}_{worker.number}.db").unlink()

    def on_exit(self, server: Any) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _allocate(path: Path) -> None:
    """Make a file of zeros, which holds no values yet. It appears whole or not at all."""
    if path.exists():
        return
    new = path.with_suffix(".new")
    try:
        new.write_bytes(bytes(FILE_BYTES))
        new.rename(path)
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise


def _is_alive(pid: int) -> bool:
    """Return whether another process has this number. In a container, each master may get ours."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
