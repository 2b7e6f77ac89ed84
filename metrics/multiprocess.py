"""The files of the workers' counters, and gunicorn's hooks for them.

The master makes a folder; each of its workers counts in files of its own there, by
prometheus_client's multi-process mode.
"""

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

from prometheus_client import values
from prometheus_client.multiprocess import mark_process_dead

log = logging.getLogger("prompt_image_proxy.metrics")

# A worker with ten backends fills half of one. It is allocated at once: a process that writes to
# a mapped file for which a full disk has no room is killed (SIGBUS).
FILE_BYTES = 2**18
_PREFIX = "prompt-image-proxy-metrics-"
_NAME = re.compile(_PREFIX + r"([0-9]{1,9})-\w+")
# In memory if possible, so that counting never waits for a disk.
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class CountFiles:
    """The files in a folder that belongs to one master process and its workers.

    Each worker has a number that no other living one has, and continues the counts of the last
    worker with that number: counters never go backwards, and many deaths do not make many files.
    """

    folder: Path

    @classmethod
    def make(cls) -> Self:
        """Make the folder, and remove those of masters that were killed. Raises OSError."""
        values.ValueClass = values.MutexValue  # for the master, which counts nothing
        in_memory = os.access(_SHARED_MEMORY, os.W_OK)
        parent = _SHARED_MEMORY if in_memory else Path(tempfile.gettempdir())
        for folder in parent.iterdir():
            if (found := _NAME.fullmatch(folder.name)) and not _is_alive(int(found[1])):
                shutil.rmtree(folder, ignore_errors=True)
        return cls(Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent)))

    def hooks(self, *, is_counting: bool) -> dict[str, Callable[..., None]]:
        """Return gunicorn's hooks by their names. `is_counting`: new workers count."""
        names = ["child_exit", "on_exit", *(["pre_fork", "post_fork"] if is_counting else [])]
        return {name: getattr(self, name) for name in names}

    def pre_fork(self, server: Any, worker: Any) -> None:
        """Give the worker the lowest number that is free. In the master."""
        taken = {getattr(other, "number", None) for other in server.WORKERS.values()}
        worker.number = next(number for number in itertools.count() if number not in taken)

    def post_fork(self, server: Any, worker: Any) -> None:
        """Let the worker count in its files, or in its memory if the disk is full."""
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(self.folder)  # for prometheus_client
        try:
            for kind in ("counter", "histogram", "gauge_livesum"):
                _allocate(self.folder / f"{kind}_{worker.number}.db")
        except OSError as error:
            log.error("This worker is missing from /metrics: %s", error.strerror)
        else:
            values.ValueClass = values.MultiProcessValue(lambda: worker.number)  # type: ignore[no-untyped-call]

    def child_exit(self, server: Any, worker: Any) -> None:
        """Reset a dead worker's gauges; one started before METRICS was set has no number."""
        if hasattr(worker, "number"):
            mark_process_dead(worker.number, self.folder)  # type: ignore[no-untyped-call]

    def on_exit(self, server: Any) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _allocate(path: Path) -> None:
    """Make a file of zeros, which holds no values yet. It appears whole or not at all."""
    if not path.exists():
        new = path.with_suffix(".new")
        new.write_bytes(bytes(FILE_BYTES))
        new.rename(path)


def _is_alive(pid: int) -> bool:
    """Return whether another process has this id; in a container, every master may have ours."""
    with suppress(ProcessLookupError):
        os.getpgid(pid)
        return pid != os.getpid()
    return False
