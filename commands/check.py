"""`check`: report every fault of the settings, of the cache, and on request of other servers."""

import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import click

from commands.console import built, load_settings, say
from config import Settings, SettingsError
from dialect.endpoint import Answer, Endpoint
from dialect.judging import Outcome
from drawing.backend import Backend, NotDrawn
from drawing.record import Drawing
from images.formats import pixels_of
from picture import ImageRequest
from pipeline import Services
from settings.parsers import printable_url
from storage.choose import Unusable, check_parts, connections
from upstream.client import Deadline, UpstreamError
from web.status import vendor_words

# A digest of the file without its comments, so that an installed file may be adapted.
_EDITION = re.compile(r"(?m)^# Edition ([0-9a-f]{8})\b")
_DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
ROOT = Path("/")
# Where the documents install each file, below the root directory.
INSTALLED = {
    "prompt-image-proxy.service": "etc/systemd/system/prompt-image-proxy.service",
    "prompt-image-proxy-backup.service": "etc/systemd/system/prompt-image-proxy-backup.service",
    "prompt-image-proxy-backup.timer": "etc/systemd/system/prompt-image-proxy-backup.timer",
    "nginx.conf": "etc/nginx/conf.d/prompt-image-proxy.conf",
    "nginx-tls.conf": "etc/nginx/prompt-image-proxy/tls.conf",
    "Caddyfile": "etc/caddy/Caddyfile",
    "apache.conf": "etc/apache2/sites-available/00-prompt-image-proxy.conf",
    "haproxy.cfg": "etc/haproxy/haproxy.cfg",
    "varnish.vcl": "etc/varnish/prompt-image-proxy.vcl",
    "traefik.yaml": "etc/traefik/traefik.yaml",
    "traefik-pictures.yaml": "etc/traefik/pictures.yaml",
}


def outdated_files(root: Path) -> Iterator[str]:
    """Say, for each installed file of another edition than deploy/ has, what to do.

    Files that are not installed, not readable, for something else (as Debian's own Caddyfile), or
    not in deploy/ (as in the Docker image) are left out.
    """
    for name, place in INSTALLED.items():
        installed = root / place
        with suppress(OSError):
            paths = installed, _DEPLOY / name
            text, shipped = (path.read_text("utf-8", "replace") for path in paths)
            is_ours = "prompt image proxy" in text.lower()
            if is_ours and _EDITION.findall(text) != _EDITION.findall(shipped):
                yield (
                    f"{installed} is of another version than this code: compare it with"
                    f" deploy/{name}, as docs/upgrading.md describes"
                )


# The settings by which the cache is opened. If one of these is wrong, opening it proves nothing.
_OF_THE_CACHE = re.compile(r"CACHE_DIR|DATABASE_URL|STORAGE_URL|S3_|CA_BUNDLE|\w+_PROXY", re.I)


@click.command(short_help="Check the settings, the cache, and on request the backends.")
@click.option("--settings", "only_settings", is_flag=True, help="Check the settings alone.")
@click.option("--backends", "asks", is_flag=True, help="Ask the backends, the LLM, PUBLIC_URL.")
@click.option("--draw", "draws", is_flag=True, help="Have each backend draw: it costs.")
def check(only_settings: bool, asks: bool, draws: bool) -> None:
    """Check the settings, and that the cache, the database and the bucket can be used.

    Reports all faults together, with a remedy for each, and exits 1 if there are any. Warns of
    installed files of systemd and of the server in front that belong to another version. With
    --backends, each backend and the LLM is asked once, for its models or an empty prompt, which
    draws nothing; and the service through PUBLIC_URL.
    """
    for warning in outdated_files(ROOT):
        click.echo(f"Warning: {warning}.", err=True)
    faults = []
    try:
        settings: Settings | None = load_settings()
    except SettingsError as error:
        faults = [str(error)]
        settings = None if any(map(_OF_THE_CACHE.match, error.faults)) else error.settings
    if settings and not only_settings:
        try:
            check_parts(settings, connections(settings))
        except Unusable as error:
            faults.append(str(error))
    if faults:
        raise click.ClickException("\n".join(faults))
    click.echo(f"The settings are valid{'' if only_settings else ', and the cache can be used'}.")
    if settings and (asks or draws):
        has_faults = False
        with built(settings) as services:
            for line, remedy in ask_all(services, draws=draws):
                say(f"{line}\n  {remedy}" if remedy else line)
                has_faults |= bool(remedy)
        sys.exit(1 if has_faults else 0)


