"""Answers with pictures in base64, written piece by piece."""

from __future__ import annotations

import base64
import json
import re
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cache import Picture
from web.openai_forms import PLACE, length_with_base64, with_base64

from .conftest import KEY, Gunicorn, drawing
from .servers import ScriptedServer, png
from .states import row_of

Start = Callable[..., Gunicorn]


def picture_of(data: bytes, size: int) -> Picture:
    return Picture(row_of("a cat", bytes=size), BytesIO(data))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 49_151, 49_152, 49_153, 200_000])
def test_pieces_are_the_json_of_the_whole(size: int) -> None:
    data = bytes(number % 251 for number in range(size))
    text = json.dumps([{"b64_json": PLACE, "seed": seed} for seed in (1, 2)])
    pictures = [picture_of(data, size) for _ in range(2)]
    found = list(with_base64(text, pictures))
    whole = b"".join(found)
    encoded = base64.b64encode(data).decode()
    assert json.loads(whole) == [{"b64_json": encoded, "seed": seed} for seed in (1, 2)]
    assert length_with_base64(text, pictures) == len(whole)
    assert max(map(len, found)) <= 65_536


def test_file_that_is_shorter_than_it_should_be_ends_the_answer() -> None:
    with pytest.raises(OSError, match="shorter"):
        list(with_base64(PLACE, [picture_of(b"x" * 50_000, 50_001)]))


def test_ten_large_pictures_take_no_memory_however_often_at_once(
    gunicorn: Start, backend: ScriptedServer
) -> None:
    backend.say(lambda seen: drawing(png(shade=seen.json["seed"], size=3_000_000)))
    service = gunicorn(backend, WORKERS="1")
    body = json.dumps({"prompt": "a cat", "n": 10, "seed": 0}).encode()
    headers = {"Authorization": f"Bearer {KEY}"}
    target = "/v1/images/generations"
    drawn = service.get(target, method="POST", headers=headers, body=body)
    shown = [base64.b64decode(picture["b64_json"]) for picture in drawn.json["data"]]
    assert shown == [png(shade=shade, size=3_000_000) for shade in range(10)]
    [worker] = service.workers()
    before = reset_peak(worker)
    with ThreadPoolExecutor(6) as pool:
        received = [*pool.map(lambda _: length_of_answer(service, body), range(6))]
    assert received == [len(drawn.body)] * 6
    assert peak(worker) - before < 20_000, "kilobytes, where an answer has 40,000"


def reset_peak(pid: int) -> int:
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak(pid)


def peak(pid: int) -> int:
    """Return the most memory that a process has had since the reset, in kilobytes."""
    found = re.search(r"VmHWM:\s+([0-9]+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1])


def length_of_answer(service: Gunicorn, body: bytes) -> int:
    """Receive an answer, and return how many bytes its body had: this process keeps none."""
    parts = urlsplit(service.url)
    head = (
        "POST /v1/images/generations HTTP/1.0\r\n"
        f"Host: {parts.netloc}\r\nAuthorization: Bearer {KEY}\r\n"
    )
    with socket.create_connection((str(parts.hostname), parts.port or 0)) as client:
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        count = 0
        with client.makefile("rb") as answer:
            while answer.readline().strip():
                pass
            while data := answer.read(1_000_000):
                count += len(data)
    return count
