"""A real S3 server on loopback: moto, in a process of its own. It checks no signatures."""

import itertools
import subprocess
import sys

from settings.servers import ObjectSettings

from .scripted import fetch, free_port, wait_until


class ObjectServer:
    """An S3 server that keeps everything in memory."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._numbers = itertools.count(1)
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        silent = subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdout=silent, stderr=silent)
        wait_until(self._answers, what="the S3 server")

    def _answers(self) -> bool:
        assert self._process.poll() is None, "pip install -r requirements-dev.txt"
        try:
            return fetch(f"{self.url}/").status == 200
        except OSError:
            return False

    def bucket(self) -> ObjectSettings:
        """Create a bucket; return the settings for a prefix in it."""
        name = f"bucket-{next(self._numbers)}"
        assert fetch(f"{self.url}/{name}", method="PUT").status == 200
        url = f"s3://{name}/some/prefix"
        return ObjectSettings(url, self.url, "us-east-1", "key-id", "secret-key")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