# OpenRouter's list is over a megabyte.
LIST_LIMIT = 2**23


class Probe(NamedTuple):
    """What a server answered: what came, its own words, and why it cannot be used, if it cannot."""

    came: str
    words: str = ""
    why: str | None = None


def probe(endpoint: Endpoint, fields: Mapping[str, Any], wanted: set[str]) -> Probe:
    """Ask for the list of models; where that proves nothing, for an empty prompt.

    A server that refuses only the empty prompt has accepted the credentials. The models `wanted`
    that a list lacks are a remark, since lists are often incomplete. Raises Unavailable.
    """
    deadline = Deadline.after(PROBE_SECONDS)
    listed = _models(endpoint, endpoint.headers, deadline)
    # Many gateways show their list to everybody.
    is_open = bool(listed and endpoint.headers and _models(endpoint, {}, deadline))
    if listed and not is_open:
        missing = ", ".join(sorted(wanted - listed))
        remark = f"; not in its list: {missing}" if missing else ""
        return Probe(f"answers, with {len(listed)} model{'' if len(listed) == 1 else 's'}{remark}")
    try:
        answer = endpoint.ask(endpoint.door.body("", fields), deadline=deadline, limit=LIST_LIMIT)
    except UpstreamError as error:
        return Probe(str(error), why=error.why)
    fault, status = answer.fault, f"HTTP {answer.reply.status}"
    if fault is None:
        return Probe(f"answers ({status})")
    if fault.outcome is Outcome.FAILED:
        return Probe(f"{fault.why} ({status})", fault.detail, fault.why)
    return Probe(f"answers, and rejects an empty prompt ({status})", fault.detail)


def _models(endpoint: Endpoint, headers: Mapping[str, str], deadline: Deadline) -> set[str]:
    """Return the names in the list of models, none if it cannot be read."""
    url = endpoint.door.beside("/models")
    try:
        reply = endpoint.upstream.request(
            "GET", url, headers=headers, deadline=deadline, limit=LIST_LIMIT
        )
        found = Answer.of(reply)
    except UpstreamError:
        return set()
    data = found.json.get("data") if isinstance(found.json, dict) else found.json
    if found.fault or not isinstance(data, list):
        return set()
    return {str(one["id"]) for one in data if isinstance(one, dict) and "id" in one}


PROBE_SECONDS = 20.0
# In a path, proxies like to refuse, decode or shorten each of these.
_HARD = ImageRequest("half of it, 50%: a//b? #1, 一只红苹果")
_PLAIN = ImageRequest("an apple")
_DRAWN = ImageRequest("a red apple on a white plate")

_BACKEND_REMEDIES = {
    "unauthorised": "Write the vendor's key as AUTH_TOKEN, or for this URL into TOKEN_MAP.",
    "not found": "Compare BACKEND_API_URLS with the base URL in the vendor's documents.",
    "unknown model": "Write a model that it has into MODEL_MAP or BACKEND_PARAMS.",
    "no model": 'Write {"this URL": {"*": {"model": "…"}}} into BACKEND_PARAMS.',
}
_LLM_REMEDIES = {
    "unauthorised": "Write the vendor's key as LLM_OPTIMIZATION_TOKEN.",
    "not found": "Compare LLM_OPTIMIZATION_API_URL with the base URL in the vendor's documents.",
    "unknown model": "Write a model that it has as LLM_OPTIMIZATION_MODEL.",
}
_REMEDIES = {
    "out of credit": "Top up the account with the vendor; there is nothing to write here.",
    "blocked by Cloudflare": "Ask the vendor, or reach it from another address: BACKEND_PROXIES.",
    "unreachable": "Check the URL, and HTTPS_PROXY or BACKEND_PROXIES if it needs a proxy. In "
    "Docker, localhost is the container itself.",
    "bad certificate": "Write the file of your certificate authority as CA_BUNDLE.",
    "timed out": "Try its address from this machine with curl. Set BACKEND_TIMEOUT, or LLM_TIMEOUT "
    "for the LLM, if it is only slow.",
    "rate limited": "Try again later.",
    "down": "Try again later; if it stays, ask the vendor.",
}
_OTHER = "Compare what it says with the vendor's documents; BACKEND_PARAMS adds or removes fields."
_ELSEWHERE = "Start the service with these settings, and write where it is reached as PUBLIC_URL."
_REFUSED = (
    "The server in front changes or refuses %2F, %3F, %23 or %25. Compare its settings with its "
    "file in deploy/. nginx: proxy_pass without a path. Apache: AllowEncodedSlashes NoDecode, and "
    "nocanon after the URL of ProxyPass. Traefik: "
    "allowEncodedSlash, allowEncodedPercent, allowEncodedQuestionMark and allowEncodedHash under "
    "http.encodedCharacters of the entry point."
)


