"""`make run`: gunicorn as in production, and the demo backend if nothing is configured.

With a `.env` or `BACKEND_API_URLS`, this replaces itself by gunicorn. Otherwise it also starts
`demo.demo_backend` in a process of its own, prints URLs to open, and stops both together.
"""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import FrameType

from settings.parsers import integer, url_host
from web.serving import check_address

ROOT = Path(__file__).resolve().parent.parent
GUNICORN = [sys.executable, "-m", "gunicorn"]
DEMO_KEY = "demo"
START_SECONDS = 20.0
# Where a server that listens on every address is reached from this machine.
_LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def is_configured() -> bool:
    """Return whether backends are configured."""
    return bool(os.environ.get("BACKEND_API_URLS")) or (ROOT / ".env").exists()


def demo_environment(backend_url: str) -> dict[str, str]:
    """Return the environment of a proxy that uses the demo backend for everything."""
    defaults = {
        "PROXY_ACCESS_KEY": DEMO_KEY,
        "ADMIN_TOKEN": DEMO_KEY,
        "SIGNING_KEY": "signing-key-of-the-demo",
        "LLM_OPTIMIZATION_ENABLED": "true",
        "DE_NSFW_ENABLED": "true",
        "POLLINATIONS_ENABLED": "false",
        # Not the default folder: a demo picture must never be served as a real one.
        "CACHE_DIR": str(ROOT / ".demo" / "cache"),
    }
    upstreams = {"BACKEND_API_URLS": backend_url, "LLM_OPTIMIZATION_API_URL": backend_url}
    upstreams["no_proxy"] = "*"  # a company's proxy does not reach this machine
    return {"PYTHONDONTWRITEBYTECODE": "1"} | defaults | os.environ | upstreams


def banner(base: str, key: str) -> str:
    """Return the first steps: URLs to open and a Markdown tag to paste."""
    apple = f"{base}/prompt/a%20red%20apple?key={key}&width=1024&height=768"
    refused = f"{base}/prompt/a%20forbidden%20apple?key={key}&width=1024&height=768"
    return f"""
Prompt Image Proxy is running with a demo backend, which needs no account.

  Page      {base}/     (key: {key})
  Open      {apple}
  Paste     ![a red apple]({apple})
  Refused   {refused}
            (the demo backend refuses the word "forbidden", so the proxy rewrites the prompt)
  Status    {base}/status

To use your own backends: cp .env.example .env, fill it in, and run this again. Ctrl-C stops it.
"""


def address_fault(host: str, port: str) -> str | None:
    """Return why nothing can listen there, and what to write; or None."""
    try:
        check_address(host, integer(1, 65535)(port))
    except ValueError as error:
        return f"PORT: {error}"
    except OSError as error:
        is_taken = str(error).endswith("another PORT")
        return f"{error}, as in: PORT=8081 make run" if is_taken else str(error)
    return None


def answers(url: str) -> bool:
    """Return whether an HTTP server answers at `url`."""
    try:
        with _DIRECT.open(url, timeout=1):
            return True
    except (urllib.error.URLError, OSError):
        return False


def wait_for(url: str, process: subprocess.Popen[bytes]) -> bool:
    """Wait until `url` answers; return False if the process exits or time runs out first."""
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        if answers(url):
            return True
        time.sleep(0.05)
    return False


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a child, which may have received the same Ctrl-C."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()


def run_demo() -> int:
    """Run both until gunicorn exits or Ctrl-C; return the exit status."""
    host, port = os.environ.get("HOST", "127.0.0.1"), os.environ.get("PORT", "8080")
    # Before gunicorn says so: what listens there may be another demo, which would answer.
    if fault := address_fault(host, port):
        print(fault, file=sys.stderr)
        return 1
    # It exits when its standard input, our pipe, is closed: even if we are killed.
    demo = subprocess.Popen(
        [sys.executable, "-m", "demo.demo_backend", "--until-eof"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert demo.stdout
    backend_url = demo.stdout.readline().decode().rpartition(" ")[2].strip()
    environment = demo_environment(backend_url)
    base = f"http://{url_host(_LOOPBACK.get(host, host))}:{port}"
    proxy = subprocess.Popen(GUNICORN, cwd=ROOT, env=environment)
    try:
        if wait_for(f"{base}/status", proxy):
            print(banner(base, environment["PROXY_ACCESS_KEY"]), flush=True)
            return proxy.wait()
        return proxy.poll() or 1
    except KeyboardInterrupt:
        return 0
    finally:
        stop(proxy)
        stop(demo)


def main() -> int:
    """Run gunicorn in place of this process, or the demo."""
    if is_configured():
        os.chdir(ROOT)
        os.execv(sys.executable, GUNICORN)

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # SIGTERM stops both as Ctrl-C does. Background jobs of a shell start with SIGINT ignored.
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    return run_demo()


if __name__ == "__main__":
    sys.exit(main())
