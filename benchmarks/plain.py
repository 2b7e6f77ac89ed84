"""The least a cold request can cost: `python -m benchmarks.plain BACKEND_URL FOLDER`.

For each number read from standard input, it draws that many pictures and prints a line when it is
done. It does the unavoidable, once each, with a kept requests.Session: ask, parse the JSON, decode
the base64, hash, write, fsync, and read the picture back.
"""

import base64
import hashlib
import os
import sys
from pathlib import Path

import requests


def draw(session: requests.Session, url: str, path: Path, seed: int) -> bytes:
    """Have one picture drawn and keep it at `path`; return it as it is read back."""
    body = {"prompt": "apple", "n": 1, "size": "64x64", "seed": seed}
    answer = session.post(f"{url}/v1/images/generations", json=body, timeout=60)
    picture = base64.b64decode(answer.json()["data"][0]["b64_json"])
    named = path / f"{hashlib.sha256(picture).hexdigest()}-{seed}.png"
    with named.open("wb") as file:
        file.write(picture)
        file.flush()
        os.fsync(file.fileno())
    return named.read_bytes()


def main() -> None:
    url, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True)
    drawn = 0
    with requests.Session() as session:
        for line in sys.stdin:
            for _ in range(int(line)):
                drawn += 1
                draw(session, url, folder, drawn)
            print("done", flush=True)


if __name__ == "__main__":
    main()