def ask_all(services: Services, *, draws: bool) -> Iterator[tuple[str, str]]:
    """Ask each backend and the LLM once, then the service through PUBLIC_URL.

    Yield a line for each, and what to write if it is a fault, else "". `draws`: each backend draws
    a picture, which is not stored. Raises Unavailable.
    """
    secrets = services.settings.secrets()
    for backend in services.pipeline.backends.all:
        found = _draw(services, backend) if draws else _probe_backend(backend)
        yield _finding(f"Backend {backend.name}", found, _BACKEND_REMEDIES, secrets)
    if llm := services.pipeline.llm:
        model = llm.settings.model
        found = probe(llm.endpoint, {"model": model, **llm.settings.params}, {model})
        yield _finding(f"LLM {printable_url(llm.settings.url)}", found, _LLM_REMEDIES, secrets)
    yield _pass_through(services)


def _finding(
    name: str, found: Probe, remedies: Mapping[str, str], secrets: tuple[str, ...]
) -> tuple[str, str]:
    words = vendor_words(found.words, secrets)
    line = f"{name}: {found.came}" + (f": “{words}”" if words else "")
    return line, (_REMEDIES | {**remedies}).get(found.why, _OTHER) if found.why else ""


def _probe_backend(backend: Backend) -> Probe:
    model = backend.model(_PLAIN)
    if backend.endpoint.door.needs_model and not model:
        return Probe("no model", why="no model")
    fields = {**backend.settings.extra(None), "model": model}
    wanted = {name for name in (model, *backend.settings.models.values()) if name}
    return probe(backend.endpoint, fields, wanted)


def _draw(services: Services, backend: Backend) -> Probe:
    began = time.monotonic()
    deadline = Deadline.after(services.settings.generation_deadline)
    try:
        image = backend.draw(Drawing(_DRAWN, deadline))
    except NotDrawn as error:
        return Probe(str(error), error.fault.detail, error.fault.why)
    seconds = time.monotonic() - began
    width, height = pixels_of(image.data) or (0, 0)
    size = f"{width}x{height}, {len(image.data):,} bytes of {image.media_type}"
    return Probe(f"drew {size}, in {seconds:.1f} s")


def _pass_through(services: Services) -> tuple[str, str]:
    """Ask for a picture whose prompt is hard to pass on; HEAD never draws it.

    The signature is of this very prompt, so a changed one is a 401.
    """
    base = services.settings.public_url
    if not base:
        return "PUBLIC_URL: not set; links take the host of the request", ""
    refused = _why_refused(services, base, _HARD)
    if refused is None:
        return f"PUBLIC_URL {base}: passes prompts on unchanged", ""
    if (plain := _why_refused(services, base, _PLAIN)) is None:
        return f"PUBLIC_URL {base}: {refused}, for a prompt with / ? # % and Chinese", _REFUSED
    return f"PUBLIC_URL {base}: {plain}", _ELSEWHERE


def _why_refused(services: Services, base: str, request: ImageRequest) -> str | None:
    """Return what came in place of an answer of ours, or None."""
    access, key = services.access, services.settings.all_access_keys[0]
    signed = access.sign(request, access.shared) if access.can_sign else {}
    headers = {} if signed else {"Authorization": f"Bearer {key}"}
    url = base + request.to_url(**signed)
    deadline = Deadline.after(PROBE_SECONDS)
    try:
        reply = services.upstream.request("HEAD", url, headers=headers, deadline=deadline)
    except UpstreamError as error:
        return str(error)
    if reply.status == 200 and "PromptImageProxy" in reply.headers.get("Cache-Status", ""):
        return None
    names = ("Server", "Location", "WWW-Authenticate")
    said = ", ".join(f"{name}: {reply.headers[name]}" for name in names if name in reply.headers)
    return vendor_words(f"HTTP {reply.status}" + (f" ({said})" if said else ""), ())
